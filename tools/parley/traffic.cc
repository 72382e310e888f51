#include "tools/parley/traffic.h"

#include <algorithm>
#include <memory>
#include <string>

#include "ps/base/sparse_layout.h"
#include "ps/codec/payload_codec.h"
#include "ps/wire/codec.h"
#include "worker/client/client_core.h"
#include "worker/client/known_lists.h"
#include "worker/data/sampler.h"

namespace parley {
namespace {

// Steps whose keys are counted: enough for a mean, few enough to read at once.
constexpr uint64_t kSampledSteps = 4;

// Rpc begins at a random multiple of 2^16 below 2^47, so that most ids take as much as this one.
constexpr uint64_t kRequestId = uint64_t{1} << 46;

double FrameBytes(const pb::FrameHeader& header) {
  return static_cast<double>(EncodeHeader(header).size());
}

class Teller {
 public:
  Teller(const pb::Experiment& experiment, uint64_t steps)
      : experiment_(experiment), cluster_(experiment.cluster()), tick_(steps / 2 + 1) {
    traffic_.links.resize(cluster_.servers());
  }

  absl::Status Dense(const pb::TableSpec& table, const StagePlan& plan, const DenseLayout& layout) {
    absl::Status status = SetCodecs(table);
    if (!status.ok()) return status;
    // As Trainer::Fuses, but for an epoch's last step.
    fused_ = cluster_.push_pull() && experiment_.optimizer().clip_norm() == 0;
    // A stage's partitions leave as soon as its gradients are there; a pull of its own asks for
    // all.
    for (const std::vector<uint32_t>& partitions : plan.completes) {
      DenseRequests(layout, partitions, /*push=*/true, /*pull=*/fused_);
    }
    if (!fused_) {
      std::vector<uint32_t> all;
      for (uint32_t p = 0; p < layout.partitions(); ++p) all.push_back(p);
      DenseRequests(layout, all, /*push=*/false, /*pull=*/true);
    }
    first_owner_ = layout.partitions();
    return absl::OkStatus();
  }

  absl::Status Sparse(const pb::TableSpec& table, const Workload& workload) {
    absl::Status status = SetCodecs(table);
    if (!status.ok()) return status;
    absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
    if (!layout.ok()) return layout.status();
    Sampler::Options options;
    options.sharding = experiment_.data().sharding();
    options.samples = workload.data.train->samples();
    options.global_batch = experiment_.training().global_batch();
    options.parts = cluster_.workers();
    options.seed = experiment_.seed();
    Sampler sampler(options);
    const uint64_t steps = std::min(kSampledSteps, sampler.ticks_per_epoch());
    for (uint64_t step = 0; step < steps; ++step) {
      const std::vector<uint64_t> ids = sampler.Batch(0, step).ids;
      std::vector<uint64_t> keys(ids.size() * workload.data.train->keys_per_row());
      workload.data.train->ReadKeys(ids, keys.data());
      KeyBatch batch;
      workload.embedding->Index(keys, &batch);
      SparseStep(*layout, batch.keys, 1.0 / static_cast<double>(steps));
    }
    return absl::OkStatus();
  }

  Traffic Take() { return std::move(traffic_); }

 private:
  absl::Status SetCodecs(const pb::TableSpec& table) {
    const pb::Compression& config = table.compression();
    table_ = table.id();
    auto push = PayloadCodec::Create(config.push(), config);
    auto pull = PayloadCodec::Create(config.pull(), config);
    if (!push.ok()) return push.status();
    if (!pull.ok()) return pull.status();
    push_ = *std::move(push);
    pull_ = *std::move(pull);
    for (const auto* codec : {&push_, &pull_}) {
      traffic_.bound |= *codec != nullptr && !(*codec)->fixed_size();
    }
    return absl::OkStatus();
  }

  uint64_t MaxRequestBytes() const { return uint64_t{cluster_.max_request_kib()} << 10; }

  // As the scheduler deals them out: the partitions of all tables to the shards in turn.
  uint32_t Shards() const { return cluster_.servers() * cluster_.shards_per_server(); }
  LinkTraffic& LinkOf(uint32_t shard) {
    return traffic_.links[shard / cluster_.shards_per_server()];
  }

  static uint64_t Encoded(const std::unique_ptr<PayloadCodec>& codec, uint64_t count) {
    return codec == nullptr ? count * sizeof(float) : codec->MaxEncodedBytes(count);
  }

