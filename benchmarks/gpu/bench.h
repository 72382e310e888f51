// What the parts of gpu_bench share: the GPU, how long to measure, how to time what is enqueued.
//
// A failure ends the program with one line. Thread-safety: none.
#ifndef PARLEY_BENCHMARKS_GPU_BENCH_H_
#define PARLEY_BENCHMARKS_GPU_BENCH_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ps/gpu/gpu.h"
#include "ps/gpu/gpu_memory.h"
#include "scheduler/report/json_line.h"

namespace parley {

// Ends the program unless OK.
void Check(const absl::Status& status);
template <typename Value>
Value Check(absl::StatusOr<Value> value) {
  Check(value.status());
  return *std::move(value);
}

// A line of progress for people, on stderr.
void Say(const std::string& line);

double Seconds();  // monotonic

// Seconds of one call, over several repeats.
struct Timing {
  double median = 0, min = 0;
  int repeats = 0;
};

struct BenchSettings {
  bool simulated = false;
  bool quick = false;
  bool graphs = false;  // GpuDeviceOptions
};

class Bench {
 public:
  Bench(std::shared_ptr<Gpu> gpu, const BenchSettings& settings);

  const std::shared_ptr<Gpu>& gpu() { return gpu_; }
  const BenchSettings& settings() const { return settings_; }
  // Where what is timed is enqueued. The second is for what goes on beside it.
  GpuStream& stream() { return *stream_; }
  GpuStream& other_stream() { return *other_stream_; }
  void Sync();  // both

  // Seconds that `enqueue` takes on the GPU: as many calls as take some milliseconds are enqueued
  // and then waited for, so that neither launches nor the wait count.
  Timing TimeEnqueued(const std::function<void()>& enqueue);
  // Seconds of `work`, which waits for what it does.
  Timing TimeCalls(const std::function<void()>& work) { return Repeat(work, 1); }

  // Floats uniform in [-bound, bound): products of zeros would draw less power and run faster.
  void FillRandom(void* device, size_t bytes, float bound);
  // The same as bfloat16.
  void FillRandomHalves(void* device, size_t bytes, float bound);

 private:
  Timing Repeat(const std::function<void()>& work, int calls_a_repeat);
  void FillWith(const void* block, size_t block_bytes, void* device, size_t bytes);

  const std::shared_ptr<Gpu> gpu_;
  const BenchSettings settings_;
  std::unique_ptr<GpuStream> stream_, other_stream_;
};

// Random floats as FillRandom's, a block of some length over and over.
void FillRandomHost(float* to, size_t count, float bound);

// {"median_ms": 1.234, "min_ms": 1.2, "repeats": 20}.
std::string TimingJson(const Timing& timing);

std::string ListJson(const std::vector<std::string>& items);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_GPU_BENCH_H_
