// How long a training step of the example models takes on the CPU device, and how near that is to
// what the machine can do.
//
//   model_bench [--threads=N] [--eigen]
//
// Prints one JSON object: the sgemm rate of a 1024 cube, then for each model and batch the
// milliseconds of a step (forward and backward, no optimizer), its GFLOP/s and the ratio of that to
// the sgemm rate. The rate is taken before every case, so that a ratio compares neighbours in time
// on a noisy machine; each number is the median of several repeats. About ten seconds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "models/cpu/cpu_device.h"
#include "models/model.h"
#include "ps/base/philox.h"

namespace parley {
namespace {

constexpr double kSecondsPerCase = 0.8;
constexpr int kMinRepeats = 5;

double Seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Median seconds of one call, after one call to warm up.
template <typename Work>
double MedianSeconds(double budget, Work work) {
  work();
  std::vector<double> samples;
  for (const double start = Seconds();
       static_cast<int>(samples.size()) < kMinRepeats || Seconds() - start < budget;) {
    const double before = Seconds();
    work();
    samples.push_back(Seconds() - before);
  }
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

std::vector<float> Uniforms(uint64_t stream, size_t count, float bound) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = (2 * UniformAt(1, stream, i) - 1) * bound;
  return values;
}

// 2 n^3 operations through the device's own linear layer, so that the same library is measured.
double SgemmGflops(Device& device) {
  constexpr uint32_t kSide = 1024;
  const std::vector<float> a = Uniforms(1, kSide * kSide, 1), w = Uniforms(2, kSide * kSide, 1);
  const std::vector<float> bias(kSide);
  const std::unique_ptr<Tensor> x = device.NewTensor(), y = device.NewTensor();
  device.Upload(a.data(), {kSide, 1, 1}, kSide, x.get());
  if (!device.Prepare(y.get(), {kSide, 1, 1}, kSide).ok()) std::exit(1);
  const double seconds = MedianSeconds(0.2, [&] {
    device.LinearForward(x.get(), w.data(), bias.data(), false, y.get());
    if (!device.Sync().ok()) std::exit(1);
  });
  return 2.0 * kSide * kSide * kSide / seconds / 1e9;
}

pb::Model Softmax() {
  pb::Model model;
  model.add_layer()->mutable_flatten();
  model.add_layer()->mutable_linear()->set_out(10);
  model.add_layer()->mutable_log_softmax();
  return model;
}

pb::Model Mlp() {
  pb::Model model;
  model.add_layer()->mutable_flatten();
  for (const uint32_t out : {256, 128}) {
    model.add_layer()->mutable_linear()->set_out(out);
    model.add_layer()->mutable_relu();
  }
  model.add_layer()->mutable_linear()->set_out(10);
  model.add_layer()->mutable_log_softmax();
  return model;
}

pb::Model ConvNet() {
  pb::Model model;
  for (const uint32_t channels : {16, 32}) {
    model.add_layer()->mutable_conv2d()->set_out_channels(channels);
    model.add_layer()->mutable_relu();
  }
  model.add_layer()->mutable_max_pool2d();
  model.add_layer()->mutable_dropout()->set_p(0.10f);
  model.add_layer()->mutable_flatten();
  model.add_layer()->mutable_linear()->set_out(64);
  model.add_layer()->mutable_relu();
  model.add_layer()->mutable_dropout()->set_p(0.25f);
  model.add_layer()->mutable_linear()->set_out(10);
  model.add_layer()->mutable_log_softmax();
  return model;
}

// A model bound to random parameters and one batch.
class Step {
 public:
  Step(const pb::Model& config, uint64_t rows, Device& device) : rows_(rows) {
    model_ = *Model::Create(config, {1, 28, 28}, 10, 1, &device);
    size_t elements = 0;
    for (const pb::TensorSpec& tensor : model_->tensors()) {
      size_t size = 1;
      for (const uint32_t extent : tensor.shape()) size *= extent;
      elements += size;
    }
    parameters_ = Uniforms(3, elements, 0.05f);
    gradients_.resize(elements);
    x_ = Uniforms(4, rows * 784, 1);
    for (uint64_t r = 0; r < rows; ++r) labels_.push_back(static_cast<int32_t>(r % 10));
    model_->BindParameters(parameters_.data());
    model_->BindGradients(gradients_.data());
  }

