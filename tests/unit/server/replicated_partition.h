// A partition with a primary and a backup, and workers that push to it, on no network at all: what
// is on its way waits in lists, and a seed says what comes when, twice or never, who fails and who
// is replaced. For tests of what must hold whatever happens.
#ifndef PARLEY_TESTS_UNIT_SERVER_REPLICATED_PARTITION_H_
#define PARLEY_TESTS_UNIT_SERVER_REPLICATED_PARTITION_H_

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ps/server/hosted_partition.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {

struct ReplicatedSetup {
  pb::Consistency consistency;
  bool sparse = false;
  bool adam = false;
  float clip_norm = 0;
  std::string pull;  // a codec that keeps a residual; empty: none
  bool updates_without_tick = false;
  bool replaces_workers = true;
  uint32_t workers = 3;
  uint64_t ticks = 12;  // of worker 0; the others do fewer
};

// The gradient of a worker's tick: one value, or one row, of its own, and others that all share.
// Some ticks have no samples.
struct TestPush {
  uint64_t sequence = 0, acked_below = 1, tick = 0;
  uint32_t worker = 0, incarnation = 1;
  double weight = 1;
  std::vector<uint64_t> keys;
  std::vector<float> values;
  bool has_tick = true;
};

class TestTable {
 public:
  static constexpr uint64_t kShared = 3;  // elements, or rows
  static constexpr uint32_t kDim = 2;

  explicit TestTable(const ReplicatedSetup& setup) : setup_(setup) {
    spec_.set_id(1);
    spec_.set_name("model");
    pb::Optimizer* optimizer = spec_.mutable_optimizer();
    if (setup.adam) {
      optimizer->mutable_adam();
    } else {
      optimizer->mutable_sgd();
    }
    optimizer->set_lr(1);
    optimizer->set_clip_norm(setup.clip_norm);
    optimizer->mutable_schedule()->mutable_constant();
    if (setup.sparse) {
      spec_.mutable_sparse()->set_dim(kDim);
      spec_.mutable_sparse()->set_partitions(1);
      spec_.mutable_sparse()->set_init(pb::TensorSpec::ZERO);
    } else {
      spec_.set_partition_elements(places());
      spec_.add_tensor()->add_shape(static_cast<uint32_t>(places()));
      if (setup.clip_norm > 0) clip_ = *Optimizer::Create(*optimizer);
    }
    if (!setup.pull.empty()) {
      pb::Compression compression;
      compression.set_block(16);
      codec_ = *PayloadCodec::Create(setup.pull, compression);
    }
  }

  uint64_t Ticks(uint32_t worker) const { return setup_.ticks - worker; }
  uint64_t places() const { return kShared + 2 * setup_.workers * setup_.ticks; }
  // The one that is this tick's alone; updates without a tick count apart.
  uint64_t PlaceOf(uint32_t worker, uint64_t tick, bool has_tick = true) const {
    return kShared + 2 * (worker * setup_.ticks + tick) + (has_tick ? 0 : 1);
  }

  TestPush Make(uint32_t worker, uint64_t tick, bool has_tick = true) const {
    TestPush push;
    push.worker = worker;
    push.tick = tick;
    push.has_tick = has_tick;
    Choices choices(1000 * worker + tick);
    push.weight = choices.OneIn(7) ? 0 : static_cast<double>(1 + choices.Below(3));
    if (push.weight == 0) return push;
    const float own = static_cast<float>(push.weight);  // the mean over its samples is 1
    if (!setup_.sparse) {
      push.values.assign(places(), 0);
      push.values[PlaceOf(worker, tick, has_tick)] = own;
      for (uint64_t i = 0; i < kShared; ++i) push.values[i] = Random(&choices);
      return push;
    }
    push.keys.push_back(PlaceOf(worker, tick, has_tick));
    push.values.assign(kDim, own);
    for (uint64_t key = 0; key < kShared; ++key) {
      if (choices.OneIn(3)) continue;
      push.keys.push_back(key);
      for (uint32_t i = 0; i < kDim; ++i) push.values.push_back(Random(&choices));
    }
    return push;
  }

  std::unique_ptr<HostedPartition> MakePartition(const std::vector<uint32_t>& incarnations,
                                                 HostedPartition::NormRequest norms) {
    HostedPartition::Setup setup;
    setup.table = 1;
    setup.sparse = setup_.sparse;
    setup.consistency = setup_.consistency;
    setup.worker_incarnations = incarnations;
    setup.check_every = 1;
    setup.keeps_overwritten = true;
    setup.clip = clip_.get();
    setup.pull_codec = codec_.get();
    setup.pool = &pool_;
    return std::make_unique<HostedPartition>(*TablePartition::Create(spec_, 0, &pool_), setup,
                                             std::move(norms));
  }

  // What a reader of `tick` gets of all that there is, from nothing.
  std::vector<float> Read(HostedPartition* partition, uint64_t tick) const {
    std::vector<uint64_t> keys;
    if (setup_.sparse) {
      for (uint64_t key = 0; key < places(); ++key) keys.push_back(key);
    }
    pb::Part asked, answer;
    asked.set_keys(static_cast<uint32_t>(keys.size()));
    const Buffer values = partition->Read(0, tick, asked, Bytes(keys), &answer);
    std::vector<float> floats(values.num_floats());
    std::memcpy(floats.data(), values.data(), values.size());
    return floats;
  }

  template <typename T>
  static Buffer Bytes(const std::vector<T>& values) {
    return Buffer::Copy({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)});
  }

  BufferPool* pool() { return &pool_; }

 private:
  static float Random(Choices* choices) {
    return static_cast<float>(choices->Below(1000)) / 777 - 0.5f;
  }

  const ReplicatedSetup setup_;
  pb::TableSpec spec_;
  std::unique_ptr<Optimizer> clip_;
  std::unique_ptr<PayloadCodec> codec_;
  BufferPool pool_;
};

// As push_handler.cc does it with one part.
inline absl::StatusOr<HostedPartition::Ticket> GivePush(HostedPartition* partition,
                                                        const TestPush& push) {
  pb::FrameHeader header;
  header.set_rank(push.worker);
  header.set_incarnation(push.incarnation);
  if (push.has_tick) header.set_tick(push.tick);
  header.set_weight(push.weight);
  pb::Part part;
  part.set_sequence(push.sequence);
  part.set_acked_below(push.acked_below);
  part.set_count(push.values.size());
  part.set_keys(static_cast<uint32_t>(push.keys.size()));
  ReplayGuard::Verdict verdict;
  absl::Status status = partition->CheckPush(header, part, &verdict);
  if (!status.ok()) return status;
  return partition->TakePush(header, part, TestTable::Bytes(push.keys),
                             TestTable::Bytes(push.values));
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SERVER_REPLICATED_PARTITION_H_
