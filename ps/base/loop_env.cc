#include "ps/base/loop_env.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <functional>
#include <limits>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr int64_t kNsPerMs = 1'000'000;
constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Rounds with work after which descriptors are looked at without going to sleep.
constexpr int kBusyRounds = 16;

// Of spinning: looks into memory for one at descriptors; what a find and a failure are worth; idle
// periods between trials while it has found nothing.
constexpr int kLooksPerSpinRound = 32;
constexpr int kCreditOfFind = 4;
constexpr int kMaxSpinCredit = 16;
constexpr int kIdlePeriodsBeforeTrial = 16;

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

int OrThrow(int fd, const char* what) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), what);
  return fd;
}

}  // namespace

LoopEnv::LoopEnv(LoopEnvOptions options)
    : options_(options),
      spin_ns_(absl::ToInt64Nanoseconds(options.spin)),
      start_ns_(MonotonicNs()) {
  std::random_device entropy;
  random_state_ = uint64_t{entropy()} << 32 | entropy();
  epoll_fd_ = OrThrow(epoll_create1(EPOLL_CLOEXEC), "event loop: epoll_create1");
  wake_fd_ = OrThrow(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "event loop: eventfd");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake_fd_;
  OrThrow(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event), "event loop: epoll_ctl");
  if (options_.offload_threads > 0) pool_ = std::make_unique<ThreadPool>(options_.offload_threads);
}

LoopEnv::~LoopEnv() {
  pool_.reset();
  close(wake_fd_);
  close(epoll_fd_);
}

void LoopEnv::Run() {
  while (!stopped()) {
    bool worked = RunPosted();
    worked |= RunTimers();
    worked |= RunPollers();
    worked |= DrainSources();
    // Only a round in which nothing at all happened shows that there is nothing to do: any task may
    // have used a ZeroMQ socket and swallowed its wake-up.
    if (!worked) {
      if (!SpinForWork()) Sleep();
    } else if (++busy_rounds_ >= kBusyRounds) {
      WaitForEvents(0);  // descriptors have their turn, too
    }
  }
  if (pool_) pool_->Close();
}

bool LoopEnv::SpinForWork() {
  if (spin_ns_ <= 0) return false;
  if (spin_credit_ <= 0 && ++idle_periods_ < kIdlePeriodsBeforeTrial) return false;
  idle_periods_ = 0;
  const int64_t until_ns = NowNs() + spin_ns_;
  for (int i = 1; !stopped(); ++i) {
    bool found = has_posted_.load(std::memory_order_acquire);
    found |= RunPollers();
    if (i % kLooksPerSpinRound == 0) {
      // Descriptors cost a system call to look at, and whoever shares the core may have its turn.
      found |= RunTimers();
      WaitForEvents(0);
      found |= DrainSources();
      if (!found) sched_yield();
    }
    if (found || NowNs() >= until_ns) {
      LearnFromIdleness(found);
      return found;
    }
    __builtin_ia32_pause();
  }
  return true;
}

void LoopEnv::LearnFromIdleness(bool found_soon) {
  // A find is worth several failures: it saves a wake-up, of about the time of one spin.
  spin_credit_ = found_soon ? std::min(spin_credit_ + kCreditOfFind, kMaxSpinCredit)
                            : std::max(spin_credit_ - 1, 0);
}

void LoopEnv::Stop() {
  // Only what a signal handler may do: no lock, and errno as it was.
  const int saved_errno = errno;
  stop_.store(true, std::memory_order_release);
  Wake();
  errno = saved_errno;
}

void LoopEnv::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the loop is woken anyway.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

bool LoopEnv::RunPosted() {
  if (!has_posted_.load(std::memory_order_acquire)) return false;
  {
    std::lock_guard lock(mu_);
    batch_.swap(posted_);
    has_posted_.store(false, std::memory_order_relaxed);
  }
  for (Task& slot : batch_) {
    if (stopped()) break;
    Task task = std::move(slot);  // dies with its captures as soon as it has run
    task();
  }
  batch_.clear();  // keeps the capacity: the two vectors take turns
  return true;
}

