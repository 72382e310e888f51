// What ServerNode is inside: the members of a shard, and the handlers between them. Included by its
// own sources alone.
#ifndef PARLEY_PS_SERVER_SERVER_NODE_IMPL_H_
#define PARLEY_PS_SERVER_SERVER_NODE_IMPL_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/server/checkpoint_desk.h"
#include "ps/server/hosted_table.h"
#include "ps/server/key_cache.h"
#include "ps/server/partition_roles.h"
#include "ps/server/replication.h"
#include "ps/server/responder.h"
#include "ps/server/restore_task.h"
#include "ps/server/row_counter.h"
#include "ps/server/server_node.h"
#include "ps/server/table_request.h"
#include "ps/table/gpu_place.h"

namespace parley {

class ServerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        transport_(transport),
        options_(std::move(options)),
        done_(std::move(done)),
        rpc_(env, transport),
        link_(env, transport, &rpc_, LinkOptions(), LinkHandlers()),
        pool_(options_.pool != nullptr ? options_.pool : &own_pool_),
        files_(options_.files != nullptr ? options_.files : FileSystem::Posix()),
        responder_(env, &rpc_),
        row_counter_(env),
        replication_(env, &rpc_, ReplicationHooks()),
        roles_(transport->self(), &replication_, RoleHooks()),
        checkpoints_(env, &rpc_, files_) {}

  void Start();
  void Stop(const absl::Status& status) { link_.Fail(status); }

 private:
  // One worker, by its rank.
  struct Worker {
    NodeId node = kNoNode;  // who may push, pull and leave as that worker
    uint32_t incarnation = 0;
    std::unique_ptr<KeyCache> keys;
  };

  template <typename Handler>
  void Handle(pb::Kind kind, Handler handler) {
    rpc_.Handle(kind, [this, kind, handler](NodeId from, Frame frame) {
      const uint32_t table = frame.header.table();
      if (kind != pb::PUSH && kind != pb::PUSH_PULL && OnDevice(frame)) {
        return rpc_.ReplyError(
            from, frame.header,
            absl::InvalidArgumentError(absl::StrFormat(
                "the payload of a %s lies in a GPU's memory, allowed is that for pushes",
                pb::Kind_Name(kind))));
      }
      OrEnd(kind, table, [&] { handler(from, std::move(frame)); });
    });
  }

  // Does `work`, in which updates may happen. Should memory run out, one may be half applied:
  // nobody is answered from it any more, and the shard ends.
  template <typename Work>
  void OrEnd(pb::Kind kind, uint32_t table, Work work) {
    if (out_of_memory_) return;
    if (inside_) return work();  // the outermost must not go on either
    inside_ = true;
    try {
      work();
    } catch (const std::bad_alloc& failure) {
      out_of_memory_ = true;
      const absl::Status status = StatusOf(failure, "out of memory");
      link_.Fail(absl::Status(status.code(),
                              absl::StrFormat("%s in a %s about table %d; an update may be half "
                                              "applied, so this shard ends",
                                              status.message(), pb::Kind_Name(kind), table)));
    }
    inside_ = false;
  }

  static bool OnDevice(const Frame& frame) {
    return std::any_of(frame.payload.begin(), frame.payload.end(),
                       [](const Buffer& buffer) { return buffer.on_device(); });
  }
  // Where this shard's tables on a GPU are; makes it when the first of them comes.
  absl::StatusOr<GpuPlace*> PlaceFor(const pb::Compute& compute);

  // What the members tell this.
  SchedulerLink::Options LinkOptions();
  SchedulerLink::Handlers LinkHandlers();
  Replication::Hooks ReplicationHooks();
  PartitionRoles::Hooks RoleHooks();
  void Log(const std::string& line) {
    if (options_.log) options_.log(line);
  }
  void OnWelcome(const pb::Welcome& welcome);

  // Assignments (server_assignment.cc).
  void OnAssign(NodeId from, const Frame& request);
  absl::Status CheckAssignment(const pb::Assignment& assignment) const;
  absl::Status Begin(const pb::Assignment& assignment);
  void Restore(const pb::Assignment& assignment);
  pb::Assigned Lacking(const pb::Assignment& assignment) const;
  absl::Status Move(const pb::Assignment& assignment);
  void Activate(const pb::Assignment& assignment);
  void FinishAssign(NodeId from, const pb::FrameHeader& request, const absl::Status& status);
  void AnswerAssign(NodeId from, const pb::FrameHeader& request);
  void GiveUp(const std::set<const HostedPartition*>& leaving);
  void TakeWorkers(const pb::Assignment& assignment);
  absl::Status ConnectShards(const pb::Assignment& assignment);
  void DisconnectShards(const pb::Assignment& assignment);
  void LogAssignment();
  Worker MakeWorker(NodeId node, uint32_t incarnation) {
    return {node, incarnation, std::make_unique<KeyCache>(&own_pool_, options_.key_cache_bytes)};
  }
  void ConnectNorms(const pb::Assignment& assignment, HostedTable* table);

  // Requests (server_node.cc).
  void ApplyNorm(const HostedTable& table, NormGroup group, double total);
  absl::Status CheckWorker(NodeId from, const pb::FrameHeader& header) const;
  absl::Status AtEpoch(const pb::FrameHeader& header, absl::StatusCode code) const;
  absl::Status CheckShard(const pb::FrameHeader& header) const;
  absl::StatusOr<HostedTable*> FindTable(const pb::FrameHeader& header) const;
  void OnTableRequest(NodeId from, Frame frame);
  bool IsHeld(const TableRequest& request) const;
  void OnApplied();
  absl::Status Resolve(Frame* frame, TableRequest* request);
  void OnLeave(NodeId from, const Frame& request);
  void OnNorm(NodeId from, const Frame& request);
  void OnReplica(NodeId from, const Frame& request);
  void OnCheckpoint(NodeId from, const Frame& request);
  std::string FileName() const;
  pb::Heartbeat MakeHeartbeat();
  void OnCount(NodeId from, const Frame& request);
  pb::ServerCounts Counts() const;

  // Constant after construction.
  Env* const env_;
  Transport* const transport_;
  Options options_;
  absl::AnyInvocable<void(absl::Status)> done_;

  // Owned by the loop.
  Rpc rpc_;
  SchedulerLink link_;
  uint64_t job_ = 0;
  pb::Experiment experiment_;
  uint32_t rank_ = 0;        // of the server process
  uint64_t epoch_ = 0;       // 0: no partitions yet
  uint64_t generation_ = 0;  // of them, or of those that are being read
  BufferPool own_pool_;
  BufferPool* const pool_;
  FileSystem* const files_;
  std::unique_ptr<GpuPlace> gpu_place_;  // null: none so far; outlives the partitions
  std::vector<Worker> workers_;          // by rank
  PushCounters counters_;
  bool inside_ = false;         // OrEnd
  bool out_of_memory_ = false;  // ending; the partitions are not to be used
  Responder responder_;
  RowCounter row_counter_;
  Replication replication_;
  PartitionRoles roles_;
  CheckpointDesk checkpoints_;            // refers to partitions, as what follows does
  std::set<NodeId> connected_;            // other shards
  std::unique_ptr<RestoreTask> restore_;  // null: none is under way
  pb::Assignment restoring_;              // what it is for
  pb::FrameHeader assign_;                // the last request that waits for it
  absl::Duration apply_time_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_SERVER_NODE_IMPL_H_
