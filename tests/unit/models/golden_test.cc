// Layers and models against what PyTorch computes in float64; see tests/golden/make_layers.py.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/unit/models/model_fixture.h"

namespace parley {
namespace {

struct GoldenTensor {
  std::string name;
  size_t size = 0, stride = 1;
  double sum = 0, abs_sum = 0;
  std::vector<double> values;
};

struct GoldenCase {
  bool is_model = false;
  std::string name, layers;
  std::map<std::string, uint32_t> keys;
  double loss = 0;
  uint64_t correct = 0;
  std::vector<GoldenTensor> tensors;

  SampleShape input() const { return {keys.at("c"), keys.at("h"), keys.at("w")}; }
  uint32_t rows() const { return keys.at("rows"); }
  uint32_t key(const std::string& name) const { return keys.at(name); }
};

GoldenTensor ReadTensor(std::istream& in) {
  GoldenTensor t;
  in >> t.name >> t.size >> t.stride >> t.sum >> t.abs_sum;
  for (double value; in >> value;) t.values.push_back(value);
  return t;
}

std::vector<GoldenCase> ReadGolden() {
  std::ifstream file("tests/golden/layers.txt");
  std::vector<GoldenCase> cases;
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    std::string what;
    in >> what;
    if (what == "op" || what == "model") {
      GoldenCase& c = cases.emplace_back();
      c.is_model = what == "model";
      in >> c.name;
      for (std::string item; in >> item;) {
        const size_t equals = item.find('=');
        c.keys[item.substr(0, equals)] = std::stoul(item.substr(equals + 1));
      }
    } else if (what == "layers") {
      std::getline(in, cases.back().layers);
    } else if (what == "loss") {
      std::string word;
      in >> cases.back().loss >> word >> cases.back().correct;
    } else {
      cases.back().tensors.push_back(ReadTensor(in));
    }
  }
  return cases;
}

// Elements to 1e-5 of the tensor's mean size, sums to 1e-5 of the sum of absolute values.
void ExpectTensor(const GoldenTensor& want, const float* got, size_t size) {
  ASSERT_EQ(size, want.size) << want.name;
  double sum = 0, abs_sum = 0;
  for (size_t i = 0; i < size; ++i) sum += got[i], abs_sum += std::abs(got[i]);
  EXPECT_NEAR(sum, want.sum, 1e-5 * want.abs_sum) << want.name;
  EXPECT_NEAR(abs_sum, want.abs_sum, 1e-5 * want.abs_sum) << want.name;
  const double mean = want.abs_sum / static_cast<double>(size);
  for (size_t i = 0; i < want.values.size(); ++i) {
    ASSERT_NEAR(got[i * want.stride], want.values[i], 1e-5 * (mean + std::abs(want.values[i])))
        << want.name << " element " << i * want.stride;
  }
}

using GoldenTest = BackendTest;
INSTANTIATE_TEST_SUITE_P(Backends, GoldenTest, AllBackends(), BackendName);

TEST_P(GoldenTest, ModelsAgreeWithPyTorch) {
  int models = 0;
  for (const GoldenCase& c : ReadGolden()) {
    if (!c.is_model) continue;
    SCOPED_TRACE(c.name);
    ++models;
    TestModel m(c.layers, c.input(), c.key("classes"), device_.get());
    const BatchResult result = m.Step(c.rows());
    EXPECT_NEAR(result.loss_sum, c.loss, 1e-5 * c.loss);
    EXPECT_EQ(result.correct, c.correct);
    ASSERT_EQ(m.tensors.size(), c.tensors.size());
    for (size_t i = 0; i < m.tensors.size(); ++i) {
      EXPECT_EQ(m.model->tensors()[i].name(), c.tensors[i].name);
      ExpectTensor(c.tensors[i], m.gradients.data() + m.tensors[i].begin, m.tensors[i].size());
    }
  }
  EXPECT_EQ(models, 6);
}

// One operation through the Device's own interface.
class Operation {
 public:
  Operation(Device& device, const GoldenCase& c) : device_(device), case_(c) {
    for (auto* tensor : {&x_, &y_, &dy_, &dx_}) *tensor = device.NewTensor();
    argmax_ = device.NewWorkspace();
    input_ = Pattern(1, c.rows() * c.input().size(), c.name == "log_softmax" ? 4 : 1);
    device.Upload(input_.data(), c.input(), c.rows(), x_.get());
    EXPECT_TRUE(device.Prepare(dx_.get(), c.input(), c.rows()).ok());
  }

  void SetOutput(SampleShape out) {
    EXPECT_TRUE(device_.Prepare(y_.get(), out, case_.rows()).ok());
    output_gradient_ = Pattern(2, case_.rows() * out.size());
    device_.Upload(output_gradient_.data(), out, case_.rows(), dy_.get());
  }

