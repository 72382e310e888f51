// How fast and how small is a sparse table alone, without a transport?
//
// Fills tables with rows of `--dim` float32 and asks for batches of random keys: look-up and copy,
// and push with plain SGD. Four tables hold the same rows: Parley's partitions, a flat one that
// shows what the memory allows, absl::flat_hash_map to a slab of rows, and std::unordered_map to a
// vector a row. Keys are drawn uniformly or from a Zipf distribution over the table's keys; a batch
// has no key twice, as a worker's request has none. One thread; time is its CPU time. Ratios
// compare between machines, absolute values do not. Prints one JSON object: conditions and medians
// of
// --rounds rounds, of which each asks every table, so that noise meets all alike. --peers=0 leaves
// the others out.
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "ps/base/philox.h"
#include "ps/base/sparse_layout.h"
#include "ps/table/block_memory.h"
#include "ps/table/optimizer.h"
#include "ps/table/table_partition.h"

namespace parley {
namespace {

// Of this thread, so that other programs on the machine take away cache and memory but not time.
double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Options {
  uint64_t rows = 10'000'000;
  uint64_t batch = 100'000;
  uint32_t dim = 16;
  uint32_t partitions = 16;
  int rounds = 7;
  int batches = 10;  // a round
  bool peers = true;
};

// The key of number i: neighbours are far apart, as ids of features are.
uint64_t KeyAt(uint64_t i) { return KeyHash(i ^ 0xABCDEF12345); }

// What a request is: the keys of each partition, one after the other, and a gradient for each.
struct Batch {
  std::vector<uint64_t> keys;       // sorted by partition
  std::vector<uint64_t> part_ends;  // [partitions]
};

class Table {
 public:
  virtual ~Table() = default;
  virtual const char* name() const = 0;
  virtual void Read(const Batch& batch) = 0;
  virtual void Push(const Batch& batch, const float* gradients) = 0;
};

class ParleyTable : public Table {
 public:
  explicit ParleyTable(const Options& options) : dim_(options.dim) {
    pb::TableSpec spec;
    spec.set_seed(1);
    spec.mutable_sparse()->set_dim(options.dim);
    spec.mutable_sparse()->set_partitions(options.partitions);
    spec.mutable_optimizer()->mutable_sgd();
    for (uint32_t p = 0; p < options.partitions; ++p) {
      auto partition = TablePartition::Create(spec, p, &pool_);
      if (!partition.ok()) std::abort();
      partitions_.push_back(*std::move(partition));
    }
  }
  const char* name() const override { return "parley"; }
  void Read(const Batch& batch) override {
    ForEachPart(batch, [&](TablePartition& partition, KeyList keys, uint64_t) {
      const Buffer rows = partition.Read(keys);
      asm volatile("" : : "r"(rows.data()) : "memory");
    });
  }
  void Push(const Batch& batch, const float* gradients) override {
    ForEachPart(batch, [&](TablePartition& partition, KeyList keys, uint64_t first) {
      const GradientView view = {keys, gradients + first * dim_};
      partition.Apply({&view, 1}, StepInfo());
    });
  }
  uint64_t memory_bytes() const {
    uint64_t bytes = 0;
    for (const auto& partition : partitions_) bytes += partition->memory_bytes();
    return bytes;
  }

 private:
  template <typename Call>
  void ForEachPart(const Batch& batch, Call call) {
    uint64_t begin = 0;
    for (size_t p = 0; p < partitions_.size(); ++p) {
      const uint64_t end = batch.part_ends[p];
      const auto* keys = reinterpret_cast<const std::byte*>(batch.keys.data() + begin);
      if (end > begin) call(*partitions_[p], KeyList(keys, end - begin), begin);
      begin = end;
    }
  }

