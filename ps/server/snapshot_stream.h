// A PartitionSnapshot as one run of bytes that travels in messages: cut by SnapshotReader at the
// primary, put together by SnapshotAssembly at a copy.
//
// The run is the bytes of the arrays, one after another; nothing here looks into them. Not
// thread-safe.
#ifndef PARLEY_PS_SERVER_SNAPSHOT_STREAM_H_
#define PARLEY_PS_SERVER_SNAPSHOT_STREAM_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/server/hosted_partition.h"
#include "ps/wire/frame.h"

namespace parley {

class SnapshotReader {
 public:
  // Of one message: so little that heartbeats and requests come in between.
  static constexpr uint64_t kMaxMessageBytes = uint64_t{8} << 20;
  static constexpr int kMaxMessageParts = 1024;

  explicit SnapshotReader(PartitionSnapshot snapshot);

  // Body, parts and payload of the next SYNC; the payload refers to the snapshot's buffers, which
  // are let go here. REQUIRES: !done().
  void Next(uint32_t partition, uint64_t attempt, Frame* frame);

  bool done() const { return begun_ && offset_ == first_.total_bytes(); }
  uint64_t index() const { return first_.index(); }
  uint64_t total_bytes() const { return first_.total_bytes(); }

 private:
  pb::PartitionState first_;
  std::vector<Buffer> arrays_;
  uint64_t offset_ = 0;  // of the whole run
  size_t array_ = 0, array_offset_ = 0;
  bool begun_ = false;
};

class SnapshotAssembly {
 public:
  // A snapshot that says it is larger is refused.
  static constexpr uint64_t kMaxBytes = uint64_t{64} << 30;
  static constexpr int kMaxArrays = 65536;
  // Arrays up to this are taken as a whole, and never copied again.
  static constexpr uint64_t kFirstBytes = 2 * SnapshotReader::kMaxMessageBytes;

  // Begins with what the first message says, forgetting whatever was here. kInvalidArgument: sizes
  // that do not add up or are out of bounds.
  absl::Status Begin(pb::PartitionState first);

  // Takes a copy of the payload of the message at received(): what comes may lie in a peer's
  // memory. Of a large array no more is taken than kFirstBytes, or twice what has come of it.
  // kInvalidArgument: more than was announced. Throws std::bad_alloc; after either it is not to be
  // used. REQUIRES: Begin was OK.
  absl::Status Add(const std::vector<Buffer>& payload, BufferPool* pool);

  uint64_t received() const { return received_; }
  bool complete() const { return received_ == first_.total_bytes(); }
  // REQUIRES: complete().
  PartitionSnapshot Take();

 private:
  void MakeRoom(uint64_t bytes, BufferPool* pool);

  pb::PartitionState first_;
  std::vector<uint64_t> sizes_;  // of the arrays
  std::vector<Buffer> arrays_;
  size_t array_ = 0;     // that the next byte belongs to
  uint64_t filled_ = 0;  // bytes of it that are here
  uint64_t received_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_SNAPSHOT_STREAM_H_
