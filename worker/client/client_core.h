// ClientCore: what the tables of one PsClient share. Owned by it; everything on the loop.
#ifndef PARLEY_WORKER_CLIENT_CLIENT_CORE_H_
#define PARLEY_WORKER_CLIENT_CLIENT_CORE_H_

#include <cstdint>
#include <vector>

#include "ps/base/buffer.h"
#include "ps/base/device_memory.h"
#include "ps/base/env.h"
#include "worker/client/known_lists.h"
#include "worker/client/ps_client.h"
#include "worker/client/shard_queues.h"

namespace parley {

// Partitions named in one message; well below what a transport takes.
inline constexpr size_t kMaxPartsPerMessage = 4096;

struct ClientCore {
  Env* env = nullptr;
  ShardQueues* queues = nullptr;
  BufferPool* pool = nullptr;
  PayloadMover* mover = nullptr;  // null: parameters lie in host memory
  uint64_t epoch = 0;             // of the partition map
  std::vector<uint32_t> shards;   // that it names: their numbers in the queues
  uint64_t max_request_bytes = 0;
  uint64_t max_part_bytes = 0;
  std::vector<KnownLists> known;  // by shard; empty for those that are not in the map
  PsClient::Counters counters;
};

// A table's number, and by partition which shard owns it: its number in the queues.
struct TableRoute {
  uint32_t table = 0;
  std::vector<uint32_t> owner;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_CLIENT_CORE_H_