  // What Rpc and the transport write into every header, with numbers of a run's middle.
  pb::FrameHeader Header(pb::Kind kind) const {
    pb::FrameHeader header;
    header.set_protocol(1);
    header.set_kind(kind);
    header.set_job(1);
    header.set_sender(1);
    header.set_incarnation(cluster_.workers() + 1);
    header.set_request_id(kRequestId);
    header.set_table(table_);
    header.set_tick(tick_);
    header.set_rank(cluster_.workers() - 1);
    return header;
  }
  pb::FrameHeader Request(pb::Kind kind) const {
    pb::FrameHeader header = Header(kind);
    header.set_epoch(1);
    if (kind != pb::PULL) header.set_weight(1);
    if (kind == pb::PUSH_PULL) header.set_pull_tick(tick_ + 1);
    return header;
  }
  void SetPush(uint64_t count, pb::Part* part) const {
    part->set_count(count);
    part->set_sequence(tick_);
    part->set_acked_below(tick_);
    if (push_ != nullptr) part->set_value_bytes(Encoded(push_, count));
  }
  void SetAnswer(uint32_t partition, uint64_t count, pb::Part* part) const {
    part->set_partition(partition);
    part->set_count(count);
    part->set_version(tick_);
    part->set_min_clock(tick_);
    if (pull_ == nullptr) return;
    part->set_value_bytes(Encoded(pull_, count));
    if (pull_->keeps_residual()) part->set_base_version(tick_);
  }

  // The requests for these partitions, each of one shard and of at most max_request_kib of floats.
  void DenseRequests(const DenseLayout& layout, const std::vector<uint32_t>& partitions, bool push,
                     bool pull) {
    const uint64_t most = MaxRequestBytes();
    for (uint32_t shard = 0; shard < Shards(); ++shard) {
      std::vector<uint32_t> group;
      uint64_t bytes = 0;
      for (const uint32_t partition : partitions) {
        if (partition % Shards() != shard) continue;
        const uint64_t size = layout.partition(partition).size() * sizeof(float);
        if (!group.empty() && bytes + size > most) {
          DenseRequest(layout, shard, group, push, pull);
          group.clear();
          bytes = 0;
        }
        group.push_back(partition);
        bytes += size;
      }
      if (!group.empty()) DenseRequest(layout, shard, group, push, pull);
    }
  }

  void DenseRequest(const DenseLayout& layout, uint32_t shard, const std::vector<uint32_t>& group,
                    bool push, bool pull) {
    LinkTraffic& link = LinkOf(shard);
    pb::FrameHeader request = Request(!push ? pb::PULL : pull ? pb::PUSH_PULL : pb::PUSH);
    pb::FrameHeader answer = Header(pb::REPLY);
    double pushed = 0, pulled = 0;
    for (const uint32_t partition : group) {
      const uint64_t count = layout.partition(partition).size();
      pb::Part* part = request.add_part();
      part->set_partition(partition);
      if (push) {
        SetPush(count, part);
        pushed += static_cast<double>(Encoded(push_, count));
      }
      if (!pull) continue;
      if (pull_ != nullptr && pull_->keeps_residual()) part->set_base_version(tick_);
      SetAnswer(partition, count, answer.add_part());
      pulled += static_cast<double>(Encoded(pull_, count));
    }
    Count(request, answer, pushed, pulled, 1, &link);
  }

  void Count(const pb::FrameHeader& request, const pb::FrameHeader& answer, double pushed,
             double pulled, double share, LinkTraffic* link) {
    link->pushed += share * pushed;
    link->pulled += share * pulled;
    link->to_server += share * (FrameBytes(request) + pushed);
    link->to_worker += share * (FrameBytes(answer) + pulled);
    link->requests += share;
  }

  // Keys of one partition in one message.
  struct Run {
    uint32_t partition;
    uint64_t keys;
  };

  // The keys go along with the pull; the push names by its digest what the pull has sent whole.
  void SparseStep(const SparseLayout& layout, const std::vector<uint64_t>& keys, double share) {
    traffic_.keys += share * static_cast<double>(keys.size());
    std::vector<uint64_t> count(layout.partitions());
    for (const uint64_t key : keys) ++count[layout.PartitionOf(key)];
    for (uint32_t shard = 0; shard < Shards(); ++shard) {
      std::vector<bool> known = SparsePulls(layout, count, shard, share);
      SparsePushes(layout, count, known, shard, share);
    }
  }

  bool Owns(uint32_t shard, uint32_t partition) const {
    return (first_owner_ + partition) % Shards() == shard;
  }