  const uint32_t dim_;
  BufferPool pool_;
  std::vector<std::unique_ptr<TablePartition>> partitions_;
};

// The usual way: a map to an index into one array of rows. `Map` is from uint64 to uint32.
class FlatMapTable : public Table {
 public:
  explicit FlatMapTable(const Options& options)
      : dim_(options.dim), out_(options.batch * options.dim) {
    rows_.reserve(options.rows);
    slab_.reserve(options.rows * options.dim);
  }
  const char* name() const override { return "absl_flat_hash_map"; }
  void Read(const Batch& batch) override {
    float* out = out_.data();
    for (const uint64_t key : batch.keys) {
      std::memcpy(out, Row(key), dim_ * sizeof(float));
      out += dim_;
    }
    asm volatile("" : : "r"(out) : "memory");
  }
  void Push(const Batch& batch, const float* gradients) override {
    for (const uint64_t key : batch.keys) {
      float* row = Row(key);
      for (uint32_t i = 0; i < dim_; ++i) row[i] -= 0.01f * gradients[i];
      gradients += dim_;
    }
  }

 private:
  float* Row(uint64_t key) {
    const auto [row, is_new] = rows_.try_emplace(key, rows_.size());
    if (is_new) slab_.resize(slab_.size() + dim_);
    return slab_.data() + uint64_t{row->second} * dim_;
  }

  const uint32_t dim_;
  absl::flat_hash_map<uint64_t, uint32_t> rows_;
  std::vector<float> slab_;
  std::vector<float> out_;
};

class UnorderedMapTable : public Table {
 public:
  explicit UnorderedMapTable(const Options& options)
      : dim_(options.dim), out_(options.batch * options.dim) {
    rows_.reserve(options.rows);
  }
  const char* name() const override { return "std_unordered_map"; }
  void Read(const Batch& batch) override {
    float* out = out_.data();
    for (const uint64_t key : batch.keys) {
      std::memcpy(out, Row(key), dim_ * sizeof(float));
      out += dim_;
    }
    asm volatile("" : : "r"(out) : "memory");
  }
  void Push(const Batch& batch, const float* gradients) override {
    for (const uint64_t key : batch.keys) {
      float* row = Row(key);
      for (uint32_t i = 0; i < dim_; ++i) row[i] -= 0.01f * gradients[i];
      gradients += dim_;
    }
  }

 private:
  float* Row(uint64_t key) {
    std::vector<float>& row = rows_[key];
    if (row.empty()) row.resize(dim_);
    return row.data();
  }

  const uint32_t dim_;
  std::unordered_map<uint64_t, std::vector<float>> rows_;
  std::vector<float> out_;
};

// What two misses a key allow: open addressing in one array of keys, rows at the same places in
// another, both in huge pages and fetched ahead in batches of 32. It has places for half as many
// rows again or more, so it shows a speed that a table as small as Parley's can only approach.
class FlatPrefetchTable : public Table {
 public:
  explicit FlatPrefetchTable(const Options& options)
      : dim_(options.dim),
        bits_(std::bit_width(options.rows * 3 / 2)),
        keys_((uint64_t{1} << bits_) * sizeof(uint64_t)),
        rows_((uint64_t{1} << bits_) * dim_ * sizeof(float)),
        out_(options.batch * options.dim) {
    std::memset(keys_.data(), 0, keys_.size());
    std::memset(rows_.data(), 0, rows_.size());
  }
  const char* name() const override { return "flat_with_prefetch"; }
  void Read(const Batch& batch) override {
    float* out = out_.data();
    ForEachRow(batch, [&](const float* row) {
      std::memcpy(out, row, dim_ * sizeof(float));
      out += dim_;
    });
    asm volatile("" : : "r"(out) : "memory");
  }
  void Push(const Batch& batch, const float* gradients) override {
    ForEachRow(batch, [&](float* row) {
      for (uint32_t i = 0; i < dim_; ++i) row[i] -= 0.01f * gradients[i];
      gradients += dim_;
    });
  }

 private:
  template <typename Use>
  void ForEachRow(const Batch& batch, Use use) {
    constexpr size_t kAhead = 32;
    uint64_t* const keys = reinterpret_cast<uint64_t*>(keys_.data());
    float* const rows = reinterpret_cast<float*>(rows_.data());
    uint64_t places[kAhead];
    for (size_t at = 0; at < batch.keys.size(); at += kAhead) {
      const size_t n = std::min(kAhead, batch.keys.size() - at);
      for (size_t i = 0; i < n; ++i) {
        places[i] = KeyHash(batch.keys[at + i]) >> (64 - bits_);
        __builtin_prefetch(keys + places[i]);
        __builtin_prefetch(rows + places[i] * dim_);
      }
      for (size_t i = 0; i < n; ++i) {
        const uint64_t key = batch.keys[at + i];
        uint64_t place = places[i];
        while (keys[place] != key && keys[place] != 0) {
          place = (place + 1) & ((uint64_t{1} << bits_) - 1);
        }
        keys[place] = key;
        use(rows + place * dim_);
      }
    }
  }