  void Run() {
    absl::Status status = model_->Begin({rows_, x_.data(), labels_.data()}, {true, tick_++, 0});
    for (size_t i = 0; i < model_->stages() && status.ok(); ++i) status = model_->Forward(i);
    for (size_t i = model_->stages(); i-- > 0 && status.ok();) status = model_->Backward(i);
    if (status.ok()) status = model_->AwaitGradients(0);
    if (!status.ok()) {
      std::fprintf(stderr, "model_bench: %s\n", status.ToString().c_str());
      std::exit(1);
    }
  }

  // One step with the time of each stage, for a look at where it goes.
  std::string StageTimes() {
    std::vector<double> forward(model_->stages()), backward(model_->stages());
    constexpr int kRepeats = 10;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      if (!model_->Begin({rows_, x_.data(), labels_.data()}, {true, tick_++, 0}).ok()) return "";
      double before = Seconds();
      const auto lap = [&] {
        const double now = Seconds();
        return now - std::exchange(before, now);
      };
      for (size_t i = 0; i < forward.size(); ++i) {
        if (!model_->Forward(i).ok()) return "";
        forward[i] += lap();
      }
      for (size_t i = forward.size(); i-- > 0;) {
        if (!model_->Backward(i).ok()) return "";
        backward[i] += lap();
      }
    }
    std::string out;
    for (size_t i = 0; i < forward.size(); ++i) {
      absl::StrAppendFormat(&out, "%s\"%s\": [%.3f, %.3f]", i > 0 ? ", " : "",
                            model_->stage_name(i), forward[i] * 1e3 / kRepeats,
                            backward[i] * 1e3 / kRepeats);
    }
    return out;
  }

  double flops() const { return model_->flops_per_sample() * rows_; }

 private:
  const uint64_t rows_;
  std::unique_ptr<Model> model_;
  std::vector<float> parameters_, gradients_, x_;
  std::vector<int32_t> labels_;
  uint64_t tick_ = 0;
};

void RunCase(const char* name, const pb::Model& config, uint64_t rows, Device& device, bool last) {
  const double sgemm = SgemmGflops(device);
  Step step(config, rows, device);
  const double seconds = MedianSeconds(kSecondsPerCase, [&] { step.Run(); });
  const double gflops = step.flops() / seconds / 1e9;
  std::printf(
      "    {\"model\": \"%s\", \"batch\": %d, \"ms_per_step\": %.3f, \"gflops\": %.1f, "
      "\"sgemm_gflops\": %.1f, \"ratio_to_sgemm\": %.3f,\n     \"stage_ms_forward_backward\": "
      "{%s}}%s\n",
      name, static_cast<int>(rows), seconds * 1e3, gflops, sgemm, gflops / sgemm,
      step.StageTimes().c_str(), last ? "" : ",");
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  CpuDeviceOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--eigen") {
      options.use_onednn = false;
    } else if (!absl::StartsWith(flag, "--threads=") ||
               !absl::SimpleAtoi(flag.substr(10), &options.threads)) {
      std::fprintf(stderr, "model_bench: '%s': allowed are --threads=N and --eigen\n", argv[i]);
      return 2;
    }
  }
  const absl::StatusOr<std::unique_ptr<Device>> device = CreateCpuDevice(options);
  if (!device.ok()) {
    std::fprintf(stderr, "model_bench: %s\n", device.status().ToString().c_str());
    return 2;
  }
  std::printf("{\"benchmark\": \"model\", \"device\": \"%s\",\n  \"cases\": [\n",
              (*device)->description().c_str());
  RunCase("convnet", ConvNet(), 128, **device, false);
  RunCase("convnet", ConvNet(), 64, **device, false);
  RunCase("mlp", Mlp(), 128, **device, false);
  RunCase("mlp", Mlp(), 64, **device, false);
  RunCase("softmax", Softmax(), 64, **device, true);
  std::printf("  ]}\n");
  return 0;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
