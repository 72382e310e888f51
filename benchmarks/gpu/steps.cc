#include "benchmarks/gpu/steps.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/gpu/gpu_device.h"
#include "models/model.h"

namespace parley {
namespace {

// Float32 [n] in the GPU's memory, or pinned in the host's; random, small enough for a sane loss.
class Place {
 public:
  Place(Bench& bench, MemoryKind kind, size_t n) {
    constexpr float kBound = 0.02f;
    if (kind == MemoryKind::kDevice) {
      Check(device_.Reserve(bench.gpu().get(), n * sizeof(float)));
      data_ = device_.floats();
      bench.FillRandom(data_, n * sizeof(float), kBound);
    } else {
      pinned_ = Check(PinnedMemory::Create(bench.gpu().get(), n * sizeof(float)));
      data_ = static_cast<float*>(pinned_.data());
      FillRandomHost(data_, n, kBound);
    }
  }
  float* data() { return data_; }

 private:
  DeviceMemory device_;
  PinnedMemory pinned_;
  float* data_ = nullptr;
};

GpuDeviceOptions OptionsOf(const Bench& bench, GemmMath math) {
  GpuDeviceOptions options;
  options.math = math;
  options.graphs = bench.settings().graphs;
  return options;
}

// A model with two batches in pinned memory, which take turns.
class LocalStep {
 public:
  LocalStep(Bench& bench, const StepCase& step, GemmMath math)
      : bench_(bench),
        device_(Check(CreateGpuDevice(bench.gpu(), OptionsOf(bench, math)))),
        model_(Check(Model::Create(step.model, step.input, step.classes, 1, device_.get()))) {
    for (const pb::TensorSpec& tensor : model_->tensors()) {
      uint64_t size = 1;
      for (const uint32_t extent : tensor.shape()) size *= extent;
      elements_ += size;
    }
    for (Batch& batch : batches_) {
      const size_t values = step.batch * step.input.size();
      batch.x = Check(PinnedMemory::Create(bench.gpu().get(), values * sizeof(float)));
      FillRandomHost(static_cast<float*>(batch.x.data()), values, 1);
      batch.labels = Check(PinnedMemory::Create(bench.gpu().get(), step.batch * sizeof(int32_t)));
      auto* labels = static_cast<int32_t*>(batch.labels.data());
      for (uint64_t r = 0; r < step.batch; ++r) labels[r] = static_cast<int32_t>(r % step.classes);
      batch.view = {
          .rows = step.batch, .x = static_cast<const float*>(batch.x.data()), .labels = labels};
    }
  }

  uint64_t elements() const { return elements_; }
  double flops_per_sample() const { return model_->flops_per_sample(); }

  // One after the other, as a worker does it: all of a step is enqueued, then the copy of the next
  // batch, and the step is over when its gradients are where they belong.
  Timing Measure(MemoryKind kind) {
    Place parameters(bench_, kind, elements_), gradients(bench_, kind, elements_);
    model_->BindParameters(parameters.data(), kind);
    model_->BindGradients(gradients.data(), kind);
    const Timing timing = bench_.TimeCalls([&] { Run(); });
    if (!std::isfinite(last_loss_)) Check(absl::InternalError("the loss is not a number"));
    if (kind == MemoryKind::kDevice) MeasureStages();
    Check(device_->Sync());
    return timing;
  }

  // {"fc1": [forward, backward]} in ms, each waited for: more than the step in all.
  const std::string& stages_json() const { return stages_json_; }

 private:
  struct Batch {
    PinnedMemory x, labels;
    BatchView view;
  };

  void Begin() { Check(model_->Begin(batches_[tick_ % 2].view, {true, tick_, 0})); }

  void Run() {
    Begin();
    const size_t stages = model_->stages();
    for (size_t i = 0; i < stages; ++i) Check(model_->Forward(i));
    for (size_t i = stages; i-- > 0;) Check(model_->Backward(i));
    model_->Prefetch(batches_[++tick_ % 2].view);
    for (size_t i = stages; i-- > 0;) Check(model_->AwaitGradients(i));
    last_loss_ = Check(model_->Result()).loss_sum;
  }

