#include "benchmarks/gpu/updates.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "google/protobuf/text_format.h"
#include "proto/experiment.pb.h"
#include "ps/table/gpu_optimizer.h"
#include "ps/table/optimizer.h"

namespace parley {
namespace {

struct Rule {
  const char* name;
  const char* config;
};
constexpr Rule kRules[] = {{"sgd", "lr: 1e-6 sgd {}"},
                           {"momentum", "lr: 1e-6 sgd { momentum: 0.9 }"},
                           {"adadelta", "lr: 1e-6 adadelta {}"},
                           {"adam", "lr: 1e-6 adam {}"}};
constexpr int kMaxGradients = 4;

// Weights, slots and gradients of one size, in the GPU's memory.
class Arrays {
 public:
  Arrays(Bench& bench, uint64_t n) : n_(n), memory_(1 + Optimizer::kMaxSlots + kMaxGradients) {
    for (DeviceMemory& memory : memory_) {
      Check(memory.Reserve(bench.gpu().get(), n * sizeof(float)));
      bench.FillRandom(memory.data(), n * sizeof(float), 0.01f);
    }
    // Averages of squares are not below 0, and their roots are taken.
    for (int slot = 0; slot < Optimizer::kMaxSlots; ++slot) {
      Check(EnqueueFill(n, 0.01f, memory_[1 + slot].floats(), &bench.stream()));
    }
    bench.Sync();
  }

  std::string Measure(Bench& bench, const Rule& rule, int count, double limit) {
    pb::Optimizer config;
    if (!google::protobuf::TextFormat::ParseFromString(rule.config, &config)) {
      Check(absl::InternalError(rule.config));
    }
    const std::unique_ptr<Optimizer> optimizer = Check(Optimizer::Create(config));
    float* slots[Optimizer::kMaxSlots] = {};
    for (int slot = 0; slot < optimizer->slots(); ++slot) slots[slot] = memory_[1 + slot].floats();
    std::vector<const float*> gradients;
    for (int g = 0; g < count; ++g) {
      gradients.push_back(memory_[1 + Optimizer::kMaxSlots + g].floats());
    }
    StepInfo info;
    info.inverse_weight = 1.0 / 128;
    const Timing timing = bench.TimeEnqueued([&] {
      float* weights = memory_[0].floats();
      Check(EnqueueApply(*optimizer, n_, weights, weights, slots, gradients, info, nullptr,
                         &bench.stream()));
      ++info.update;
    });
    // Weights and slots are read and written, gradients read.
    const double moved =
        static_cast<double>(n_) * sizeof(float) * (2 + 2 * optimizer->slots() + count);
    const double rate = moved / timing.median;
    Say(absl::StrFormat("update: %s, %d gradients, %d weights: %.0f GB/s, %.2f of a copy's",
                        rule.name, count, n_, rate / 1e9, rate / limit));
    return JsonLine()
        .Text("rule", rule.name)
        .Count("gradients", static_cast<uint64_t>(count))
        .Count("weights", n_)
        .Number("ms", timing.median * 1e3)
        .Number("gb_per_s", rate / 1e9)
        .Number("limit_gb_per_s", limit / 1e9)
        .Number("ratio_to_limit", rate / limit)
        .str();
  }

 private:
  const uint64_t n_;
  std::vector<DeviceMemory> memory_;
};

}  // namespace

std::string MeasureUpdates(Bench& bench, const CopyRates& rates) {
  // A partition of 64 MiB, and four of them.
  std::vector<uint64_t> sizes = {uint64_t{1} << 24, uint64_t{1} << 26};
  if (bench.settings().simulated) sizes = {4096};
  std::vector<std::string> items;
  for (const uint64_t n : sizes) {
    Arrays arrays(bench, n);
    for (const Rule& rule : kRules) {
      for (const int count : {1, 2, kMaxGradients}) {
        items.push_back(arrays.Measure(bench, rule, count, 2 * rates.within));
      }
    }
  }
  return ListJson(items);
}

}  // namespace parley
