// TableRequest: a PUSH, PULL or PUSH_PULL whose partitions and keys have been found; what pushes
// are taken from and the Responder answers. A LEAVE, too, while its answer waits.
//
// A sparse part names its rows by a list of keys in the payload, by the digest of a list that was
// sent before, or by both, which asks to remember the list. Not thread-safe.
#ifndef PARLEY_PS_SERVER_TABLE_REQUEST_H_
#define PARLEY_PS_SERVER_TABLE_REQUEST_H_

#include <vector>

#include "absl/status/status.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/server/hosted_table.h"
#include "ps/server/key_cache.h"
#include "ps/wire/frame.h"
#include "ps/wire/payload.h"

namespace parley {

struct TableRequest {
  // Float32 bytes that one request may make this shard hold or answer: few bytes of keys or of
  // encoded values stand for many.
  static constexpr uint64_t kMaxValueBytes = kMaxPayloadBytes;

  // The tick that a pull, or the second half of a PUSH_PULL, is for.
  uint64_t pull_tick() const {
    return header.kind() == pb::PUSH_PULL ? header.pull_tick() : header.tick();
  }

  pb::FrameHeader header;
  HostedTable* table = nullptr;
  // By part.
  std::vector<HostedPartition*> partitions;
  std::vector<PartPayload> payload;  // keys: the list, wherever it was found; values: as they came
  // A push that was taken: what its acknowledgement waits for, by part; none if for nothing.
  std::vector<HostedPartition::Ticket> tickets;
};

// Finds the partitions, each named once, and the keys of every part, which belong to it and match
// their digest. Takes the header out of `frame` if all is good, else leaves it as it is. Lists that
// came with their digest are in `cache`, the sender's, from then on. kInvalidArgument names the
// part and what is wrong with it. kFailedPrecondition: another shard is primary of a partition.
// kNotFound: a digest that is not known; the sender should send the lists. After an error `request`
// holds anything.
absl::Status ResolveRequest(Frame* frame, HostedTable* table, KeyCache* cache,
                            TableRequest* request);

}  // namespace parley

#endif  // PARLEY_PS_SERVER_TABLE_REQUEST_H_