  void MeasureStages() {
    const size_t stages = model_->stages();
    std::vector<double> forward(stages), backward(stages);
    const int repeats = bench_.settings().simulated ? 1 : 10;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      Begin();
      Check(device_->Sync());
      double before = Seconds();
      const auto lap = [&] {
        Check(device_->Sync());
        const double now = Seconds();
        return (now - std::exchange(before, now)) * 1e3 / repeats;
      };
      for (size_t i = 0; i < stages; ++i) {
        Check(model_->Forward(i));
        forward[i] += lap();
      }
      for (size_t i = stages; i-- > 0;) {
        Check(model_->Backward(i));
        backward[i] += lap();
      }
    }
    JsonLine line;
    for (size_t i = 0; i < stages; ++i) {
      line.Raw(model_->stage_name(i), absl::StrFormat("[%.4f, %.4f]", forward[i], backward[i]));
    }
    stages_json_ = line.str();
  }

  Bench& bench_;
  const std::unique_ptr<Device> device_;
  Batch batches_[2];
  const std::unique_ptr<Model> model_;
  uint64_t elements_ = 0, tick_ = 0;
  double last_loss_ = 0;
  std::string stages_json_;
};

// All parameters in, then all gradients out, and nothing else: what a step would wait for if no
// copy went on beside anything.
Timing CopiesAlone(Bench& bench, uint64_t elements) {
  const size_t bytes = elements * sizeof(float);
  const PinnedMemory host = Check(PinnedMemory::Create(bench.gpu().get(), bytes));
  DeviceMemory device;
  Check(device.Reserve(bench.gpu().get(), bytes));
  return bench.TimeEnqueued([&] {
    Check(bench.stream().CopyIn(device.data(), host.data(), bytes));
    Check(bench.stream().CopyOut(host.data(), device.data(), bytes));
  });
}

}  // namespace

std::string MeasureStep(Bench& bench, const StepCase& step, GemmMath math, const CopyRates& rates) {
  const std::string title = absl::StrCat(step.name, ", batch ", step.batch, ", ", ToString(math));
  Say(absl::StrCat(title, ": products"));
  const StepWork work = WorkOf(step.model, step.input, step.batch);
  const ProductTimes products = MeasureProducts(bench, work, math);

  Say(absl::StrCat(title, ": steps"));
  LocalStep local(bench, step, math);
  if (std::abs(local.flops_per_sample() * step.batch - products.flops) > products.flops * 1e-9) {
    Check(absl::InternalError("the products are not those of the model"));
  }
  const Timing on_gpu = local.Measure(MemoryKind::kDevice);
  const Timing on_host = local.Measure(MemoryKind::kHost);
  const Timing alone = CopiesAlone(bench, local.elements());

  const double bytes = static_cast<double>(local.elements()) * sizeof(float);
  const double memory = work.other_bytes / (2 * rates.within);
  const double floor = products.forward + products.backward + memory;
  // Backward begins when forward is over, and forward when the last parameter is in; no gradient
  // leaves before backward begins.
  const double host_floor = std::max(products.forward, bytes / rates.in) +
                            std::max(products.backward, bytes / rates.out) + memory;
  const double hidden = 1 - (on_host.median - on_gpu.median) / alone.median;
  Say(
      absl::StrFormat("%s: %.3f ms (floor %.3f, ratio %.2f); parameters on the host %.3f ms (floor "
                      "%.3f), %.0f%% of the copies hidden",
                      title, on_gpu.median * 1e3, floor * 1e3, on_gpu.median / floor,
                      on_host.median * 1e3, host_floor * 1e3, hidden * 100));
  return JsonLine()
      .Text("model", step.name)
      .Text("math", ToString(math))
      .Count("batch", step.batch)
      .Count("parameter_bytes", static_cast<uint64_t>(bytes))
      .Number("flops", products.flops)
      .Number("product_tflop_per_s", products.flops / (products.forward + products.backward) / 1e12)
      .Number("floor_products_ms", (products.forward + products.backward) * 1e3)
      .Number("floor_memory_ms", memory * 1e3)
      .Number("floor_ms", floor * 1e3)
      .Raw("step", TimingJson(on_gpu))
      .Number("ratio_to_floor", on_gpu.median / floor)
      .Number("tflop_per_s", products.flops / on_gpu.median / 1e12)
      .Raw("host_step", TimingJson(on_host))
      .Number("host_floor_ms", host_floor * 1e3)
      .Number("host_ratio_to_floor", on_host.median / host_floor)
      .Raw("copies_alone", TimingJson(alone))
      .Number("copies_hidden", hidden)
      .Raw("stage_ms_forward_backward", local.stages_json())
      .Raw("products", products.json)
      .str();
}

}  // namespace parley
