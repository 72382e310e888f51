// When calls of the GPU fail, memory runs out or a batch is too large.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "tests/conformance/device_runs.h"

namespace parley {
namespace {

using reference::OwnLookup;

// A step of a worker that gives up at the first failure.
absl::Status RunStep(Model& model, const BatchView& batch, BatchView next) {
  absl::Status status = model.Begin(batch, {.tick = 1});
  for (size_t i = 0; i < model.stages() && status.ok(); ++i) status = model.Forward(i);
  for (size_t i = model.stages(); i-- > 0 && status.ok();) status = model.Backward(i);
  if (status.ok() && next.x != nullptr) model.Prefetch(next);
  for (size_t i = model.stages(); i-- > 0 && status.ok();) status = model.AwaitGradients(i);
  if (status.ok()) status = model.Result().status();
  return status;
}

// All that a step of a model with or without an embedding needs.
struct Attempt {
  Attempt(bool embedding, const SimulatedGpuOptions& options, GemmMath math)
      : gpu(CreateSimulatedGpu(options)),
        batch(1, 6),
        next(2, 6),
        lookup({0, 1, 2, 2, Lookup::kNone, 0, 1, 1, 2, 0, 0, 0}, 3, 2,
               static_cast<uint32_t>(kRunInput.size() / 2), false, Pattern(3, 12)),
        row_values(Pattern(4, 3 * kRunInput.size() / 2)),
        row_gradients(row_values.size(), std::nanf("")),
        view(batch.view(true)) {
    if (embedding) {
      view.x = view.dx = nullptr;
      view.lookup = &lookup.view;
      view.row_values = row_values.data();
      view.row_gradients = row_gradients.data();
    }
    auto made = CreateGpuDevice(gpu, {.math = math, .column_bytes = kSmallColumns});
    status = made.status();
    if (made.ok()) device = *std::move(made);
  }
  ~Attempt() { model.reset(); }

  // The first failure, if there is one.
  absl::Status Run() {
    if (!status.ok()) return status;
    model = std::make_unique<TestModel>(kSmallConvNet, kRunInput, kRunClasses, device.get());
    return RunStep(*model->model, view, view.x == nullptr ? BatchView{} : next.view());
  }
  // The caller's memory that a step writes to.
  std::vector<std::vector<float>> Written() const {
    if (model == nullptr) return {};
    return {model->gradients, batch.dx, row_gradients};
  }