  void Run() {
    const SampleShape in = case_.input();
    if (case_.name == "linear") {
      SetOutput({case_.key("out"), 1, 1});
      MakeParameters(case_.key("out"), in.size());
      device_.LinearForward(x_.get(), weight_.loaded, bias_.loaded, false, y_.get());
      device_.LinearBackwardWeights(x_.get(), dy_.get(), weight_.made, bias_.made);
      device_.LinearBackwardData(dy_.get(), weight_.loaded, dx_.get());
      StoreGradients();
    } else if (case_.name == "conv2d") {
      const Conv2dGeometry g{case_.key("kernel"), case_.key("padding")};
      const uint32_t grow = 2 * g.padding + 1 - g.kernel;
      SetOutput({case_.key("out"), in.height + grow, in.width + grow});
      MakeParameters(case_.key("out"), uint64_t{in.channels} * g.kernel * g.kernel);
      device_.Conv2dForward(x_.get(), g, weight_.loaded, bias_.loaded, false, y_.get());
      device_.Conv2dBackwardWeights(x_.get(), dy_.get(), g, weight_.made, bias_.made);
      device_.Conv2dBackwardData(dy_.get(), g, weight_.loaded, dx_.get());
      StoreGradients();
    } else if (case_.name == "max_pool2d") {
      const uint32_t kernel = case_.key("kernel");
      SetOutput({in.channels, in.height / kernel, in.width / kernel});
      device_.MaxPoolForward(x_.get(), kernel, false, y_.get(), argmax_.get());
      device_.MaxPoolBackward(dy_.get(), kernel, argmax_.get(), dx_.get());
    } else if (case_.name == "relu") {
      SetOutput(in);
      device_.ReluForward(x_.get(), y_.get());
      device_.ReluBackward(y_.get(), dy_.get(), dx_.get());
    } else {
      ASSERT_EQ(case_.name, "log_softmax");
      SetOutput(in);
      const std::vector<int32_t> labels = PatternLabels(case_.rows(), in.channels);
      const std::unique_ptr<Workspace> memory = device_.NewWorkspace();
      const int32_t* loaded = device_.LoadLabels(labels.data(), case_.rows(), memory.get());
      device_.LogSoftmaxForward(x_.get(), y_.get());
      device_.NllLogSoftmaxBackward(y_.get(), loaded, dx_.get());
      ASSERT_TRUE(device_.Sync().ok());  // before they go
    }
    ASSERT_TRUE(device_.Sync().ok());
  }

  void Check(const GoldenTensor& want) {
    for (const Parameters* of : {&weight_, &bias_}) {
      if (want.name != of->gradient_name) continue;
      return ExpectTensor(want, of->gradient.data(), of->gradient.size());
    }
    Tensor* tensor = want.name == "y" ? y_.get() : dx_.get();
    std::vector<float> plain(tensor->elements());
    device_.Download(tensor, plain.data());
    ASSERT_TRUE(device_.Sync().ok());
    ExpectTensor(want, plain.data(), plain.size());
  }

 private:
  struct Parameters {
    const char* gradient_name;
    std::vector<float> values = {}, gradient = {};
    std::unique_ptr<Workspace> memory = nullptr, gradient_memory = nullptr;
    const float* loaded = nullptr;
    float* made = nullptr;
  };
  void Make(uint32_t stream, uint64_t n, Parameters* p) {
    p->values = Pattern(stream, n, 0.5);
    p->gradient.assign(n, std::nanf(""));
    p->memory = device_.NewWorkspace(), p->gradient_memory = device_.NewWorkspace();
    p->loaded = device_.LoadParameters(p->values.data(), MemoryKind::kHost, n, p->memory.get());
    p->made = device_.PrepareGradients(p->gradient.data(), MemoryKind::kHost, n,
                                       p->gradient_memory.get());
  }
  void MakeParameters(uint64_t out, uint64_t in) {
    Make(10, out * in, &weight_);
    Make(11, out, &bias_);
  }
  void StoreGradients() {
    for (Parameters* p : {&weight_, &bias_}) {
      device_.StoreGradients(p->made, MemoryKind::kHost, p->gradient.size(), p->gradient.data());
    }
  }

  Device& device_;
  const GoldenCase& case_;
  std::vector<float> input_, output_gradient_;
  Parameters weight_{"dweight"}, bias_{"dbias"};
  std::unique_ptr<Workspace> argmax_;
  std::unique_ptr<Tensor> x_, y_, dy_, dx_;
};

TEST_P(GoldenTest, OperationsAgreeWithPyTorch) {
  int operations = 0;
  for (const GoldenCase& c : ReadGolden()) {
    if (c.is_model) continue;
    SCOPED_TRACE(c.name + " " + ToString(c.input()));
    ++operations;
    Operation operation(*device_, c);
    operation.Run();
    for (const GoldenTensor& tensor : c.tensors) operation.Check(tensor);
  }
  EXPECT_EQ(operations, 13);
}

}  // namespace
}  // namespace parley
