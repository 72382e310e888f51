// How close is the fused reduce-and-update pass to the speed of memory?
//
// For each rule, number of gradients W, size and instruction set: ns per element, GB/s of memory
// read and written, and the ratio of that to the limit measured just before it, a loop w += g
// (two reads and a write of each element) over the same number of bytes. Ratios, not absolute
// values, compare between machines. At 1 MiB the limit's two arrays fit the second-level cache and
// those of a rule with slots may not; at 64 MiB both run from memory. One thread. Prints one JSON
// object; about ten seconds.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "google/protobuf/text_format.h"
#include "ps/base/buffer.h"
#include "ps/table/optimizer.h"

namespace parley {
namespace {

constexpr double kSecondsPerPoint = 0.07;
constexpr int kMaxGradients = 4;

struct Arrays {
  explicit Arrays(uint64_t n) : n(n) {
    for (int a = 0; a < 1 + Optimizer::kMaxSlots + kMaxGradients; ++a) {
      buffers.push_back(Buffer::Allocate(n * sizeof(float)));
      // Around 0.01, so that neither overflow nor denormals slow anything down.
      for (uint64_t i = 0; i < n; ++i) {
        buffers.back().mutable_floats()[i] = 0.01f + 1e-5f * static_cast<float>(i % 97);
      }
    }
  }
  float* weights() { return buffers[0].mutable_floats(); }
  float* slot(int s) { return buffers[1 + s].mutable_floats(); }
  float* gradient(int w) { return buffers[1 + Optimizer::kMaxSlots + w].mutable_floats(); }

  uint64_t n;
  std::vector<Buffer> buffers;
};

// Seconds of one call, the best of as many as fit: the machine is shared, and its noise only adds.
template <typename Call>
double BestSeconds(Call call) {
  using Clock = std::chrono::steady_clock;
  call();
  double best = 1e9, total = 0;
  for (int i = 0; i < 3 || total < kSecondsPerPoint; ++i) {
    const auto start = Clock::now();
    call();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

void Accumulate(uint64_t n, float* __restrict w, const float* __restrict g) {
  for (uint64_t i = 0; i < n; ++i) w[i] += g[i];
  asm volatile("" : : "r"(w) : "memory");  // the result is used
}

struct Point {
  const char* rule;
  const char* config;
};

void PrintPoint(const Point& point, int count, Arrays& arrays, bool* first) {
  pb::Optimizer config;
  google::protobuf::TextFormat::ParseFromString(point.config, &config);
  const auto optimizer = Optimizer::Create(config);
  if (!optimizer.ok()) return;
  const uint64_t n = arrays.n, bytes = n * sizeof(float);
  std::vector<const float*> gradients;
  std::vector<float*> slots;
  for (int w = 0; w < count; ++w) gradients.push_back(arrays.gradient(w));
  for (int s = 0; s < (*optimizer)->slots(); ++s) slots.push_back(arrays.slot(s));
  // Weights and slots are read and written, gradients read.
  const double moved = static_cast<double>(bytes) * (2 + 2 * slots.size() + count);
  const double limit_seconds =
      BestSeconds([&] { Accumulate(n, arrays.weights(), arrays.gradient(0)); });
  const double limit = 3.0 * static_cast<double>(bytes) / limit_seconds;

  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceOptimizerKernelIsa(isa)) continue;
    StepInfo info;
    info.inverse_weight = 1.0 / 128;
    const double seconds = BestSeconds([&] {
      (*optimizer)->Apply(n, arrays.weights(), arrays.weights(), slots.data(), gradients, info);
      ++info.update;
    });
    std::printf(
        "%s\n    {\"rule\": \"%s\", \"gradients\": %d, \"bytes\": %llu, \"isa\": \"%s\", "
        "\"ns_per_element\": %.4f, \"gb_per_s\": %.2f, \"limit_gb_per_s\": %.2f, "
        "\"ratio_to_limit\": %.3f}",
        *first ? "" : ",", point.rule, count, static_cast<unsigned long long>(bytes), isa,
        seconds / static_cast<double>(n) * 1e9, moved / seconds * 1e-9, limit * 1e-9,
        moved / seconds / limit);
    *first = false;
  }
  ForceOptimizerKernelIsa("");
}

void Run() {
  const Point points[] = {{"sgd", "lr: 1e-6 sgd {}"},
                          {"adadelta", "lr: 1e-6 adadelta {}"},
                          {"adam", "lr: 1e-6 adam {}"}};
  std::printf("{\n  \"benchmark\": \"optimizer\",\n  \"default_isa\": \"%s\",\n  \"points\": [",
              OptimizerKernelIsa());
  bool first = true;
  for (const uint64_t bytes : {uint64_t{1} << 20, uint64_t{64} << 20}) {
    Arrays arrays(bytes /
                  sizeof(float));  // once a size: filling fresh pages takes longer than measuring
    for (const Point& point : points) {
      for (const int count : {1, 2, kMaxGradients}) PrintPoint(point, count, arrays, &first);
    }
  }
  std::printf("\n  ]\n}\n");
}

}  // namespace
}  // namespace parley

int main() { parley::Run(); }