  const uint32_t dim_;
  const int bits_;
  MappedMemory keys_, rows_;
  std::vector<float> out_;
};

// Key numbers, uniform or by Zipf's law with exponent 1.05 (by inversion of its continuous
// envelope, which is close enough for where a cache helps).
class Draw {
 public:
  Draw(uint64_t rows, bool zipf) : rows_(rows), zipf_(zipf) {}
  uint64_t Next() {
    const double u = (static_cast<double>(Philox(11, 0, count_++)[0]) + 0.5) * 0x1p-32;
    if (!zipf_) {
      return std::min(rows_ - 1, static_cast<uint64_t>(u * static_cast<double>(rows_)));
    }
    const double power = 1 - 1.05, top = std::pow(static_cast<double>(rows_), power);
    const double x = std::pow(1 + u * (top - 1), 1 / power);
    return std::min(rows_ - 1, static_cast<uint64_t>(x) - 1);
  }

 private:
  const uint64_t rows_;
  const bool zipf_;
  uint64_t count_ = 0;
};

std::vector<Batch> MakeBatches(const Options& options, bool zipf) {
  Draw draw(options.rows, zipf);
  const int shift = 64 - std::countr_zero(options.partitions);
  std::vector<Batch> batches(static_cast<size_t>(options.batches));
  for (Batch& batch : batches) {
    absl::flat_hash_set<uint64_t> seen;
    std::vector<std::vector<uint64_t>> parts(options.partitions);
    while (seen.size() < options.batch) {
      const uint64_t key = KeyAt(draw.Next());
      if (!seen.insert(key).second) continue;
      parts[options.partitions == 1 ? 0 : KeyHash(key) >> shift].push_back(key);
    }
    for (const auto& part : parts) {
      batch.keys.insert(batch.keys.end(), part.begin(), part.end());
      batch.part_ends.push_back(batch.keys.size());
    }
  }
  return batches;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Keys of [0, rows) in order of their number, in batches.
double FillSeconds(const Options& options, Table& table) {
  const std::vector<float> gradients(options.batch * options.dim, 0.01f);
  const int shift = 64 - std::countr_zero(options.partitions);
  double seconds = 0;
  for (uint64_t first = 0; first < options.rows; first += options.batch) {
    std::vector<std::vector<uint64_t>> parts(options.partitions);
    for (uint64_t i = first; i < std::min(options.rows, first + options.batch); ++i) {
      const uint64_t key = KeyAt(i);
      parts[options.partitions == 1 ? 0 : KeyHash(key) >> shift].push_back(key);
    }
    Batch batch;
    for (const auto& part : parts) {
      batch.keys.insert(batch.keys.end(), part.begin(), part.end());
      batch.part_ends.push_back(batch.keys.size());
    }
    const auto start = CpuSeconds();
    table.Push(batch, gradients.data());
    seconds += (CpuSeconds() - start);
  }
  return seconds;
}

struct Samples {
  std::vector<double> read, push;  // M keys/s
};

void Measure(const Options& options, const std::vector<Batch>& batches, Table& table,
             const std::vector<float>& gradients, Samples* samples) {
  const double keys = 1e-6 * static_cast<double>(options.batch * batches.size());
  auto start = CpuSeconds();
  for (const Batch& batch : batches) table.Read(batch);
  samples->read.push_back(keys / (CpuSeconds() - start));
  start = CpuSeconds();
  for (const Batch& batch : batches) table.Push(batch, gradients.data());
  samples->push.push_back(keys / (CpuSeconds() - start));
}

double MemcpyGigabytes() {
  const size_t size = size_t{64} << 20;
  std::vector<char> from(size, 1), to(size, 2);
  double best = 0;
  for (int i = 0; i < 7; ++i) {
    const auto start = CpuSeconds();
    std::memcpy(to.data(), from.data(), size);
    asm volatile("" : : "r"(to.data()) : "memory");
    best = std::max(best, 1e-9 * static_cast<double>(size) / (CpuSeconds() - start));
  }
  return best;
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const size_t equals = flag.find('=');
    if (equals == std::string::npos) return false;
    const std::string name = flag.substr(0, equals);
    const uint64_t value = std::strtoull(flag.c_str() + equals + 1, nullptr, 10);
    if (name == "--peers") {
      options->peers = value != 0;
      continue;
    }
    if (value == 0) return false;
    if (name == "--rows")
      options->rows = value;
    else if (name == "--batch")
      options->batch = value;
    else if (name == "--dim")
      options->dim = static_cast<uint32_t>(value);
    else if (name == "--partitions")
      options->partitions = static_cast<uint32_t>(value);
    else if (name == "--rounds")
      options->rounds = static_cast<int>(value);
    else
      return false;
  }
  return std::has_single_bit(options->partitions) && options->batch * 2 <= options->rows;
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: sparse_table_bench [--rows=N] [--batch=N] [--dim=N] [--partitions=2^N] "
                 "[--rounds=N] [--peers=0]; rows at least twice the batch\n");
    return 2;
  }
  utsname machine;
  uname(&machine);
  std::printf(
      "{\"benchmark\": \"sparse_table\", \"kernel\": \"%s\", \"cores\": %ld, \"isa\": \"%s\", "
      "\"threads\": 1, \"rows\": %llu, \"dim\": %u, \"batch\": %llu, \"partitions\": %u, "
      "\"rounds\": %d, \"memcpy_64MiB_GBps\": %.2f,\n",
      machine.release, sysconf(_SC_NPROCESSORS_ONLN), OptimizerKernelIsa(),
      static_cast<unsigned long long>(options.rows), options.dim,
      static_cast<unsigned long long>(options.batch), options.partitions, options.rounds,
      MemcpyGigabytes());
  auto parley = std::make_unique<ParleyTable>(options);
  ParleyTable* const own = parley.get();
  std::vector<std::unique_ptr<Table>> tables;
  tables.push_back(std::move(parley));
  if (options.peers) {
    tables.push_back(std::make_unique<FlatPrefetchTable>(options));
    tables.push_back(std::make_unique<FlatMapTable>(options));
    tables.push_back(std::make_unique<UnorderedMapTable>(options));
  }
  std::printf(" \"fill_Mkeys_per_s\": {");
  for (const auto& table : tables) {
    const double seconds = FillSeconds(options, *table);
    std::printf("%s\"%s\": %.2f", table == tables[0] ? "" : ", ", table->name(),
                1e-6 * static_cast<double>(options.rows) / seconds);
    std::fflush(stdout);
  }
  std::printf("},\n \"parley_bytes_per_row\": %.2f,\n \"results\": [",
              static_cast<double>(own->memory_bytes()) / static_cast<double>(options.rows));
  const std::vector<float> gradients(options.batch * options.dim, 0.001f);
  for (const bool zipf : {false, true}) {
    const std::vector<Batch> batches = MakeBatches(options, zipf);
    std::vector<Samples> samples(tables.size());
    for (int round = 0; round <= options.rounds; ++round) {
      for (size_t t = 0; t < tables.size(); ++t) {
        Samples unused;  // the first round warms up
        Measure(options, batches, *tables[t], gradients, round == 0 ? &unused : &samples[t]);
      }
    }
    for (size_t t = 0; t < tables.size(); ++t) {
      std::printf(
          "%s\n  {\"table\": \"%s\", \"keys\": \"%s\", \"read_Mkeys_per_s\": %.2f, "
          "\"push_sgd_Mkeys_per_s\": %.2f}",
          zipf || t > 0 ? "," : "", tables[t]->name(), zipf ? "zipf 1.05" : "uniform",
          Median(samples[t].read), Median(samples[t].push));
    }
  }
  std::printf("\n ]}\n");
  return 0;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
