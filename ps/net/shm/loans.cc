#include "ps/net/shm/loans.h"

#include <sys/socket.h>

#include <utility>

namespace parley::shm {

void ReturnInbox::Return(Returned loan) {
  std::lock_guard lock(mu_);
  if (env_ == nullptr) return;
  returned_.push_back(loan);
  filled_.store(true, std::memory_order_release);
  // Under the lock, so that the Env is still there.
  if (std::exchange(asleep_, false)) env_->Post([] {});
}

bool ReturnInbox::Take(std::vector<Returned>* out) {
  if (!filled_.load(std::memory_order_acquire)) return false;
  std::lock_guard lock(mu_);
  out->insert(out->end(), returned_.begin(), returned_.end());
  returned_.clear();
  filled_.store(false, std::memory_order_relaxed);
  return true;
}

bool ReturnInbox::PrepareToSleep() {
  std::lock_guard lock(mu_);
  asleep_ = returned_.empty();
  return asleep_;
}

void ReturnInbox::Close() {
  std::lock_guard lock(mu_);
  env_ = nullptr;
  returned_.clear();
}

Link::~Link() {
  if (socket != nullptr) shutdown(socket->get(), SHUT_WR);
}

Buffer Borrow(std::shared_ptr<Link> link, uint32_t arena, uint64_t offset, uint64_t size,
              uint64_t token) {
  std::byte* const data = link->arenas[arena].data() + offset;
  const bool on_device = link->arenas[arena].on_device();
  return Buffer::Wrap(
      data, size,
      [link = std::move(link), token] {
        link->inbox->Return({link->connection, token});
      },
      on_device);
}

}  // namespace parley::shm