bool LoopEnv::RunTimers() {
  if (heap_.empty()) return false;
  bool worked = false;
  // One instant for the whole round, or timers that set themselves anew would keep it busy for
  // ever.
  const int64_t now_ns = NowNs();
  while (!heap_.empty() && heap_.front().at_ns <= now_ns && !stopped()) {
    const uint64_t id = heap_.front().id;
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    heap_.pop_back();
    auto found = timers_.find(id);
    if (found == timers_.end()) continue;  // cancelled
    Task task = std::move(found->second);
    timers_.erase(found);  // before it runs: it may set and cancel timers itself
    task();
    worked = true;
  }
  return worked;
}

bool LoopEnv::RunPollers() {
  bool worked = false;
  for (size_t i = 0; i < pollers_.size() && !stopped(); ++i) {  // by index: they may be added to
    if (pollers_[i] != nullptr) worked |= pollers_[i]->Poll();
  }
  std::erase(pollers_, nullptr);
  return worked;
}

bool LoopEnv::DrainSources() {
  bool worked = false;
  // By index: a drain may add sources.
  for (size_t i = 0; i < sources_.size() && !stopped(); ++i) {
    Source* source = sources_[i].get();
    if (source->fd < 0 || !source->drain) continue;
    if (source->news == News::kUntilTaken && !source->ready) continue;
    source->ready = source->drain();  // what is not taken is told of again, but sooner so
    worked |= source->ready;
  }
  if (sources_removed_) {
    sources_removed_ = false;
    std::erase_if(sources_, [](const auto& source) { return source->fd < 0; });
  }
  return worked;
}

void LoopEnv::Sleep() {
  // The heap may begin with a cancelled timer; waking for it is harmless.
  std::optional<int64_t> timeout_ns;
  if (!heap_.empty() && heap_.front().at_ns != kNever) {
    timeout_ns = std::max<int64_t>(0, heap_.front().at_ns - NowNs());
  }
  {
    std::lock_guard lock(mu_);
    if (!posted_.empty()) return;
    asleep_.store(true, std::memory_order_relaxed);  // seen by whoever posts after us
  }
  const bool sleeps = PreparePollers();
  if (sleeps) WaitForEvents(timeout_ns);
  asleep_.store(false, std::memory_order_relaxed);
  if (!sleeps) return;
  for (Poller* poller : pollers_) {
    if (poller != nullptr) poller->Awake();
  }
}

bool LoopEnv::PreparePollers() {
  for (size_t i = 0; i < pollers_.size(); ++i) {
    if (pollers_[i] == nullptr || pollers_[i]->PrepareToSleep()) continue;
    for (size_t before = 0; before < i; ++before) {
      if (pollers_[before] != nullptr) pollers_[before]->Awake();
    }
    return false;
  }
  return true;
}

