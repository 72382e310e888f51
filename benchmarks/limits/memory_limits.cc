#include <sys/mman.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "benchmarks/limits/limits.h"
#include "benchmarks/limits/stopwatch.h"

namespace parley {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Touched memory, in huge pages where the system gives them: the limit must not lose time to the
// page tables that what is compared may have avoided.
class Floats {
 public:
  explicit Floats(size_t bytes) : count_(bytes / sizeof(float)) {
    const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    memory_.reset(static_cast<float*>(std::aligned_alloc(kHugePage, rounded)));
    madvise(memory_.get(), rounded, MADV_HUGEPAGE);
    for (size_t i = 0; i < count_; ++i) memory_.get()[i] = 1e-3f;
  }
  float* data() { return memory_.get(); }
  size_t count() const { return count_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  size_t count_;
};

// The same loop for each instruction set; the compiler vectorises it, and memory is what it waits
// for.
__attribute__((target("avx512f,prefer-vector-width=512"))) void Add512(float* w, const float* g,
                                                                       size_t n) {
  for (size_t i = 0; i < n; ++i) w[i] += g[i];
}
__attribute__((target("avx2"))) void Add256(float* w, const float* g, size_t n) {
  for (size_t i = 0; i < n; ++i) w[i] += g[i];
}
void Add(float* w, const float* g, size_t n) {
  if (__builtin_cpu_supports("avx512f")) {
    Add512(w, g, n);
  } else {
    Add256(w, g, n);
  }
}

// Runs pass(thread) over and over on `threads` threads, all from the same moment; returns how often
// a second, added up over the threads.
template <typename Pass>
double PassesPerSecond(int threads, double seconds, Pass pass) {
  std::barrier start(threads);
  std::vector<double> rate(threads);
  const auto run = [&](int thread) {
    pass(thread);  // warms caches and page tables
    start.arrive_and_wait();
    const Stopwatch watch;
    uint64_t passes = 0;
    while (watch.Seconds() < seconds) pass(thread), ++passes;
    rate[thread] = static_cast<double>(passes) / watch.Seconds();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double one : rate) sum += one;
  return sum / threads;  // each thread passes over its own share
}

}  // namespace

std::string SizeName(size_t bytes) {
  constexpr size_t kKiB = 1024, kMiB = kKiB * kKiB;
  if (bytes % kMiB == 0) return absl::StrCat(bytes / kMiB, "MiB");
  return bytes % kKiB == 0 ? absl::StrCat(bytes / kKiB, "KiB") : absl::StrCat(bytes, "B");
}

Series MeasureMemcpy(const std::string& name, size_t bytes, int threads, LimitOptions options) {
  Floats from(bytes), to(bytes);
  const size_t share = bytes / threads;
  Series series{name, "GB/s", {}};
  for (uint32_t round = 0; round < options.rounds; ++round) {
    const double passes = PassesPerSecond(threads, options.seconds, [&](int thread) {
      std::memcpy(reinterpret_cast<char*>(to.data()) + share * thread,
                  reinterpret_cast<const char*>(from.data()) + share * thread, share);
    });
    series.values.push_back(passes * static_cast<double>(bytes) * 1e-9);
  }
  return series;
}

Series MeasureTwoPass(const std::string& name, size_t bytes, int sets, int threads,
                      LimitOptions options) {
  std::vector<Floats> g, w, out;
  for (int i = 0; i < sets; ++i) {
    for (std::vector<Floats>* part : {&g, &w, &out}) part->emplace_back(bytes);
  }
  const size_t share = g[0].count() / threads;
  Series series{name, "GB/s", {}};
  for (uint32_t round = 0; round < options.rounds; ++round) {
    // A pass takes all vectors, so that the loop's own cost is nothing beside it.
    const double passes = PassesPerSecond(threads, options.seconds, [&](int thread) {
      const size_t begin = share * thread;
      for (int i = 0; i < sets; ++i) {
        Add(w[i].data() + begin, g[i].data() + begin, share);
        std::memcpy(out[i].data() + begin, w[i].data() + begin, share * sizeof(float));
      }
    });
    series.values.push_back(passes * static_cast<double>(bytes) * sets * 1e-9);
  }
  return series;
}

}  // namespace parley