  std::shared_ptr<Gpu> gpu;
  OwnBatch batch, next;
  OwnLookup lookup;
  std::vector<float> row_values, row_gradients;
  BatchView view;
  absl::Status status;
  std::unique_ptr<Device> device;
  std::unique_ptr<TestModel> model;
};

bool SameBits(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  }
  return a.size() == b.size();
}

// Who was told of a failure gives up: nothing that was enqueued is done behind its back, nothing is
// waited for in vain.
void ExpectGivenUp(Attempt& attempt) {
  const auto written = attempt.Written();
  if (attempt.model != nullptr) {
    Model& model = *attempt.model->model;
    for (size_t i = 0; i < model.stages(); ++i) EXPECT_TRUE(model.GradientsReady(i));
    attempt.device->Sync().IgnoreError();
    EXPECT_TRUE(SameBits(attempt.Written(), written)) << "written to after the failure was told";
  }
}

TEST(DeviceErrorTest, EveryCallMayFail) {
  for (const bool embedding : {false, true}) {
    for (const GemmMath math : {GemmMath::kFp32, GemmMath::kBf16}) {
      Attempt whole(embedding, {.seed = 3, .guard = true}, math);
      ASSERT_TRUE(whole.Run().ok());
      const uint64_t calls = CallsThatCanFail(*whole.gpu);
      ASSERT_GT(calls, 100u);
      std::vector<std::string> messages;
      for (uint64_t k = 1; k <= calls; ++k) {
        SCOPED_TRACE(absl::StrFormat("embedding %d, %s, call %d", embedding, ToString(math), k));
        Attempt attempt(embedding, {.seed = 1 + k % 5, .guard = true, .fail_at = k}, math);
        const absl::Status status = attempt.Run();
        ASSERT_EQ(status.code(), absl::StatusCode::kInternal) << status;
        ASSERT_TRUE(absl::StrContains(status.message(), "simulated gpu: ")) << status;
        ASSERT_TRUE(absl::EndsWith(status.message(), ": failed as was asked")) << status;
        messages.emplace_back(status.message());
        ExpectGivenUp(attempt);
      }
      const auto named = [&](const char* call) {
        return std::any_of(messages.begin(), messages.end(), [&](const std::string& message) {
          return absl::StrContains(message, call);
        });
      };
      for (const char* call :
           {"pin", "new stream", "new event", "allocate", "copy in", "copy out", "record an event",
            "wait for an event", "gemm", "parley::AddBiasKernel", "parley::NllSumKernel"}) {
        EXPECT_TRUE(named(call)) << call;
      }
    }
  }
}

TEST(DeviceErrorTest, OutOfMemorySaysWhatForAndIsNotTheEnd) {
  for (const bool embedding : {false, true}) {
    std::vector<std::string> messages;
    for (uint64_t pages = 0;; ++pages) {
      ASSERT_LT(pages, 1000u);
      SCOPED_TRACE(absl::StrFormat("embedding %d, %d pages", embedding, pages));
      Attempt attempt(embedding, {.seed = pages, .guard = true, .memory_bytes = 4096 * pages},
                      GemmMath::kFp32);
      const absl::Status status = attempt.Run();
      if (status.ok()) break;
      ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      const size_t at = status.message().find(": simulated gpu: out of memory: ");
      ASSERT_NE(at, std::string::npos) << status;
      messages.emplace_back(status.message().substr(0, at));
      ExpectGivenUp(attempt);
      EXPECT_TRUE(attempt.device->Sync().ok());  // it has been told
      // The memory that is there is of use again.
      attempt.model.reset();
      const std::unique_ptr<Tensor> tensor = attempt.device->NewTensor();
      const float x = 7;
      float back = 0;
      if (pages < 2) continue;
      attempt.device->BeginStep();
      attempt.device->Upload(&x, {1, 1, 1}, 1, tensor.get());
      attempt.device->Download(tensor.get(), &back);
      EXPECT_TRUE(attempt.device->Sync().ok());
      EXPECT_EQ(back, 7);
    }
    const char* const wanted[] = {
        "activations", "parameters", "weights",  "gradients",  "labels",
        "max_pool2d",  "dropout",    "the loss", "a gradient", "a convolution's unfolded input"};
    for (const char* what : wanted) {
      EXPECT_TRUE(std::find(messages.begin(), messages.end(), what) != messages.end()) << what;
    }
    EXPECT_EQ(std::find(messages.begin(), messages.end(), "embedding") != messages.end(),
              embedding);
  }
}

class TooLargeTest : public testing::Test {
 protected:
  void ExpectRefused(const absl::Status& status, const char* part) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
    EXPECT_TRUE(device_->Sync().ok());
  }
  const std::shared_ptr<Gpu> gpu_ = CreateSimulatedGpu({});
  const std::unique_ptr<Device> device_ = *CreateGpuDevice(gpu_, {.math = GemmMath::kFp32});
};

TEST_F(TooLargeTest, Activations) {
  const std::unique_ptr<Tensor> tensor = device_->NewTensor();
  const uint64_t calls = CallsThatCanFail(*gpu_);
  ExpectRefused(device_->Prepare(tensor.get(), {65536, 256, 128}, 2),
                "activations [2] x [65536, 256, 128] are 4294967296 values, allowed are fewer");
  const float x = 0;
  device_->Upload(&x, {1, 1, 1}, uint64_t{1} << 40, tensor.get());  // reads nothing of it
  ExpectRefused(device_->Sync(), "take a smaller batch");
  EXPECT_EQ(CallsThatCanFail(*gpu_), calls) << "something was allocated or enqueued";
}