void LoopEnv::WaitForEvents(std::optional<int64_t> timeout_ns) {
  busy_rounds_ = 0;
  std::array<epoll_event, 16> events;
  int count = -1;
  if (precise_wait_) {
    timespec timeout{};
    if (timeout_ns) {
      timeout.tv_sec = *timeout_ns / kNsPerSecond;
      timeout.tv_nsec = *timeout_ns % kNsPerSecond;
    }
    count = epoll_pwait2(epoll_fd_, events.data(), events.size(), timeout_ns ? &timeout : nullptr,
                         nullptr);
    if (count < 0 && (errno == ENOSYS || errno == EPERM)) precise_wait_ = false;
  }
  if (!precise_wait_) {  // kernels before 5.11, and sandboxes: whole milliseconds, never early
    const int64_t timeout_ms =
        timeout_ns ? std::min<int64_t>((*timeout_ns + kNsPerMs - 1) / kNsPerMs, 60'000) : -1;
    count = epoll_wait(epoll_fd_, events.data(), events.size(), static_cast<int>(timeout_ms));
  }
  for (int i = 0; i < count; ++i) OnEvent(events[i].data.fd);
}

void LoopEnv::OnEvent(int fd) {
  if (fd == wake_fd_) {
    uint64_t wakes;
    [[maybe_unused]] const ssize_t got = read(wake_fd_, &wakes, sizeof(wakes));
    return;
  }
  for (auto& source : sources_) {
    if (source->fd == fd) source->ready = true;
  }
}

absl::Status LoopEnv::AddSource(int fd, Drain drain, News news) {
  epoll_event event{};
  // A wake-up has no drain: it is told of by its edge.
  event.events = drain ? EPOLLIN : EPOLLIN | EPOLLET;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrFormat("event loop: cannot watch descriptor %d", fd));
  }
  sources_.push_back(std::make_unique<Source>(Source{fd, std::move(drain), news}));
  return absl::OkStatus();
}

absl::Status LoopEnv::AddWakeUp(int fd) { return AddSource(fd, nullptr, News::kUntilTaken); }

void LoopEnv::AddPoller(Poller* poller) { pollers_.push_back(poller); }

void LoopEnv::RemovePoller(Poller* poller) {
  // Erased after the round: this may be its own Poll calling.
  std::replace(pollers_.begin(), pollers_.end(), poller, static_cast<Poller*>(nullptr));
}

void LoopEnv::RemoveSource(int fd) {
  for (auto& source : sources_) {
    if (source->fd != fd) continue;
    epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
    source->fd = -1;  // erased after the round: this may be its own drain calling
    sources_removed_ = true;
  }
}

int64_t LoopEnv::NowNs() const { return MonotonicNs() - start_ns_; }

absl::Duration LoopEnv::Now() const { return absl::Nanoseconds(NowNs()); }

TimerId LoopEnv::After(absl::Duration delay, Task task) {
  const int64_t delay_ns = std::max<int64_t>(0, absl::ToInt64Nanoseconds(delay));
  const int64_t now_ns = NowNs();
  const uint64_t id = next_timer_++;
  heap_.push_back({delay_ns < kNever - now_ns ? now_ns + delay_ns : kNever, id});
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  timers_.emplace(id, std::move(task));
  return TimerId{id};
}

void LoopEnv::Cancel(TimerId id) {
  auto found = timers_.find(static_cast<uint64_t>(id));
  if (found == timers_.end()) return;
  Task task = std::move(found->second);  // dies at the end, when the map is whole again
  timers_.erase(found);
  // Deadlines are set far ahead and cancelled soon: without this the heap would hold all the calls
  // of the last minute.
  if (heap_.size() > 2 * timers_.size() + 64) DropCancelledTimers();
}

void LoopEnv::DropCancelledTimers() {
  std::erase_if(heap_, [this](const Timer& timer) { return !timers_.contains(timer.id); });
  std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void LoopEnv::Post(Task task) {
  bool wake;
  {
    std::lock_guard lock(mu_);
    posted_.push_back(std::move(task));
    has_posted_.store(true, std::memory_order_release);
    // One wake-up a sleep, whoever comes first.
    wake = asleep_.exchange(false, std::memory_order_relaxed);
  }
  if (wake) Wake();
}

void LoopEnv::Offload(Task work, Task done) {
  Task run = [this, work = std::move(work), done = std::move(done)]() mutable {
    work();
    work = nullptr;  // what it owns is not kept waiting for `done`
    Post(std::move(done));
  };
  if (pool_) {
    pool_->Submit(std::move(run));
  } else {
    Post(std::move(run));
  }
}

uint64_t LoopEnv::Random() {
  // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA'14).
  uint64_t z = random_state_ += 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

}  // namespace parley
