// How long a training step takes on a GPU, and how near that is to what the GPU can do.
//
//   gpu_bench [--gpu INDEX] [--math TF32|FP32|BF16|all] [--graphs] [--quick]
//   gpu_bench --device simulated --quick        no GPU: tries the program, measures nothing
//
// Prints one JSON object: rates of copies, then for each model and kind of products the time of a
// step beside its floor, with parameters in the GPU's memory and in the host's, and the share of
// the copies that is hidden behind computing; last the servers' update pass beside the speed of the
// GPU's memory. benchmarks/README.md says what each number means. A minute; --quick a few seconds.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/gpu/bench.h"
#include "benchmarks/gpu/rates.h"
#include "benchmarks/gpu/steps.h"
#include "benchmarks/gpu/updates.h"
#include "ps/config/experiment.h"
#include "ps/config/flags.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {
namespace {

constexpr uint64_t kConvNetBatch = 1024;
constexpr uint32_t kTinyExtent = 16;  // of linear layers and batches, simulated

StepCase CaseOf(const std::string& name, const std::string& path, bool simulated) {
  const pb::Experiment experiment = Check(LoadExperiment(path));
  StepCase step;
  step.name = name;
  step.model = experiment.model();
  if (experiment.data().has_synthetic()) {
    const pb::Synthetic& data = experiment.data().synthetic();
    step.input = {data.channels(), data.height(), data.width()};
    step.classes = data.classes();
  } else {
    step.input = {1, 28, 28};
  }
  step.batch = experiment.training().global_batch();
  if (!simulated) return step;
  for (pb::Layer& layer : *step.model.mutable_layer()) {
    if (layer.has_linear()) {
      layer.mutable_linear()->set_out(std::min(layer.linear().out(), kTinyExtent));
    }
  }
  if (step.input.height == 1) step.input.width = kTinyExtent;
  return step;
}

std::vector<StepCase> Cases(const std::string& folder, bool simulated) {
  StepCase mlp = CaseOf("mlp_4096", absl::StrCat(folder, "/mlp_4096.textproto"), simulated);
  // One sample: the same parameters with next to nothing to compute.
  StepCase one = mlp;
  one.batch = 1;
  StepCase convnet =
      CaseOf("convnet", absl::StrCat(folder, "/fashion_convnet.textproto"), simulated);
  convnet.batch = kConvNetBatch;
  if (simulated) mlp.batch = kTinyExtent, convnet.batch = 2;
  return {std::move(mlp), std::move(one), std::move(convnet)};
}

// A product large enough that nothing but the GPU's arithmetic counts.
double LargeProduct(Bench& bench, GemmMath math) {
  const int64_t side = bench.settings().simulated ? 64 : 8192;
  StepWork work;
  work.products.push_back({"", "forward", side, side, side, false, true});
  const ProductTimes times = MeasureProducts(bench, work, math);
  const double rate = times.flops / times.forward;
  Say(absl::StrFormat("%s: %.1f TFLOP/s at %d cubed", ToString(math), rate / 1e12, side));
  return rate;
}

std::vector<GemmMath> MathsOf(const std::string& name) {
  std::vector<GemmMath> maths;
  for (const GemmMath math : {GemmMath::kTf32, GemmMath::kFp32, GemmMath::kBf16}) {
    if (name == "all" || name == ToString(math)) maths.push_back(math);
  }
  return maths;
}

absl::StatusOr<std::unique_ptr<Gpu>> OpenGpu(bool simulated, uint32_t index) {
  if (simulated) return CreateSimulatedGpu({});
  return CreateCudaGpu(static_cast<int>(index));
}

std::string ConditionsJson(const GpuInfo& info, const BenchSettings& settings) {
  return JsonLine()
      .Text("gpu", info.name)
      .Text("compute_capability", absl::StrCat(info.major, ".", info.minor))
      .Count("gpu_memory_bytes", info.memory_bytes)
      .Flag("simulated", settings.simulated)
      .Flag("quick", settings.quick)
      .Flag("graphs", settings.graphs)
      .str();
}

int Main(int argc, char** argv) {
  std::string device = "cuda", math_name = "TF32", experiments = "experiments";
  uint32_t index = 0;
  BenchSettings settings;
  FlagSet flags("gpu_bench", "Measures training steps on a GPU beside what the GPU can do.");
  flags.Choice("device", &device, {"cuda", "simulated"}, "simulated: tiny sizes, no measurement")
      .Number("gpu", &index, 0, 1023, "which GPU of those that CUDA shows")
      .Choice("math", &math_name, {"TF32", "FP32", "BF16", "all"}, "how products are computed")
      .Text("experiments", &experiments, "DIR", "where mlp_4096 and fashion_convnet are")
      .Switch("graphs", &settings.graphs, "what is the same step for step is one CUDA graph")
      .Switch("quick", &settings.quick, "fewer repeats: does it work?");
  if (const std::optional<int> code = flags.ParseForMain(argc, argv)) return *code;

  settings.simulated = device == "simulated";
  const std::vector<StepCase> cases = Cases(experiments, settings.simulated);
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = OpenGpu(settings.simulated, index);
  if (!gpu.ok()) {
    std::fprintf(stderr, "gpu_bench: no GPU: %s; --device simulated tries the program\n",
                 std::string(gpu.status().message()).c_str());
    return 1;
  }
  Bench bench(*std::move(gpu), settings);
  Say(absl::StrCat("gpu_bench: ", ToString(bench.gpu()->info())));

  const CopyRates copies = MeasureCopies(bench);
  JsonLine large;
  std::vector<std::string> results;
  for (const GemmMath math : MathsOf(math_name)) {
    large.Number(ToString(math), LargeProduct(bench, math) / 1e12);
    for (const StepCase& step : cases) results.push_back(MeasureStep(bench, step, math, copies));
  }
  const std::string updates = MeasureUpdates(bench, copies);
  std::puts(JsonLine()
                .Text("benchmark", "gpu_step")
                .Flag("simulated", settings.simulated)
                .Raw("conditions", ConditionsJson(bench.gpu()->info(), settings))
                .Raw("copies", copies.Json())
                .Raw("large_product_tflop_per_s", large.str())
                .Raw("cases", ListJson(results))
                .Raw("updates", updates)
                .Indented()
                .c_str());
  return 0;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