TEST_F(TooLargeTest, AnUnfoldedSample) {
  const std::unique_ptr<Tensor> x = device_->NewTensor(), y = device_->NewTensor();
  ASSERT_TRUE(device_->Prepare(x.get(), {1, 4096, 4096}, 1).ok());
  ASSERT_TRUE(device_->Prepare(y.get(), {1, 4096, 4096}, 1).ok());
  const float weight[17 * 17] = {}, bias[1] = {};
  device_->Conv2dForward(x.get(), {.kernel = 17, .padding = 8}, weight, bias, false, y.get());
  ExpectRefused(device_->Sync(), "a convolution unfolds a sample to 16777216 x 289 values");
}

TEST_F(TooLargeTest, AnEmbedding) {
  const std::unique_ptr<Workspace> memory = device_->NewWorkspace();
  const uint64_t calls = CallsThatCanFail(*gpu_);
  device_->LoadLookup({.samples = 1 << 20, .keys = 0, .fields = 1 << 12, .dim = 1}, memory.get());
  ExpectRefused(device_->Sync(), "an embedding of 0 rows of 1 values at 4294967296 places");
  device_->LoadLookup({.samples = 1, .keys = 1 << 20, .fields = 1, .dim = 1 << 12}, memory.get());
  ExpectRefused(device_->Sync(), "an embedding of 1048576 rows of 4096 values");
  EXPECT_EQ(CallsThatCanFail(*gpu_), calls) << "something was allocated or enqueued";
}

// A model says so, too: its first layer makes 2^32 values of one sample.
TEST_F(TooLargeTest, AModelsBatch) {
  TestModel m(
      "layer { conv2d { out_channels: 65536 kernel: 1 } } layer { max_pool2d { kernel: 15 } }"
      "layer { max_pool2d { kernel: 15 } } layer { linear { out: 2 } }"
      "layer { log_softmax {} }",
      {1, 256, 256}, 2, device_.get());
  const std::vector<float> x(65536);
  const int32_t label = 1;
  const absl::Status status = RunStep(*m.model, {.rows = 1, .x = x.data(), .labels = &label}, {});
  ExpectRefused(status, "activations [1] x [65536, 256, 256] are 4294967296 values");
}

// Failures are told once, and what was enqueued before them is not taken for done.
TEST(DeviceErrorTest, TheLossOfAFailedBatchIsNeverWritten) {
  const auto count = [] {
    const std::shared_ptr<Gpu> gpu = CreateSimulatedGpu({});
    const std::unique_ptr<Device> device = *CreateGpuDevice(gpu, {});
    return CallsThatCanFail(*gpu);
  };
  int failures = 0;
  for (uint64_t k = count() + 1; k < count() + 40; ++k) {
    const std::shared_ptr<Gpu> gpu = CreateSimulatedGpu({.seed = k, .fail_at = k});
    const std::unique_ptr<Device> device = *CreateGpuDevice(gpu, {});
    const std::unique_ptr<Tensor> y = device->NewTensor();
    const std::unique_ptr<Workspace> memory = device->NewWorkspace();
    const std::vector<float> values(6, -1);
    const std::vector<int32_t> labels = {0, 1};
    double loss = -1;
    uint64_t correct = 99;
    device->BeginStep();
    device->Upload(values.data(), {3, 1, 1}, 2, y.get());
    device->NllForward(y.get(), device->LoadLabels(labels.data(), 2, memory.get()), &loss,
                       &correct);
    const absl::Status status = device->Await(device->MarkHere());
    if (status.ok()) continue;
    ++failures;
    EXPECT_EQ(loss, -1);
    device->Sync().IgnoreError();
    device->Await(device->MarkHere()).IgnoreError();
    EXPECT_EQ(loss, -1);
    EXPECT_EQ(correct, 99u);
  }
  EXPECT_GT(failures, 10);
}

}  // namespace
}  // namespace parley
