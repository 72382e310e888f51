#include <cstring>
#include <memory>

#include "absl/types/span.h"
#include "benchmarks/limits/key_pool.h"
#include "benchmarks/limits/limits.h"
#include "benchmarks/limits/stopwatch.h"
#include "ps/table/table_partition.h"

namespace parley {
namespace {

pb::TableSpec BareSpec(uint32_t dim) {
  pb::TableSpec spec;
  spec.set_id(1);
  spec.set_name("bare");
  spec.set_seed(1);
  spec.mutable_sparse()->set_dim(dim);
  spec.mutable_sparse()->set_partitions(1);
  spec.mutable_optimizer()->mutable_sgd();
  spec.mutable_optimizer()->set_lr(0.01f);
  return spec;
}

KeyList ListOf(absl::Span<const uint64_t> keys) {
  return KeyList(reinterpret_cast<const std::byte*>(keys.data()), keys.size());
}

void Push(TablePartition* table, absl::Span<const uint64_t> keys, const float* gradients) {
  const GradientView view{ListOf(keys), gradients};
  table->Apply(absl::MakeConstSpan(&view, 1), StepInfo{});
}

// Every row once, so that what is measured finds all it asks for.
void Fill(TablePartition* table, const BareTableOptions& options, const float* gradients) {
  std::vector<uint64_t> keys;
  for (uint64_t row = 0; row < options.rows; row += keys.size()) {
    keys.resize(std::min(options.keys, options.rows - row));
    for (uint64_t i = 0; i < keys.size(); ++i) keys[i] = KeyOfRow(row + i);
    Push(table, keys, gradients);
  }
}

}  // namespace

absl::StatusOr<std::vector<Series>> MeasureBareTable(const std::string& name,
                                                     const BareTableOptions& table,
                                                     LimitOptions options) {
  BufferPool pool;
  absl::StatusOr<std::unique_ptr<TablePartition>> made =
      TablePartition::Create(BareSpec(table.dim), 0, &pool);
  if (!made.ok()) return made.status();
  const std::vector<float> gradients(table.keys * table.dim, 1e-3f);
  std::vector<float> rows(table.keys * table.dim);
  Fill(made->get(), table, gradients.data());
  KeyPool pool_of_keys({.rows = table.rows, .zipf = table.zipf});
  Series pull{name + ".pull", "Mkeys/s", {}}, push{name + ".push", "Mkeys/s", {}};
  // Round 0 warms the table's memory and is not counted.
  for (uint32_t round = 0; round <= options.rounds; ++round) {
    for (Series* series : {&pull, &push}) {
      const Stopwatch watch;
      uint64_t keys = 0;
      while (watch.Seconds() < options.seconds) {
        const absl::Span<const uint64_t> list = pool_of_keys.Next(table.keys);
        if (series == &pull) {
          const Buffer read = (*made)->Read(ListOf(list));
          std::memcpy(rows.data(), read.data(), read.size());
        } else {
          Push(made->get(), list, gradients.data());
        }
        keys += list.size();
      }
      if (round > 0) series->values.push_back(static_cast<double>(keys) / watch.Seconds() * 1e-6);
    }
  }
  return std::vector<Series>{pull, push};
}

}  // namespace parley
