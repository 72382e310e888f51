// A model with its parameters, gradients and one call for a whole step; for tests.
#ifndef PARLEY_TESTS_UNIT_MODELS_MODEL_FIXTURE_H_
#define PARLEY_TESTS_UNIT_MODELS_MODEL_FIXTURE_H_

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "google/protobuf/text_format.h"
#include "models/cpu/cpu_device.h"
#include "models/gpu/gpu_device.h"
#include "models/model.h"
#include "ps/gpu/simulated_gpu.h"
#include "tests/unit/models/pattern.h"

namespace parley {

// What models are tested on: oneDNN (Eigen, where it was left out), Eigen, and the GPU device with
// float32 products on simulated GPUs, one in order and some that draw.
enum class Backend { kDefault, kEigen, kGpuInOrder, kGpuDrawn1, kGpuDrawn2, kGpuGraphs };

inline std::unique_ptr<Device> MakeDevice(Backend backend) {
  if (backend == Backend::kDefault || backend == Backend::kEigen) {
    return *CreateCpuDevice({.threads = 1, .use_onednn = backend == Backend::kDefault});
  }
  const auto seed = static_cast<uint64_t>(backend) - static_cast<uint64_t>(Backend::kGpuInOrder);
  // Little scratch memory, so that convolutions are cut into pieces.
  return *CreateGpuDevice(
      CreateSimulatedGpu({.seed = seed, .guard = true}),
      {.math = GemmMath::kFp32, .column_bytes = 20000, .graphs = backend == Backend::kGpuGraphs});
}

inline pb::Model ParseModel(const std::string& text) {
  pb::Model model;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &model)) << text;
  return model;
}

struct TestModel {
  TestModel(const std::string& text, SampleShape input, uint32_t classes, Device* device,
            uint64_t seed = 1)
      : input(input), classes(classes) {
    absl::StatusOr<std::unique_ptr<Model>> created =
        Model::Create(ParseModel(text), input, classes, seed, device);
    EXPECT_TRUE(created.ok()) << created.status();
    model = *std::move(created);
    uint32_t stream = 10;
    for (const pb::TensorSpec& tensor : model->tensors()) {
      size_t size = 1;
      for (const uint32_t extent : tensor.shape()) size *= extent;
      const std::vector<float> values = Pattern(stream++, size, tensor.bound());
      tensors.push_back({parameters.size(), parameters.size() + size});
      parameters.insert(parameters.end(), values.begin(), values.end());
    }
    // Every Backward overwrites: whatever was there must not show.
    gradients.assign(parameters.size(), std::nanf(""));
    model->BindParameters(parameters.data());
    model->BindGradients(gradients.data());
  }

  // One whole step on `rows` rows of the pattern, starting with its row `skip`.
  BatchResult Step(uint64_t rows, StepContext context = {}, uint64_t skip = 0) {
    const std::vector<float> x = Pattern(1, (skip + rows) * input.size());
    const std::vector<int32_t> labels = PatternLabels(skip + rows, classes);
    const BatchView batch{.rows = rows,
                          .x = x.data() + skip * input.size(),
                          .labels = labels.data() + skip,
                          .dx = dx};
    EXPECT_TRUE(model->Begin(batch, context).ok());
    for (size_t i = 0; i < model->stages(); ++i) EXPECT_TRUE(model->Forward(i).ok());
    for (size_t i = model->stages(); context.train && i-- > 0;) {
      EXPECT_TRUE(model->Backward(i).ok());
    }
    for (size_t i = model->stages(); context.train && i-- > 0;) {
      EXPECT_TRUE(model->AwaitGradients(i).ok());
    }
    const absl::StatusOr<BatchResult> result = model->Result();
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(BatchResult{});
  }

  SampleShape input;
  uint32_t classes;
  std::unique_ptr<Model> model;
  std::vector<Range> tensors;
  std::vector<float> parameters, gradients;
  float* dx = nullptr;  // set to have the gradient of x, too
};

class BackendTest : public testing::TestWithParam<Backend> {
 protected:
  std::unique_ptr<Device> device_ = MakeDevice(GetParam());
};

inline std::string BackendName(const testing::TestParamInfo<Backend>& info) {
  constexpr const char* kNames[] = {"Default",   "Eigen",     "GpuInOrder",
                                    "GpuDrawn1", "GpuDrawn2", "GpuGraphs"};
  return kNames[static_cast<int>(info.param)];
}
inline auto AllBackends() {
  return testing::Values(Backend::kDefault, Backend::kEigen, Backend::kGpuInOrder,
                         Backend::kGpuDrawn1, Backend::kGpuDrawn2, Backend::kGpuGraphs);
}

inline constexpr char kSmallConvNet[] =
    "layer { conv2d { out_channels: 5 padding: 1 } } layer { relu {} }"
    "layer { conv2d { out_channels: 9 } } layer { relu {} } layer { max_pool2d {} }"
    "layer { dropout { p: 0.1 } } layer { flatten {} } layer { linear { out: 12 } }"
    "layer { relu {} } layer { dropout { p: 0.25 } } layer { linear { out: 4 } }"
    "layer { log_softmax {} }";

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_MODELS_MODEL_FIXTURE_H_