  // As SparseClient::Pull cuts them. Gives the partitions whose list of keys is known by its digest
  // afterwards: it has one (SparseRequest::Seal), and it was not cut.
  std::vector<bool> SparsePulls(const SparseLayout& layout, const std::vector<uint64_t>& count,
                                uint32_t shard, double share) {
    const uint64_t row_bytes = layout.dim() * sizeof(float) + sizeof(uint64_t);
    const uint64_t most = std::max<uint64_t>(1, MaxRequestBytes() / row_bytes);
    std::vector<bool> known(count.size());
    std::vector<Run> open;
    uint64_t asked = 0;
    const auto flush = [&] {
      if (!open.empty()) SparsePull(layout, open, shard, share);
      open.clear();
      asked = 0;
    };
    for (uint32_t p = 0; p < count.size(); ++p) {
      if (!Owns(shard, p)) continue;
      for (uint64_t left = count[p]; left > 0;) {
        if (!open.empty() &&
            (asked >= most || open.size() >= kMaxPartsPerMessage || open.back().partition == p)) {
          flush();
        }
        const uint64_t n = std::min(left, most - asked);
        known[p] = n == count[p] && n >= KnownLists::kMinKeys;
        open.push_back({p, n});
        asked += n;
        left -= n;
      }
    }
    flush();
    return known;
  }

  void SparsePull(const SparseLayout& layout, const std::vector<Run>& runs, uint32_t shard,
                  double share) {
    pb::FrameHeader pull = Request(pb::PULL), rows = Header(pb::REPLY);
    double key_bytes = 0, row_bytes = 0;
    for (const Run& run : runs) {
      const uint64_t values = run.keys * layout.dim();
      SetKeys(run, /*known=*/false, pull.add_part(), &key_bytes);
      pb::Part* answered = rows.add_part();
      SetAnswer(run.partition, values, answered);
      answered->set_keys(static_cast<uint32_t>(run.keys));
      row_bytes += static_cast<double>(Encoded(pull_, values));
    }
    Count(pull, rows, key_bytes, row_bytes, share, &LinkOf(shard));
  }

  // As SparseClient::PushGroups groups them.
  void SparsePushes(const SparseLayout& layout, const std::vector<uint64_t>& count,
                    const std::vector<bool>& known, uint32_t shard, double share) {
    std::vector<Run> open;
    uint64_t bytes = 0;
    // A step is closed in every partition, also where it has no key.
    for (uint32_t p = 0; p < count.size(); ++p) {
      if (!Owns(shard, p)) continue;
      const uint64_t size =
          count[p] == 0 ? 0 : count[p] * sizeof(uint64_t) + Encoded(push_, count[p] * layout.dim());
      if (!open.empty() &&
          (bytes + size > MaxRequestBytes() || open.size() >= kMaxPartsPerMessage)) {
        SparsePush(layout, open, known, shard, share);
        open.clear();
        bytes = 0;
      }
      open.push_back({p, count[p]});
      bytes += size;
    }
    if (!open.empty()) SparsePush(layout, open, known, shard, share);
  }

  void SparsePush(const SparseLayout& layout, const std::vector<Run>& runs,
                  const std::vector<bool>& known, uint32_t shard, double share) {
    pb::FrameHeader push = Request(pb::PUSH), ok = Header(pb::REPLY);
    double bytes = 0;
    for (const Run& run : runs) {
      pb::Part* part = push.add_part();
      if (run.keys == 0) {
        part->set_partition(run.partition);
      } else {
        SetKeys(run, known[run.partition], part, &bytes);
        bytes += static_cast<double>(Encoded(push_, run.keys * layout.dim()));
      }
      SetPush(run.keys * layout.dim(), part);
    }
    Count(push, ok, bytes, 0, share, &LinkOf(shard));
  }

  // `known`: there by its digest; else the list travels, and `bytes` has it.
  static void SetKeys(const Run& run, bool known, pb::Part* part, double* bytes) {
    part->set_partition(run.partition);
    part->set_keys(static_cast<uint32_t>(run.keys));
    if (run.keys >= KnownLists::kMinKeys) part->set_key_digest(std::string(16, 'd'));
    const uint64_t list = known ? 0 : run.keys * sizeof(uint64_t);
    part->set_key_bytes(list);
    *bytes += static_cast<double>(list);
  }

  const pb::Experiment& experiment_;
  const pb::Cluster& cluster_;
  const uint64_t tick_;
  bool fused_ = false;
  uint32_t table_ = 0, first_owner_ = 0;
  std::unique_ptr<PayloadCodec> push_, pull_;
  Traffic traffic_;
};

}  // namespace

absl::StatusOr<Traffic> ForetellTraffic(const pb::Experiment& experiment, const Workload& workload,
                                        const DenseLayout& layout, uint64_t steps) {
  Teller teller(experiment, steps);
  const pb::TableSpec dense = ModelTable(experiment, *workload.model);
  absl::Status status = teller.Dense(dense, StagePlan::Create(*workload.model, layout), layout);
  if (status.ok() && workload.embedding.has_value()) {
    status = teller.Sparse(EmbeddingTable(experiment), workload);
  }
  if (!status.ok()) return status;
  return teller.Take();
}

}  // namespace parley
