#include "benchmarks/gpu/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/base/philox.h"

namespace parley {
namespace {

constexpr size_t kBlockFloats = size_t{1} << 20;

std::vector<float> RandomBlock(size_t count, float bound) {
  std::vector<float> block(std::min(count, kBlockFloats));
  for (size_t i = 0; i < block.size(); ++i) block[i] = (2 * UniformAt(1, 1, i) - 1) * bound;
  return block;
}

}  // namespace

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "gpu_bench: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}

void Say(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

double Seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

Bench::Bench(std::shared_ptr<Gpu> gpu, const BenchSettings& settings)
    : gpu_(std::move(gpu)),
      settings_(settings),
      stream_(Check(gpu_->NewStream())),
      other_stream_(Check(gpu_->NewStream())) {}

void Bench::Sync() {
  Check(stream_->Sync());
  Check(other_stream_->Sync());
}

Timing Bench::Repeat(const std::function<void()>& work, int calls_a_repeat) {
  const int min_repeats = settings_.simulated ? 2 : settings_.quick ? 5 : 15;
  const double budget = settings_.simulated ? 0 : settings_.quick ? 0.1 : 0.8;
  for (int i = 0; i < (settings_.simulated ? 1 : 3); ++i) work();
  std::vector<double> samples;
  for (const double start = Seconds();
       static_cast<int>(samples.size()) < min_repeats || Seconds() - start < budget;) {
    const double before = Seconds();
    work();
    samples.push_back((Seconds() - before) / calls_a_repeat);
  }
  std::sort(samples.begin(), samples.end());
  return {.median = samples[samples.size() / 2],
          .min = samples.front(),
          .repeats = static_cast<int>(samples.size())};
}

Timing Bench::TimeEnqueued(const std::function<void()>& enqueue) {
  constexpr double kSecondsARepeat = 0.02;
  const auto calls = [&](int count) {
    for (int i = 0; i < count; ++i) enqueue();
    Sync();
  };
  calls(1);
  int count = 1;
  if (!settings_.simulated) {
    const double before = Seconds();
    calls(3);
    const double one = (Seconds() - before) / 3;
    count = static_cast<int>(std::clamp(kSecondsARepeat / one, 1.0, 1000.0));
  }
  return Repeat([&] { calls(count); }, count);
}

void Bench::FillRandom(void* device, size_t bytes, float bound) {
  const std::vector<float> block = RandomBlock(bytes / sizeof(float), bound);
  FillWith(block.data(), block.size() * sizeof(float), device, bytes);
}

void Bench::FillRandomHalves(void* device, size_t bytes, float bound) {
  const std::vector<float> floats = RandomBlock(bytes / sizeof(uint16_t), bound);
  std::vector<uint16_t> block(floats.size());
  for (size_t i = 0; i < block.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &floats[i], sizeof(bits));
    block[i] = static_cast<uint16_t>(bits >> 16);
  }
  FillWith(block.data(), block.size() * sizeof(uint16_t), device, bytes);
}

void Bench::FillWith(const void* block, size_t block_bytes, void* device, size_t bytes) {
  auto* to = static_cast<uint8_t*>(device);
  Check(stream_->CopyIn(to, block, std::min(bytes, block_bytes)));
  for (size_t done = block_bytes; done < bytes; done += block_bytes) {
    Check(stream_->CopyWithin(to + done, to, std::min(block_bytes, bytes - done)));
  }
  Check(stream_->Sync());
}

void FillRandomHost(float* to, size_t count, float bound) {
  const std::vector<float> block = RandomBlock(count, bound);
  for (size_t done = 0; done < count; done += block.size()) {
    std::copy_n(block.begin(), std::min(block.size(), count - done), to + done);
  }
}

std::string TimingJson(const Timing& timing) {
  return JsonLine()
      .Number("median_ms", timing.median * 1e3)
      .Number("min_ms", timing.min * 1e3)
      .Count("repeats", static_cast<uint64_t>(timing.repeats))
      .str();
}

std::string ListJson(const std::vector<std::string>& items) {
  return absl::StrCat("[\n    ", absl::StrJoin(items, ",\n    "), "]");
}

}  // namespace parley
