// Connection: one pair of nodes that exchange frames through shared memory.
//
// A frame is a run of parts in the ring: the encoded header first, then each payload buffer. Small
// parts, and the header, are copied into the ring and out of it. A larger payload that lies in this
// node's arenas is lent: a Reference travels, the Buffer is kept until the peer's release of its
// token comes back. One that lies elsewhere is first copied into an arena, or through the ring if
// there is none. So a large payload of a node that makes its tensors in arenas is never copied -
// but for what the peer holds more than max_lent_bytes with: that goes through the ring. It does
// not wait for releases, which may depend on it: a step is applied when all of it is there.
//
// Payload in a GPU's memory cannot be copied by anybody here. It is lent whatever its size and
// whatever is lent already, which it counts towards; its own bound are the arenas. Where it cannot
// be lent the connection is given up, and says why.
//
//   state     event                                     next
//   greeting  the peer's greeting is good               open
//   open      Close, or the peer's kBye                 closing: no frames, releases only
//   closing   nothing is lent to either side            ended
//   any       the socket's end: the peer has let go     ended, once the ring is read
//   any       the peer lies, or is silent in greeting   ended, at once; what is lent is kept
//                                                       until the peer has let go (custody.h)
//
// What the peer says is checked before it is used: sizes and places of records (ring.h), positions,
// tokens, arenas (sealed, of the size said), references inside them. The peer can change its memory
// at any time; what is decided upon is read once. The bytes of a reference stay the peer's, and
// whoever uses them must not be hurt if they change (shm_transport.h).
//
// Bounds: the ring; queue_frames waiting for room in it; max_lent_bytes lent; what a frame may
// hold.
//
// Wake-ups go by an eventfd of this connection alone. Both sides can fill it or change its flags,
// since it is one open file; so a peer that fills it mutes itself and nobody else, and whoever
// writes looks first whether it could block.
//
// Thread-safety: none, everything on the loop. Buffers it hands out may die anywhere (loans.h).
#ifndef PARLEY_PS_NET_SHM_CONNECTION_H_
#define PARLEY_PS_NET_SHM_CONNECTION_H_

#include <bitset>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/arenas.h"
#include "ps/base/buffer.h"
#include "ps/base/device_memory.h"
#include "ps/base/ids.h"
#include "ps/base/shared_memory.h"
#include "ps/net/shm/custody.h"
#include "ps/net/shm/loans.h"
#include "ps/net/shm/ring.h"
#include "ps/net/shm/segment.h"
#include "ps/net/shm/socket.h"

namespace parley::shm {

// Arenas of a node by number: first those of host memory, then those of a GPU's.
inline constexpr uint32_t kFirstDeviceArena = Arenas::kMaxArenas;
inline constexpr uint32_t kArenaNumbers = 2 * Arenas::kMaxArenas;

// What is said of a number of the peer's that is greater than allowed.
absl::Status Lie(const char* what, uint64_t value, uint64_t bound);

struct Limits {
  size_t ring_bytes = 0;
  int queue_frames = 0;
  size_t max_part_bytes = 0;
  size_t max_parts = 0;
  size_t max_lent_bytes = 0;
  size_t lend_bytes = 0;  // a payload of fewer is copied through the ring
};

// What the connections of one transport share; outlives them.
struct Shared {
  NodeId self = kNoNode;
  Limits limits;
  std::shared_ptr<const Arenas> arenas;
  std::shared_ptr<const Arenas> device_arenas;  // null: no such payload is sent
  std::shared_ptr<DeviceMapper> mapper;         // null: none is received
  BufferPool* staging = nullptr;   // on the arenas: for payload that does not lie there
  BufferPool* received = nullptr;  // for parts that came through the ring
  std::shared_ptr<ReturnInbox> inbox;
};

// A frame on its way into the ring.
struct Outgoing {
  std::string header;  // encoded
  std::vector<Buffer> payload;
  // How much of it is in the ring: parts, the header being the first; bytes of the next one.
  size_t parts_done = 0, bytes_done = 0;
};
// Frames that wait, first to leave in front. It outlives a connection that breaks.
using SendQueue = std::deque<Outgoing>;

// A frame as it came.
struct Incoming {
  std::string header;  // encoded
  std::vector<Buffer> payload;
  std::vector<bool> borrowed;  // by payload buffer: it is the peer's memory
};

class Connection {
 public:
  using Sink = absl::FunctionRef<void(Incoming)>;

  // Greets the peer over the socket. `peer` is whom the other end must be; kNoNode: it says so
  // itself. The status says why there can be no connection.
  static absl::StatusOr<std::unique_ptr<Connection>> Create(const Shared* shared, uint64_t id,
                                                            Fd socket, NodeId peer,
                                                            std::shared_ptr<SendQueue> queue);
  ~Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  uint64_t id() const { return id_; }
  NodeId peer() const { return peer_; }
  int socket_fd() const { return link_->socket->get(); }
  // What the peer wakes this node with: an eventfd that need not be read.
  int wake_fd() const { return own_wake_.get(); }
  bool greeted() const { return peer_control_ != nullptr; }
  bool open() const { return greeted() && !closing() && !ended_; }
  bool closing() const { return said_bye_ || heard_bye_; }
  // The peer is gone and all it said has been read, or both sides are done.
  bool finished() const;
  // After Close: everything that waited, and the goodbye, is in the ring.
  bool said_all() const { return ended_ || !Waits(); }

