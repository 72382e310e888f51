// HostedTable: one table as one shard has it - the partitions that live here, and what they share:
// codecs, the norm of the whole gradient.
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_HOSTED_TABLE_H_
#define PARLEY_PS_SERVER_HOSTED_TABLE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/ids.h"
#include "ps/codec/payload_codec.h"
#include "ps/server/hosted_partition.h"
#include "ps/server/norm_exchange.h"
#include "ps/server/server_probe.h"
#include "ps/table/optimizer.h"

namespace parley {

class HostedTable {
 public:
  // What the tables of a shard have in common; the pointers outlive them.
  struct Context {
    NodeId self = kNoNode;
    pb::Consistency consistency;
    BufferPool* pool = nullptr;
    ServerProbe* probe = nullptr;  // may be null
    PushCounters* counters = nullptr;
  };

  // The partitions of assignment.table(`index`) that its map gives to context.self, with their
  // first weights. `request_norm` is asked for dense tables that are clipped by norm.
  // kInvalidArgument names what cannot be: a table that cannot be laid out, a map that does not
  // give each partition an owner, an optimizer, a codec, or a codec of pulls that the table or the
  // consistency does not allow. Others as TablePartition::Create.
  static absl::StatusOr<std::unique_ptr<HostedTable>> Create(
      const pb::Assignment& assignment, int index, const Context& context,
      HostedPartition::NormRequest request_norm);

  // How `norms` is to be made on shard `self` of this assignment; its deadline is the caller's.
  NormExchange::Setup NormSetup(const pb::Assignment& assignment, NodeId self) const;

  // The partition if it lives here, else null.
  HostedPartition* Find(uint32_t partition) const {
    return partition < partitions_.size() ? partitions_[partition].get() : nullptr;
  }
  // Those that live here, ascending.
  const std::vector<HostedPartition*>& hosted() const { return hosted_; }

  // "table 'emb': 4 of 16 partitions, rows of 8 x FP16, pushes one_bit, pulls fp16"; for the log.
  std::string Describe() const;

  uint32_t id() const { return spec_.id(); }
  bool sparse() const { return spec_.has_sparse(); }
  bool clips() const { return clip_ != nullptr; }
  // Null: values travel as they are.
  const PayloadCodec* push_codec() const { return push_codec_.get(); }

  // Made by the shard, which has the network for it.
  std::unique_ptr<NormExchange> norms;

 private:
  explicit HostedTable(const pb::TableSpec& spec) : spec_(spec) {}
  absl::Status MakeCodecs(const pb::Consistency& consistency);
  absl::Status MakePartitions(const pb::Assignment& assignment, const pb::TableMap& owners,
                              const Context& context);

  const pb::TableSpec spec_;
  std::unique_ptr<PayloadCodec> push_codec_, pull_codec_;
  std::unique_ptr<Optimizer> clip_;  // of a dense table that is clipped by norm
  HostedPartition::NormRequest request_norm_;
  std::vector<std::unique_ptr<HostedPartition>> partitions_;  // by number; null: elsewhere
  std::vector<HostedPartition*> hosted_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_HOSTED_TABLE_H_
