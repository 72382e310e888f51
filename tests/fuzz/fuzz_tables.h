// Partitions for the fuzz targets that feed a partition's state: one of each kind whose state has
// parts that the others lack.
#ifndef PARLEY_TESTS_FUZZ_FUZZ_TABLES_H_
#define PARLEY_TESTS_FUZZ_FUZZ_TABLES_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"
#include "ps/codec/payload_codec.h"
#include "ps/server/hosted_partition.h"
#include "ps/table/optimizer.h"
#include "ps/table/table_partition.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley {

class FuzzTable {
 public:
  enum Kind : uint8_t {
    kDense,      // BSP; what a step overwrote
    kPublished,  // BSP, Adam; readers hold published weights
    kClipped,    // BSP with a backup worker, clipped by norm
    kStale,      // dense, SSP
    kRows,       // sparse, BSP; what a step overwrote
    kEvicted,    // sparse, ASP, Adam, half precision; candidates, ages
  };
  static constexpr uint8_t kKinds = 6;
  static constexpr uint32_t kWorkers = 3, kElements = 5, kDim = 2;

  explicit FuzzTable(uint8_t kind) : kind_(kind % kKinds) {
    spec_.set_id(1);
    spec_.set_name("model");
    pb::Optimizer* optimizer = spec_.mutable_optimizer();
    optimizer->set_lr(0.5);
    optimizer->mutable_schedule()->mutable_constant();
    if (kind_ == kPublished || kind_ == kEvicted) {
      optimizer->mutable_adam();
    } else {
      optimizer->mutable_sgd();
    }
    if (kind_ == kClipped) optimizer->set_clip_norm(1);
    if (sparse()) {
      pb::SparseSpec* sparse = spec_.mutable_sparse();
      sparse->set_dim(kDim);
      sparse->set_partitions(1);
      if (kind_ == kEvicted) {
        sparse->set_row_type(pb::FP16);
        sparse->mutable_eviction()->set_min_frequency(3);
        sparse->mutable_eviction()->set_max_age(4);
        sparse->mutable_eviction()->set_max_rows(8);
      }
    } else {
      spec_.set_partition_elements(kElements);
      spec_.add_tensor()->add_shape(kElements);
    }
    if (kind_ == kClipped) clip_ = *Optimizer::Create(*optimizer);
    if (kind_ == kPublished) {
      pb::Compression compression;
      compression.set_block(16);
      codec_ = *PayloadCodec::Create("one_bit", compression);
    }
  }

  bool sparse() const { return kind_ == kRows || kind_ == kEvicted; }
  Kind kind() const { return static_cast<Kind>(kind_); }

  // With its first weights. `norms` is asked for the kind that is clipped. This outlives it.
  std::unique_ptr<HostedPartition> Make(HostedPartition::NormRequest norms) {
    HostedPartition::Setup setup;
    setup.table = spec_.id();
    setup.sparse = sparse();
    setup.evicts = kind_ == kEvicted;
    setup.consistency.set_mode(kind_ == kStale     ? pb::Consistency::SSP
                               : kind_ == kEvicted ? pb::Consistency::ASP
                                                   : pb::Consistency::BSP);
    setup.consistency.set_staleness(kind_ == kStale ? 2 : 0);
    setup.consistency.set_backup_workers(kind_ == kClipped ? 1 : 0);
    setup.worker_incarnations.assign(kWorkers, 1);
    setup.check_every = 1;
    setup.keeps_overwritten = kind_ != kStale && kind_ != kEvicted;
    setup.clip = clip_.get();
    setup.pull_codec = codec_.get();
    setup.pool = &pool_;
    return std::make_unique<HostedPartition>(*TablePartition::Create(spec_, 0, &pool_),
                                             std::move(setup), std::move(norms));
  }
  std::unique_ptr<HostedPartition> Make() {
    return Make([](uint32_t, NormGroup, double) {});
  }

  // What `worker` pushes for a tick, if it may: rows `tick`, 40 and 41. Returns whether it did.
  bool Push(HostedPartition* partition, uint32_t worker, uint64_t tick) const {
    const uint64_t keys[] = {tick, 40, 41};
    pb::FrameHeader header;
    header.set_rank(worker);
    header.set_incarnation(1);
    header.set_tick(tick);
    header.set_weight(1);
    pb::Part part;
    part.set_sequence(tick + 1);
    part.set_acked_below(tick + 1);
    part.set_keys(sparse() ? 3 : 0);
    part.set_count(partition->values(part.keys()));
    const std::vector<float> values(part.count(), 0.25f * static_cast<float>(worker + 1));
    ReplayGuard::Verdict verdict;
    if (!partition->CheckPush(header, part, &verdict).ok()) return false;
    const auto copy = [](const void* data, size_t size) {
      return Buffer::Copy({static_cast<const char*>(data), size});
    };
    Check(partition
              ->TakePush(header, part, copy(keys, part.keys() * sizeof(uint64_t)),
                         copy(values.data(), values.size() * sizeof(float)))
              .ok(),
          "what was checked can be taken");
    return true;
  }

  BufferPool* pool() { return &pool_; }

 private:
  const uint8_t kind_;
  pb::TableSpec spec_;
  std::unique_ptr<Optimizer> clip_;
  std::unique_ptr<PayloadCodec> codec_;
  BufferPool pool_{/*max_cached_bytes=*/0};
};

}  // namespace parley

#endif  // PARLEY_TESTS_FUZZ_FUZZ_TABLES_H_
