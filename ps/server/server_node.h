// ServerNode: one shard of a server - a single event loop that owns some partitions of every table
// and nothing else.
//
// It joins the job, is assigned its partitions, then answers pushes and pulls: replay guard,
// aggregator, update, and the consistency policy in front of reads. Of some partitions it is the
// primary, which sends what it does to their copies on other shards, of others a copy that may be
// promoted; which is which changes with every map of the scheduler's (decision 014). More cores
// means more shards in a process, never a lock. Sees the world through Env, Transport and
// FileSystem alone, so the same code runs in a process and in the simulated cluster.
#ifndef PARLEY_PS_SERVER_SERVER_NODE_H_
#define PARLEY_PS_SERVER_SERVER_NODE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/net/transport.h"
#include "ps/server/key_cache.h"
#include "ps/server/server_probe.h"
#include "ps/table/gpu_place.h"

namespace parley {

class ServerNode {
 public:
  struct Options {
    std::string scheduler;                // endpoint
    std::string job;                      // empty: whatever runs there
    std::string node_name;                // for people: "host:pid/shard"
    uint64_t process = 0;                 // equal for all shards of a process; not 0
    uint32_t shard = 0;                   // index within the process
    std::optional<uint32_t> wanted_rank;  // given if it is free
    bool spare = false;                   // wants no place of its own: waits until it is needed
    absl::Duration join_timeout = absl::Seconds(60);
    // Where weights and answers are made, so that a transport may lend them out without a copy;
    // outlives the node. Null: a pool of its own.
    BufferPool* pool = nullptr;
    // Makes the place for tables on a GPU, once, when the first of them is assigned. Null: such
    // tables are refused.
    std::function<absl::StatusOr<std::unique_ptr<GpuPlace>>(pb::Compute::Device)> make_gpu_place;
    // Remembered of each worker's lists of keys. Less makes workers send them again more often.
    size_t key_cache_bytes = KeyCache::kMaxBytes;
    // Where checkpoints are; outlives the Env. Null: FileSystem::Posix().
    FileSystem* files = nullptr;
    ServerProbe* probe = nullptr;                      // outlives the node; may be null
    absl::AnyInvocable<void(const std::string&)> log;  // one line for the log; empty = silent
  };

  // `env` and `transport` must outlive this. `done` is called once, on the loop: OK when the
  // scheduler ended the job well, else why this shard ends.
  ServerNode(Env* env, Transport* transport, Options options,
             absl::AnyInvocable<void(absl::Status)> done);
  ~ServerNode();

  void Start();

  // Ends this node with `status` (a signal): tells the scheduler and calls done.
  void Stop(const absl::Status& status);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_SERVER_NODE_H_