  // Takes what the socket has. An error, here and below: the peer lied, and the connection must be
  // given up.
  absl::Status OnSocket();

  // True if Receive or Flush would find something to do. A few loads.
  bool HasNews() const;

  // Hands up to `max_frames` frames to the sink, which may call Close. True if there was any.
  absl::StatusOr<bool> Receive(int max_frames, Sink sink);

  // Queues a frame behind those that wait. kResourceExhausted: queue_frames wait already.
  absl::Status Send(Outgoing frame);

  // Writes releases and waiting frames as far as there is room.
  absl::Status Flush();

  // The peer gets its memory back.
  void Release(uint64_t token) { releases_.push_back(token); }
  // Releases have been written without waking the sleeping peer for them.
  bool owes_wake_up() const { return owes_wake_up_; }
  void WakeUp();

  // No more frames in either direction.
  void Close();

  // Around the loop's sleep. It may sleep if HasNews is false after PrepareToSleep.
  void PrepareToSleep();
  void Awake();

  size_t lent_bytes() const { return lent_bytes_; }
  // What the peer may still read although this connection is given up; empty if it is known to have
  // let go. Nothing is sent or received any more.
  Kept TakeLent();

 private:
  struct Lent {
    Buffer buffer;  // empty: the slot is free
    uint32_t generation = 0;
  };
  struct Arriving {  // a frame, part by part
    Incoming frame;
    bool has_header = false;  // else the header is the part that is being received
    size_t missing = 0;       // bytes of that part
    bool more_parts = false;  // follow it
  };

  Connection(const Shared* shared, uint64_t id, NodeId peer, std::shared_ptr<SendQueue> queue);
  absl::Status OnGreeting(Message message);
  absl::Status OnArena(Message message);
  absl::Status MapDeviceArena(const ArenaNotice& notice, const Fd& fd);

  bool HasUnread() const;
  bool SendsFrames() const { return greeted() && !heard_bye_ && !ended_; }
  // Something waits for room in the ring.
  bool Waits() const;
  absl::StatusOr<std::byte*> Begin(size_t body_bytes);
  absl::Status WriteReleases();
  absl::StatusOr<bool> WriteFrame(Outgoing* frame);
  absl::StatusOr<bool> WriteBytes(std::string_view bytes, bool payload, uint16_t flags,
                                  size_t* done);
  absl::StatusOr<bool> WriteReference(const Buffer& buffer, Arenas::Place place, uint16_t flags);
  absl::StatusOr<bool> PrepareToLend(Buffer* buffer, Arenas::Place* place);
  absl::Status PrepareToLendDevice(const Buffer& buffer, Arenas::Place* place);
  bool Lends(const Buffer& buffer, Arenas::Place* place) const;
  void Stage(Buffer* buffer);
  absl::Status AnnounceArena(uint32_t number);
  void Publish(bool urgent);

  // Each takes in one record; true if that completes a part.
  absl::StatusOr<bool> OnRecord(const Record& record);
  absl::StatusOr<bool> OnFirstBytes(const Record& record);
  absl::StatusOr<bool> OnMoreBytes(absl::Span<const std::byte> bytes);
  absl::StatusOr<bool> OnReference(const Record& record);
  absl::Status OnRelease(const Record& record);
  void PublishRead();

  // Constant after the greeting.
  const Shared* const shared_;
  const uint64_t id_;
  NodeId peer_;
  std::shared_ptr<Link> link_;
  SharedMemory own_segment_, peer_segment_;
  Control* own_control_ = nullptr;
  const Control* peer_control_ = nullptr;
  Fd own_wake_, peer_wake_;

  bool said_bye_ = false, bye_written_ = false;  // no frame follows from here
  bool heard_bye_ = false;                       // nor from there
  bool ended_ = false;                           // the socket is at its end

  // Sending.
  std::shared_ptr<SendQueue> queue_;
  std::unique_ptr<RingWriter> writer_;
  uint64_t published_ = 0;
  uint64_t peer_read_ = 0;
  std::vector<uint64_t> releases_;
  std::vector<Lent> lent_;
  std::vector<uint32_t> free_slots_;
  size_t lent_bytes_ = 0, lent_count_ = 0;
  std::bitset<kArenaNumbers> announced_;
  bool owes_wake_up_ = false;
  uint32_t woken_ = 0;           // the peer's sleep that it was last woken from
  bool wake_up_blocks_ = false;  // the peer has seen to it that its eventfd may block

  // Receiving.
  std::unique_ptr<RingReader> reader_;
  uint64_t published_read_ = 0;
  Arriving arriving_;
  size_t borrowed_ = 0;  // references not released yet
};

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_CONNECTION_H_
