// Do 100 million rows of 16 float32 fit into a small machine, and can they be trained there?
//
// Creates every row by a push, then reads and pushes random batches. Prints one JSON object: bytes
// a row by what the process holds (resident set, less what it held before) and by the table's own
// count, against two readings of payload: the 64 bytes of weights, and these with the 8 bytes of
// the key; and keys/s by CPU time. --rule=sgd or adagrad (one slot as large as the weights: ask for
// fewer rows). One thread.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "ps/base/sparse_layout.h"
#include "ps/table/table_partition.h"

namespace parley {
namespace {

constexpr uint64_t kBatch = 100'000;
constexpr uint32_t kDim = 16;
constexpr uint32_t kPartitions = 16;

double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

uint64_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long long total = 0, resident = 0;
  if (file == nullptr || std::fscanf(file, "%llu %llu", &total, &resident) != 2) std::abort();
  std::fclose(file);
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Far apart, all different.
uint64_t KeyAt(uint64_t i) { return KeyHash(i ^ 0x5DEECE66D); }

class Table {
 public:
  explicit Table(const std::string& rule) : parts_(kPartitions) {
    pb::TableSpec spec;
    spec.set_seed(1);
    spec.mutable_sparse()->set_dim(kDim);
    spec.mutable_sparse()->set_partitions(kPartitions);
    if (rule == "adagrad") {
      spec.mutable_optimizer()->mutable_adagrad();
    } else {
      spec.mutable_optimizer()->mutable_sgd();
    }
    layout_ = *SparseLayout::Create(spec);
    for (uint32_t p = 0; p < kPartitions; ++p) {
      auto partition = TablePartition::Create(spec, p, &pool_);
      if (!partition.ok()) std::abort();
      partitions_.push_back(*std::move(partition));
    }
  }

  // The keys of numbers(i), i in [0, kBatch).
  template <typename Numbers>
  void SetBatch(Numbers numbers) {
    for (auto& part : parts_) part.clear();
    for (uint64_t i = 0; i < kBatch; ++i) {
      const uint64_t key = KeyAt(numbers(i));
      parts_[layout_.PartitionOf(key)].push_back(key);
    }
  }
  void Push() {
    for (uint32_t p = 0; p < kPartitions; ++p) {
      const GradientView view = {Keys(p), gradients_.data()};
      partitions_[p]->Apply({&view, 1}, StepInfo());
    }
  }
  void Read() {
    for (uint32_t p = 0; p < kPartitions; ++p) {
      const Buffer rows = partitions_[p]->Read(Keys(p));
      asm volatile("" : : "r"(rows.data()) : "memory");
    }
  }
  uint64_t memory_bytes() const {
    uint64_t bytes = 0;
    for (const auto& partition : partitions_) bytes += partition->memory_bytes();
    return bytes;
  }
  uint64_t rows() const {
    pb::ServerCounts::Rows rows;
    for (const auto& partition : partitions_) partition->AddCounts(&rows);
    return rows.rows();
  }

 private:
  KeyList Keys(uint32_t p) const {
    return KeyList(reinterpret_cast<const std::byte*>(parts_[p].data()), parts_[p].size());
  }

  BufferPool pool_;
  SparseLayout layout_;
  std::vector<std::unique_ptr<TablePartition>> partitions_;
  std::vector<std::vector<uint64_t>> parts_;
  const std::vector<float> gradients_ = std::vector<float>(kBatch * kDim, 0.001f);
};

int Main(int argc, char** argv) {
  uint64_t rows = 100'000'000;
  std::string rule = "sgd";
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.starts_with("--rows=")) {
      rows = std::strtoull(flag.c_str() + 7, nullptr, 10) / kBatch * kBatch;
    } else if (flag == "--rule=sgd" || flag == "--rule=adagrad") {
      rule = flag.substr(7);
    } else {
      rows = 0;
    }
  }
  if (rows == 0) {
    std::fprintf(stderr, "usage: sparse_100m [--rows=N, at least 100000] [--rule=sgd|adagrad]\n");
    return 2;
  }
  Table table(rule);
  uint64_t next = 0;
  table.SetBatch([&](uint64_t i) { return i; });
  const uint64_t before = ResidentBytes();
  double fill_seconds = 0, slowest_ms = 0;
  while (next < rows) {
    table.SetBatch([&](uint64_t i) { return next + i; });
    const double start = CpuSeconds();
    table.Push();
    const double seconds = CpuSeconds() - start;
    fill_seconds += seconds;
    slowest_ms = std::max(slowest_ms, 1e3 * seconds);
    next += kBatch;
  }
  const double resident = static_cast<double>(ResidentBytes() - before);
  double read_seconds = 0, push_seconds = 0;
  constexpr int kRounds = 100;
  for (int round = 0; round < kRounds; ++round) {
    table.SetBatch([&](uint64_t) { return KeyHash(++next) % rows; });
    double start = CpuSeconds();
    table.Read();
    read_seconds += CpuSeconds() - start;
    start = CpuSeconds();
    table.Push();
    push_seconds += CpuSeconds() - start;
  }
  const double n = static_cast<double>(rows), slot = rule == "adagrad" ? 64 : 0;
  const double by_rss = resident / n, by_count = static_cast<double>(table.memory_bytes()) / n;
  const double mkeys = 1e-6 * kBatch * kRounds;
  std::printf(
      "{\"benchmark\": \"sparse_100m\", \"rows\": %llu, \"rows_counted\": %llu, \"dim\": %u, "
      "\"rule\": \"%s\", \"partitions\": %u, \"batch\": %llu,\n"
      " \"bytes_per_row_rss\": %.2f, \"bytes_per_row_counted\": %.2f, \"payload_bytes\": %.0f,\n"
      " \"over_weights_and_slots\": %.4f, \"over_those_and_key\": %.4f,\n"
      " \"fill_Mrows_per_s\": %.2f, \"slowest_fill_batch_ms\": %.1f, \"read_Mkeys_per_s\": %.2f, "
      "\"push_Mkeys_per_s\": %.2f}\n",
      static_cast<unsigned long long>(rows), static_cast<unsigned long long>(table.rows()), kDim,
      rule.c_str(), kPartitions, static_cast<unsigned long long>(kBatch), by_rss, by_count,
      64 + slot, by_rss / (64 + slot) - 1, by_rss / (72 + slot) - 1, 1e-6 * n / fill_seconds,
      slowest_ms, mkeys / read_seconds, mkeys / push_seconds);
  return 0;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
