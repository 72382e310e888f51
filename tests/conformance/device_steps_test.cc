// Whole steps of models on every Device, against float64 and each other.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/conformance/device_rig.h"
#include "tests/conformance/reference_model.h"
#include "tests/unit/models/model_fixture.h"

namespace parley {
namespace {

using reference::Doubles;
using reference::OwnLookup;
using reference::ReferenceStep;
using reference::StepResult;
using reference::ToDoubles;

struct ModelCase {
  const char* name;
  const char* layers;
  SampleShape input;
  uint32_t classes;
  uint64_t rows;
};

const ModelCase kModelCases[] = {
    {"MLP",
     "layer { linear { out: 40 } } layer { relu {} } layer { dropout { p: 0.25 } }"
     "layer { linear { out: 24 } } layer { relu {} } layer { linear { out: 10 } }"
     "layer { log_softmax {} }",
     {1, 5, 6},
     10,
     12},
    {"small ConvNet", kSmallConvNet, {2, 7, 6}, 4, 6},
    {"pool with a remainder",
     "layer { conv2d { out_channels: 17 padding: 1 } } layer { max_pool2d { kernel: 3 } }"
     "layer { relu {} } layer { conv2d { out_channels: 3 kernel: 1 } } layer { flatten {} }"
     "layer { linear { out: 3 } } layer { log_softmax {} }",
     {3, 7, 8},
     3,
     5},
    // The flat activation is read by a convolution before its ReLU's gradient.
    {"conv behind flatten",
     "layer { conv2d { out_channels: 3 } } layer { relu {} } layer { flatten {} }"
     "layer { conv2d { out_channels: 20 kernel: 1 } } layer { linear { out: 3 } }"
     "layer { log_softmax {} }",
     {2, 4, 4},
     3,
     4},
};
constexpr StepContext kContext{.train = true, .tick = 5, .first_row = 11};
constexpr uint64_t kSeed = 77;

ReferenceStep ReferenceOf(const char* layers, SampleShape input, const TestModel& m) {
  std::vector<Doubles> tensors;
  for (const Range& range : m.tensors) {
    tensors.emplace_back(m.parameters.begin() + static_cast<int64_t>(range.begin),
                         m.parameters.begin() + static_cast<int64_t>(range.end));
  }
  return {ParseModel(layers), input, kSeed, std::move(tensors)};
}

// Decisions closer than this might be taken otherwise by sums in another order, or by hardware
// that rounds factors its own way.
constexpr double kLeastMargin = 1e-3;

// Rows of the pattern where nothing is decided by so little.
std::vector<float> ClearRows(const ReferenceStep& reference, const ModelCase& c, GemmMath math) {
  std::vector<float> rows;
  uint32_t stream = 100;
  for (uint64_t r = 0; r < c.rows; ++r) {
    StepContext context = kContext;
    context.first_row += r;
    for (const uint32_t end = stream + 300; stream < end; ++stream) {
      const std::vector<float> x = Pattern(stream, c.input.size());
      if (reference.Run(ToDoubles(x), {0}, context, math).margin < kLeastMargin) continue;
      rows.insert(rows.end(), x.begin(), x.end());
      ++stream;
      break;
    }
  }
  EXPECT_EQ(rows.size(), c.rows * c.input.size()) << "too few rows are clear";
  return rows;
}

BatchResult RunStep(TestModel& m, const BatchView& batch, const StepContext& context) {
  EXPECT_TRUE(m.model->Begin(batch, context).ok());
  for (size_t i = 0; i < m.model->stages(); ++i) EXPECT_TRUE(m.model->Forward(i).ok());
  for (size_t i = m.model->stages(); i-- > 0;) EXPECT_TRUE(m.model->Backward(i).ok());
  for (size_t i = m.model->stages(); i-- > 0;) EXPECT_TRUE(m.model->AwaitGradients(i).ok());
  const absl::StatusOr<BatchResult> result = m.model->Result();
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(BatchResult{});
}

std::vector<float> GradientOf(const TestModel& m, size_t tensor) {
  const Range range = m.tensors[tensor];
  return {m.gradients.begin() + static_cast<int64_t>(range.begin),
          m.gradients.begin() + static_cast<int64_t>(range.end)};
}

void ExpectStep(const TestModel& m, const BatchResult& result, const StepResult& want,
                double bound) {
  EXPECT_NEAR(result.loss_sum, want.loss, bound * want.loss);
  for (size_t i = 0; i < m.tensors.size(); ++i) {
    ExpectClose(GradientOf(m, i), want.gradients[i], bound, m.model->tensors()[i].name().c_str());
  }
}

using StepTest = DeviceTest;
PARLEY_ON_ALL_DEVICES(StepTest);

TEST_P(StepTest, LossAndGradientsAreThoseOfFloat64) {
  for (const ModelCase& c : kModelCases) {
    SCOPED_TRACE(c.name);
    const std::unique_ptr<Device> device = NewDevice();
    TestModel m(c.layers, c.input, c.classes, device.get(), kSeed);
    const ReferenceStep reference = ReferenceOf(c.layers, c.input, m);
    const std::vector<float> x = ClearRows(reference, c, math());
    const std::vector<int32_t> labels = PatternLabels(c.rows, c.classes);
    const StepResult want = reference.Run(ToDoubles(x), labels, kContext, math());
    std::vector<float> dx(x.size(), std::nanf(""));
    const BatchResult result = RunStep(
        m, {.rows = c.rows, .x = x.data(), .labels = labels.data(), .dx = dx.data()}, kContext);
    ExpectStep(m, result, want, bound());
    EXPECT_EQ(result.correct, want.correct);
    ExpectClose(dx, want.dx, bound(), "dx");
  }
}

// The same step on the CPU: only where sums are in another order do they differ.
TEST_P(StepTest, TheCpuAgrees) {
  if (math() != GemmMath::kFp32) return;
  for (const ModelCase& c : kModelCases) {
    SCOPED_TRACE(c.name);
    const std::unique_ptr<Device> device = NewDevice(), cpu = *MakeDevice(kDeviceCases[0]);
    TestModel here(c.layers, c.input, c.classes, device.get(), kSeed);
    TestModel there(c.layers, c.input, c.classes, cpu.get(), kSeed);
    const std::vector<float> x = ClearRows(ReferenceOf(c.layers, c.input, here), c, math());
    const std::vector<int32_t> labels = PatternLabels(c.rows, c.classes);
    const BatchView batch{.rows = c.rows, .x = x.data(), .labels = labels.data()};
    const BatchResult a = RunStep(here, batch, kContext), b = RunStep(there, batch, kContext);
    EXPECT_NEAR(a.loss_sum, b.loss_sum, 1e-5 * b.loss_sum);
    EXPECT_EQ(a.correct, b.correct);
    for (size_t i = 0; i < here.tensors.size(); ++i) {
      ExpectClose(GradientOf(here, i), ToDoubles(GradientOf(there, i)), 1e-5,
                  here.model->tensors()[i].name().c_str());
    }
  }
}

// A model whose input is looked up; the rows' gradients come back, too.
void CheckEmbedding(const DeviceCase& on, const OwnLookup& lookup, double bound) {
  constexpr char kLayers[] =
      "layer { linear { out: 16 } } layer { relu {} } layer { linear { out: 5 } }"
      "layer { log_softmax {} }";
  const Lookup& l = lookup.view;
  const SampleShape input{l.sum ? l.dim : l.dim * l.fields, 1, 1};
  const std::unique_ptr<Device> device = *MakeDevice(on);
  TestModel m(kLayers, input, 5, device.get(), kSeed);
  const ReferenceStep reference = ReferenceOf(kLayers, input, m);
  const std::vector<int32_t> labels = PatternLabels(l.samples, 5);
  for (uint32_t stream = 200; stream < 400; ++stream) {
    const std::vector<float> values = Pattern(stream, l.keys * l.dim);
    const Doubles x = lookup.Forward(ToDoubles(values));
    const StepResult want = reference.Run(x, labels, kContext, on.math);
    if (want.margin < kLeastMargin) continue;
    std::vector<float> row_gradients(values.size(), std::nanf(""));
    const BatchResult result = RunStep(m,
                                       {.rows = l.samples,
                                        .labels = labels.data(),
                                        .lookup = &l,
                                        .row_values = values.data(),
                                        .row_gradients = row_gradients.data()},
                                       kContext);
    ExpectStep(m, result, want, bound);
    ExpectClose(row_gradients, lookup.Backward(want.dx), bound, "rows");
    return;
  }
  FAIL() << "nothing is clear";
}

TEST_P(StepTest, EmbeddingsAreThoseOfFloat64) {
  constexpr uint32_t kNone = Lookup::kNone;
  const std::vector<uint32_t> index = {0, 1, 2, 2, kNone, 0, 4, 4, 4, kNone, 3, kNone, 1, 0, 4};
  const std::vector<float> factors = Pattern(9, index.size(), 2);
  for (const bool sum : {false, true}) {
    SCOPED_TRACE(sum ? "summed" : "side by side");
    CheckEmbedding(GetParam(), OwnLookup(index, 5, 3, 6, sum), bound());
    CheckEmbedding(GetParam(), OwnLookup(index, 5, 3, 6, sum, factors), bound());
  }
}

}  // namespace
}  // namespace parley
