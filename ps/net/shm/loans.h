// What a node has been lent by its peers, and how it gives it back.
//
// A received reference becomes a Buffer over the peer's memory. When the last Buffer goes, on
// whichever thread, its token lies in the ReturnInbox until the loop sends it home. A Link is what
// such Buffers keep alive: the mappings they lie in, and the socket, so that the peer, which takes
// the socket's end for "nobody reads my memory any more", is right even if this node's transport
// is gone. Custody (custody.h) may hold the socket longer, to hear of the peer's end; so a Link
// that goes says the end in this direction, whoever else holds the socket.
//
// Thread-safety: ReturnInbox::Return from any thread, also after Close; the rest on the loop.
#ifndef PARLEY_PS_NET_SHM_LOANS_H_
#define PARLEY_PS_NET_SHM_LOANS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ps/base/buffer.h"
#include "ps/base/device_memory.h"
#include "ps/base/env.h"
#include "ps/base/shared_memory.h"
#include "ps/net/shm/socket.h"

namespace parley::shm {

struct Returned {
  uint64_t connection = 0;  // which of this node's
  uint64_t token = 0;
};

class ReturnInbox {
 public:
  // Wakes `env` when something is returned while its loop sleeps.
  explicit ReturnInbox(Env* env) : env_(env) {}

  void Return(Returned loan);

  // Moves all there is to the end of `out`; true if there was anything.
  bool Take(std::vector<Returned>* out);
  // False if something is there.
  bool PrepareToSleep();
  // The Env is going; what is returned from now on is forgotten.
  void Close();

 private:
  std::atomic<bool> filled_{false};  // to look without the lock
  std::mutex mu_;                    // guards the rest; held for a push or a swap
  Env* env_;
  bool asleep_ = false;
  std::vector<Returned> returned_;
};

// An arena of a peer, mapped as long as this lives.
class PeerArena {
 public:
  PeerArena() = default;
  explicit PeerArena(SharedMemory memory) : host_(std::move(memory)) {}
  // `mapper` has mapped it.
  PeerArena(std::shared_ptr<DeviceMapper> mapper, std::byte* data, size_t size)
      : mapper_(std::move(mapper)), device_(data), device_size_(size) {}
  PeerArena(PeerArena&& other) noexcept { *this = std::move(other); }
  PeerArena& operator=(PeerArena&& other) noexcept {
    std::swap(host_, other.host_);
    std::swap(mapper_, other.mapper_);
    std::swap(device_, other.device_);
    std::swap(device_size_, other.device_size_);
    return *this;
  }
  ~PeerArena() {
    if (mapper_ != nullptr) mapper_->Unmap(device_, device_size_);
  }

  bool empty() const { return data() == nullptr; }
  bool on_device() const { return mapper_ != nullptr; }
  std::byte* data() const { return on_device() ? device_ : host_.data(); }
  size_t size() const { return on_device() ? device_size_ : host_.size(); }

 private:
  SharedMemory host_;
  std::shared_ptr<DeviceMapper> mapper_;  // null: it is host memory
  std::byte* device_ = nullptr;
  size_t device_size_ = 0;
};

struct Link {
  Link() = default;
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  std::shared_ptr<Fd> socket;
  uint64_t connection = 0;
  std::shared_ptr<ReturnInbox> inbox;
  std::vector<PeerArena> arenas;  // by number; those not announced are empty
};

// A Buffer over bytes of one of the link's arenas. REQUIRES: they lie in it.
Buffer Borrow(std::shared_ptr<Link> link, uint32_t arena, uint64_t offset, uint64_t size,
              uint64_t token);

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_LOANS_H_
