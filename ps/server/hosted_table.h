// HostedTable: one table as one shard has it - the partitions that it is primary of, its copies of
// others, and what they share: codecs, the norm of the whole gradient.
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_HOSTED_TABLE_H_
#define PARLEY_PS_SERVER_HOSTED_TABLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/ids.h"
#include "ps/codec/payload_codec.h"
#include "ps/server/backup_partition.h"
#include "ps/server/hosted_partition.h"
#include "ps/server/norm_exchange.h"
#include "ps/server/server_probe.h"
#include "ps/table/gpu_place.h"
#include "ps/table/optimizer.h"

namespace parley {

class HostedTable {
 public:
  // What the tables of a shard have in common; the pointers outlive them.
  struct Context {
    pb::Consistency consistency;
    uint32_t check_every = 0;  // as HostedPartition::Setup's
    // A worker that is lost is replaced: it may have to read again what was overwritten.
    bool replaces_workers = false;
    BufferPool* pool = nullptr;
    GetGpuPlace place;             // null: there is none
    ServerProbe* probe = nullptr;  // may be null
    PushCounters* counters = nullptr;
  };

  // Without partitions so far. `request_norm` is asked for dense tables that are clipped by norm.
  // kInvalidArgument names what cannot be: a table that cannot be laid out, an optimizer, a codec,
  // or a codec of pulls that the table or the consistency does not allow.
  static absl::StatusOr<std::unique_ptr<HostedTable>> Create(
      const pb::TableSpec& spec, const Context& context, HostedPartition::NormRequest request_norm);

  // Partition `index` with its first weights, for workers of these incarnations; not hosted yet.
  // Errors as TablePartition::Create.
  absl::StatusOr<std::unique_ptr<HostedPartition>> Make(
      uint32_t index, const std::vector<uint32_t>& worker_incarnations);

  // This shard is primary of it. REQUIRES: it is not hosted.
  void Host(std::unique_ptr<HostedPartition> partition);
  // It is primary no more. REQUIRES: it is hosted.
  std::unique_ptr<HostedPartition> Release(uint32_t partition);

  // How `norms` is to be made on shard `self` of this map; its deadline is the caller's.
  NormExchange::Setup NormSetup(const pb::PartitionMap& map, NodeId self) const;

  // The partition if this shard is its primary, else null.
  HostedPartition* Find(uint32_t partition) const {
    return partition < partitions_.size() ? partitions_[partition].get() : nullptr;
  }
  // Those that this shard is primary of, ascending.
  const std::vector<HostedPartition*>& hosted() const { return hosted_; }
  // Of the whole table, wherever they are.
  uint32_t partitions() const { return static_cast<uint32_t>(partitions_.size()); }

  // "table 'emb': 4 of 16 partitions, rows of 8 x FP16, pushes one_bit, pulls fp16"; for the log.
  std::string Describe() const;

  const pb::TableSpec& spec() const { return spec_; }
  BufferPool* pool() const { return context_.pool; }
  uint32_t id() const { return spec_.id(); }
  bool sparse() const { return spec_.has_sparse(); }
  // Values may lie in a GPU's memory, and pushes bring them so.
  bool on_device() const { return !sparse() && spec_.compute().placement() == pb::Compute::GPU; }
  bool clips() const { return clip_ != nullptr; }
  // Null: values travel as they are.
  const PayloadCodec* push_codec() const { return push_codec_.get(); }

  // Made by the shard, which has the network for it.
  std::unique_ptr<NormExchange> norms;
  // By partition: copies of what other shards are primary of.
  std::map<uint32_t, std::unique_ptr<BackupPartition>> backups;
  // By partition: the step of the checkpoint that its changes are kept track of since.
  std::map<uint32_t, uint64_t> marked;

 private:
  HostedTable(const pb::TableSpec& spec, const Context& context) : spec_(spec), context_(context) {}
  absl::Status MakeCodecs();

  const pb::TableSpec spec_;
  const Context context_;
  std::unique_ptr<PayloadCodec> push_codec_, pull_codec_;
  std::unique_ptr<Optimizer> clip_;  // of a dense table that is clipped by norm
  HostedPartition::NormRequest request_norm_;
  std::vector<std::unique_ptr<HostedPartition>> partitions_;  // by number; null: elsewhere
  std::vector<HostedPartition*> hosted_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_HOSTED_TABLE_H_
