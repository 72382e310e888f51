#include "models/model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/unit/models/model_fixture.h"
#include "tests/unit/models/reference.h"

namespace parley {
namespace {

using ModelTest = BackendTest;
INSTANTIATE_TEST_SUITE_P(Backends, ModelTest, AllBackends(), BackendName);

struct GradientCase {
  const char* name;
  const char* layers;
  SampleShape input;
  uint32_t classes;
};

const GradientCase kGradientCases[] = {
    {"softmax", "layer { linear { out: 5 } } layer { log_softmax {} }", {1, 3, 4}, 5},
    {"mlp",
     "layer { flatten {} } layer { linear { out: 9 } } layer { relu {} } layer { linear { out: 3 } "
     "}"
     "layer { log_softmax {} }",
     {2, 2, 3},
     3},
    {"conv to the loss",
     "layer { conv2d { out_channels: 3 kernel: 4 } } layer { log_softmax {} }",
     {2, 4, 4},
     3},
    {"dropout after conv",
     "layer { conv2d { out_channels: 17 padding: 2 } } layer { relu {} }"
     "layer { dropout { p: 0.5 } } layer { linear { out: 2 } } layer { log_softmax {} }",
     {1, 3, 3},
     2},
    {"pool with a remainder, relu after it",
     "layer { conv2d { out_channels: 4 } } layer { max_pool2d { kernel: 3 } } layer { relu {} }"
     "layer { max_pool2d {} } layer { conv2d { out_channels: 3 kernel: 1 } } layer { flatten {} }"
     "layer { linear { out: 3 } } layer { log_softmax {} }",
     {2, 10, 13},
     3},
    {"small ConvNet", kSmallConvNet, {2, 7, 6}, 4},
    // A convolution reads the flat activation before its ReLU's gradient is made.
    {"conv behind flatten",
     "layer { conv2d { out_channels: 3 } } layer { relu {} } layer { flatten {} }"
     "layer { conv2d { out_channels: 20 kernel: 1 } } layer { linear { out: 3 } }"
     "layer { log_softmax {} }",
     {2, 4, 4},
     3},
};

TEST_P(ModelTest, GradientsAreCentralDifferences) {
  constexpr uint64_t kRows = 3;
  const StepContext context{.train = true, .tick = 5, .first_row = 11};
  for (const GradientCase& c : kGradientCases) {
    SCOPED_TRACE(c.name);
    TestModel m(c.layers, c.input, c.classes, device_.get(), /*seed=*/77);
    const BatchResult result = m.Step(kRows, context);
    const ReferenceModel reference{ParseModel(c.layers), c.input, 77};
    const std::vector<float> x = Pattern(1, kRows * c.input.size());
    const std::vector<int32_t> labels = PatternLabels(kRows, c.classes);
    std::vector<double> p(m.parameters.begin(), m.parameters.end());
    EXPECT_NEAR(result.loss_sum, reference.Loss(p, x, labels, context), 1e-4);
    for (const Range& tensor : m.tensors) {
      const uint64_t stride = tensor.size() / 40 + 1;  // some of each tensor
      for (uint64_t i = tensor.begin; i < tensor.end; i += stride) {
        constexpr double kEpsilon = 1e-6;
        const double value = p[i];
        p[i] = value + kEpsilon;
        const double above = reference.Loss(p, x, labels, context);
        p[i] = value - kEpsilon;
        const double below = reference.Loss(p, x, labels, context);
        p[i] = value;
        const double want = (above - below) / (2 * kEpsilon);
        ASSERT_NEAR(m.gradients[i], want, 2e-5 + 2e-5 * std::abs(want)) << "parameter " << i;
      }
    }
  }
}

TEST_P(ModelTest, GradientOfTheInputIsCentralDifferences) {
  constexpr uint64_t kRows = 3;
  const StepContext context{.train = true, .tick = 5, .first_row = 11};
  std::vector<GradientCase> cases(std::begin(kGradientCases), std::end(kGradientCases));
  // What may stand first behind an embedding and has no parameters of its own.
  cases.push_back({"relu first",
                   "layer { relu {} } layer { dropout { p: 0.3 } } layer { linear { out: 3 } }"
                   "layer { log_softmax {} }",
                   {7, 1, 1},
                   3});
  cases.push_back({"flatten first",
                   "layer { flatten {} } layer { linear { out: 4 } } layer { log_softmax {} }",
                   {6, 1, 1},
                   4});
  for (const GradientCase& c : cases) {
    SCOPED_TRACE(c.name);
    TestModel plain(c.layers, c.input, c.classes, device_.get(), /*seed=*/77);
    plain.Step(kRows, context);
    TestModel m(c.layers, c.input, c.classes, device_.get(), /*seed=*/77);
    std::vector<float> dx(kRows * c.input.size(), std::nanf(""));
    m.dx = dx.data();
    m.Step(kRows, context);
    EXPECT_EQ(m.gradients, plain.gradients);  // asking for more changes nothing else

    const ReferenceModel reference{ParseModel(c.layers), c.input, 77};
    std::vector<float> x = Pattern(1, dx.size());
    const std::vector<int32_t> labels = PatternLabels(kRows, c.classes);
    const std::vector<double> p(m.parameters.begin(), m.parameters.end());
    for (size_t i = 0; i < x.size(); i += x.size() / 60 + 1) {
      const float value = x[i];
      x[i] = value + 1e-3f;
      const double up = x[i], above = reference.Loss(p, x, labels, context);
      x[i] = value - 1e-3f;
      const double down = x[i], below = reference.Loss(p, x, labels, context);
      x[i] = value;
      ASSERT_NEAR(dx[i], (above - below) / (up - down), 2e-4) << "input " << i;
    }
  }
}

TEST_P(ModelTest, NamesShapesAndBounds) {
  TestModel m(kSmallConvNet, {2, 7, 6}, 4, device_.get());
  std::vector<std::string> stages, tensors;
  for (size_t i = 0; i < m.model->stages(); ++i) stages.push_back(m.model->stage_name(i));
  EXPECT_EQ(stages, (std::vector<std::string>{"conv1", "relu1", "conv2", "relu2", "pool1",
                                              "dropout1", "flatten1", "fc1", "relu3", "dropout2",
                                              "fc2", "log_softmax1"}));
  for (const pb::TensorSpec& tensor : m.model->tensors()) tensors.push_back(tensor.name());
  EXPECT_EQ(tensors,
            (std::vector<std::string>{"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias",
                                      "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}));
  const pb::TensorSpec& weight = m.model->tensors()[2];
  EXPECT_EQ(std::vector<uint32_t>(weight.shape().begin(), weight.shape().end()),
            (std::vector<uint32_t>{9, 5, 3, 3}));
  EXPECT_EQ(weight.init(), pb::TensorSpec::UNIFORM);
  EXPECT_FLOAT_EQ(weight.bound(), 1 / std::sqrt(45.0f));
  EXPECT_FLOAT_EQ(m.model->tensors()[3].bound(), 1 / std::sqrt(45.0f));
  EXPECT_EQ(m.model->stage_tensors(2).begin, 2u);
  EXPECT_EQ(m.model->stage_tensors(2).end, 4u);
  EXPECT_EQ(m.model->stage_tensors(1).size(), 0u);
}

TEST_P(ModelTest, FlopsCountForwardAndBackward) {
  TestModel m("layer { linear { out: 5 } } layer { linear { out: 2 } } layer { log_softmax {} }",
              {1, 1, 7}, 2, device_.get());
  // The first layer needs no gradient of its input.
  EXPECT_EQ(m.model->flops_per_sample(), 2 * 7 * 5 * 2 + 2 * 5 * 2 * 3);
}

TEST_P(ModelTest, RepeatsBitForBitWhateverCameBetween) {
  TestModel m(kSmallConvNet, {2, 7, 6}, 4, device_.get());
  const StepContext context{.tick = 3, .first_row = 8};
  const double loss = m.Step(6, context).loss_sum;
  const std::vector<float> gradients = m.gradients;
  // Other batch sizes, larger and smaller, and evaluation, on the same buffers.
  m.Step(9, {.tick = 4});
  m.Step(1, {.tick = 4});
  m.Step(13, {.train = false});
  EXPECT_EQ(m.Step(6, context).loss_sum, loss);
  EXPECT_EQ(std::memcmp(m.gradients.data(), gradients.data(), gradients.size() * sizeof(float)), 0);
  // And on a device and a model of their own.
  const std::unique_ptr<Device> other_device = MakeDevice(GetParam());
  TestModel other(kSmallConvNet, {2, 7, 6}, 4, other_device.get());
  EXPECT_EQ(other.Step(6, context).loss_sum, loss);
  EXPECT_EQ(other.gradients, gradients);
}

// Workers get parts of the global batch: their gradients must add up to the gradient of the whole,
// dropout included.
TEST_P(ModelTest, SplitBatchesAddUp) {
  TestModel m(kSmallConvNet, {2, 7, 6}, 4, device_.get());
  const BatchResult whole = m.Step(8, {.tick = 2, .first_row = 0});
  const std::vector<float> want = m.gradients;
  std::vector<double> sum(want.size());
  double loss = 0;
  uint64_t correct = 0;
  for (const uint64_t first : {0, 4}) {
    const BatchResult part = m.Step(4, {.tick = 2, .first_row = first}, first);
    loss += part.loss_sum, correct += part.correct;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += m.gradients[i];
  }
  EXPECT_NEAR(loss, whole.loss_sum, 1e-5);
  EXPECT_EQ(correct, whole.correct);
  for (size_t i = 0; i < sum.size(); ++i) ASSERT_NEAR(sum[i], want[i], 1e-5) << i;
  // Rows at another place in the global batch drop other elements.
  EXPECT_NE(m.Step(8, {.tick = 2, .first_row = 1}).loss_sum, whole.loss_sum);
  EXPECT_NE(m.Step(8, {.tick = 3, .first_row = 0}).loss_sum, whole.loss_sum);
}

TEST_P(ModelTest, EvaluationHasNoDropout) {
  TestModel m(kSmallConvNet, {2, 7, 6}, 4, device_.get());
  std::string text = kSmallConvNet;
  for (const char* p : {"p: 0.1 ", "p: 0.25 "}) text.replace(text.find(p), strlen(p), "p: 0 ");
  TestModel plain(text, {2, 7, 6}, 4, device_.get());
  EXPECT_EQ(m.Step(5, {.train = false, .tick = 1}).loss_sum, plain.Step(5).loss_sum);
}

TEST_P(ModelTest, BadLabelIsRefused) {
  TestModel m("layer { linear { out: 3 } } layer { log_softmax {} }", {1, 1, 2}, 3, device_.get());
  const float x[4] = {};
  for (const int32_t bad : {-1, 3}) {
    const int32_t labels[2] = {0, bad};
    const absl::Status status = m.model->Begin({2, x, labels}, {});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("row 1 is " + std::to_string(bad) + ", allowed is 0..2"),
              std::string::npos)
        << status;
  }
}

TEST(BackendAgreementTest, DefaultAndEigenToOnePart10000) {
  const std::unique_ptr<Device> device = MakeDevice(Backend::kDefault),
                                eigen = MakeDevice(Backend::kEigen);
  EXPECT_NE(eigen->description().find("cpu (Eigen 3."), std::string::npos) << eigen->description();
  for (const GradientCase& c : kGradientCases) {
    SCOPED_TRACE(c.name);
    TestModel a(c.layers, c.input, c.classes, device.get());
    TestModel b(c.layers, c.input, c.classes, eigen.get());
    const double loss = a.Step(7).loss_sum;
    EXPECT_NEAR(loss, b.Step(7).loss_sum, 1e-4 * loss);
    for (size_t i = 0; i < a.gradients.size(); ++i) {
      ASSERT_NEAR(a.gradients[i], b.gradients[i], 1e-5 + 1e-4 * std::abs(b.gradients[i])) << i;
    }
  }
}

TEST(CpuDeviceTest, TwoThreadsAgreeWithOne) {
  const std::unique_ptr<Device> one = MakeDevice(Backend::kDefault);
  const std::unique_ptr<Device> two = *CreateCpuDevice({.threads = 2});
  TestModel a(kSmallConvNet, {2, 7, 6}, 4, one.get());
  TestModel b(kSmallConvNet, {2, 7, 6}, 4, two.get());
  a.Step(6), b.Step(6);
  const std::vector<float> first = b.gradients;
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    ASSERT_NEAR(a.gradients[i], b.gradients[i], 1e-5) << i;
  }
  b.Step(6);
  EXPECT_EQ(b.gradients, first);
}

TEST(CpuDeviceTest, RefusesThreadsOutOfRange) {
  for (const uint32_t threads : {0u, 257u}) {
    const auto device = CreateCpuDevice({.threads = threads});
    EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(device.status().message().find("allowed is 1..256"), std::string::npos);
  }
}

struct Refusal {
  const char* layers;
  const char* message;  // a part of it
};

TEST(ModelCreateTest, RefusalsNameLayerFieldValueAndWhatIsAllowed) {
  const std::unique_ptr<Device> device = MakeDevice(Backend::kEigen);
  const Refusal refusals[] = {
      {"", "model: it has 0 layers, allowed is 1..1000"},
      {"layer { log_softmax {} }", "layer 'log_softmax1': its input is [1, 6, 5], allowed is [3]"},
      {"layer { linear { out: 3 } }", "layer 'fc1': the last layer must be log_softmax"},
      {"layer { log_softmax {} } layer { linear { out: 3 } } layer { log_softmax {} }",
       "layer 'log_softmax1': log_softmax is layer 1 of 3, allowed is only the last"},
      {"layer { linear { out: 4 } } layer { log_softmax {} }", "[4, 1, 1], allowed is [3]"},
      {"layer { linear {} } layer { log_softmax {} }",
       "layer 'fc1': linear.out is 0, allowed is 1..1048576"},
      {"layer { conv2d {} } layer { log_softmax {} }",
       "layer 'conv1': conv2d.out_channels is 0, allowed is 1..65536"},
      {"layer { conv2d { out_channels: 2 kernel: 6 } } layer { log_softmax {} }",
       "layer 'conv1': conv2d.kernel is 6, allowed is 1..5 for its input [1, 6, 5] and padding 0"},
      {"layer { conv2d { out_channels: 2 kernel: 2 padding: 4294967295 } } "
       "layer { log_softmax {} }",
       "layer 'conv1': conv2d.padding is 4294967295, allowed is 0..1"},
      {"layer { max_pool2d { kernel: 6 } } layer { log_softmax {} }",
       "layer 'pool1': max_pool2d.kernel is 6, allowed is 1..5 for its input [1, 6, 5]"},
      {"layer { max_pool2d { kernel: 0 } } layer { log_softmax {} }", "max_pool2d.kernel is 0"},
      {"layer { name: 'thin' dropout { p: 1 } } layer { log_softmax {} }",
       "layer 'thin': dropout.p is 1, allowed is 0 <= p < 1"},
      {"layer { dropout { p: nan } } layer { log_softmax {} }", "dropout.p is nan"},
      {"layer { name: 'a' } layer { log_softmax {} }",
       "layer[0] 'a': its kind is not set, allowed is one of linear"},
      {"layer { name: 'fc2' relu {} } layer { linear { out: 3 } } layer { linear { out: 3 } }"
       "layer { log_softmax {} }",
       "layer[2]: name 'fc2' is that of layer[0] already"},
      {"layer { name: 'a/b' relu {} } layer { log_softmax {} }", "layer[0]: name is 'a/b'"},
      {"layer { max_pool2d { kernel: 5 } } layer { conv2d { out_channels: 1 kernel: 1 } }"
       "layer { linear { out: 1048576 } } layer { linear { out: 1048576 } }"
       "layer { linear { out: 3 } } layer { log_softmax {} }",
       "tensor 'fc2.weight'"},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.layers);
    const auto model = Model::Create(ParseModel(refusal.layers), {1, 6, 5}, 3, 1, device.get());
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(model.status().message().find(refusal.message), std::string::npos) << model.status();
  }
}

TEST(ModelCreateTest, RefusesAModelWithoutParametersAndImpossibleData) {
  const std::unique_ptr<Device> device = MakeDevice(Backend::kEigen);
  const pb::Model bare = ParseModel("layer { log_softmax {} }");
  const auto message = [&](SampleShape shape, uint32_t classes) {
    return std::string(Model::Create(bare, shape, classes, 1, device.get()).status().message());
  };
  EXPECT_NE(message({1, 1, 3}, 3).find("no layer has parameters"), std::string::npos);
  EXPECT_NE(message({1, 0, 3}, 3).find("input shape is [1, 0, 3]"), std::string::npos);
  EXPECT_NE(message({1, 1, 1}, 1).find("the data has 1 classes"), std::string::npos);
}

}  // namespace
}  // namespace parley
