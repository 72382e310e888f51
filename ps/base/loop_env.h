// LoopEnv: the real Env. An event loop over epoll, run by one thread, with timers, foreign file
// descriptors and a small thread pool.
//
// Thread-safety: as Env; besides Post, Stop may be called from any thread, and also from a signal
// handler. Everything else belongs to the thread in Run(), or to the constructing thread while
// nobody is in Run().
#ifndef PARLEY_PS_BASE_LOOP_ENV_H_
#define PARLEY_PS_BASE_LOOP_ENV_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ps/base/env.h"
#include "ps/base/thread_pool.h"

namespace parley {

struct LoopEnvOptions {
  // Threads for Offload. 0 runs offloaded work on the loop, between other tasks: least memory and
  // no hand-over, but the loop answers nobody meanwhile. Typical: 0 or 1 for a server shard.
  int offload_threads = 1;

  // How long at most the loop looks for more work before it sleeps. Waking a sleeping thread is
  // most of a small round trip, so tens of microseconds shorten it; but a spinning loop takes its
  // core away from everybody else. Leave at zero when there are more loops and compute threads than
  // cores. The loop gives up spinning while it finds nothing by it, and tries again now and then.
  absl::Duration spin = absl::ZeroDuration();
};

// Work that comes through memory and not through a descriptor: the rings of shared memory. Looking
// there costs a few loads, so a spinning loop looks all the time. All calls on the loop.
class Poller {
 public:
  virtual ~Poller() = default;
  // Takes what there is to take, or a bounded part of it; true if there was anything.
  virtual bool Poll() = 0;
  // The loop is about to sleep: from now on producers must wake it through a descriptor
  // (AddWakeUp). False if something came meanwhile: then the loop stays awake, and Awake is not
  // called.
  virtual bool PrepareToSleep() = 0;
  // It is awake again.
  virtual void Awake() = 0;
};

class LoopEnv : public Env {
 public:
  // Takes what there is to take from a descriptor; true if there was anything.
  using Drain = absl::AnyInvocable<bool()>;

  // Throws std::system_error if the process is out of descriptors or threads.
  explicit LoopEnv(LoopEnvOptions options = {});

  // Drops tasks that have not run and waits for offloaded work that has begun. REQUIRES: nobody is
  // in Run().
  ~LoopEnv() override;
  LoopEnv(const LoopEnv&) = delete;
  LoopEnv& operator=(const LoopEnv&) = delete;

  // Runs tasks on the calling thread until Stop. Once only.
  void Run();

  // Makes Run() return after the current task, or at once if it is yet to be called. What is still
  // posted, timed or offloaded is dropped.
  void Stop();

  // How a descriptor tells of news.
  enum class News {
    kOnce,        // and may forget it when it is used for something else (ZeroMQ's do)
    kUntilTaken,  // it stays readable until all is read, as descriptors of the system do
  };

  // Lets `drain` watch `fd`. It is called when `fd` becomes readable; with kOnce also in every
  // round of the loop, and so before it sleeps; it must never block. While it returns true the loop
  // does not sleep. Borrows `fd`. Errors: what epoll says of it.
  absl::Status AddSource(int fd, Drain drain, News news = News::kOnce);

  // An eventfd(2) that others write to wake the loop from a sleep that a Poller announced. It is
  // never read: each write counts. Remove it by RemoveSource. Errors as for AddSource.
  absl::Status AddWakeUp(int fd);

  // Looks there in every round. Borrowed until RemovePoller; a poller may remove itself.
  void AddPoller(Poller* poller);
  void RemovePoller(Poller* poller);

  // `drain` is not called again. Unknown descriptors are ignored. Call it before closing `fd`; a
  // drain may remove its own source.
  void RemoveSource(int fd);

  absl::Duration Now() const override;
  TimerId After(absl::Duration delay, Task task) override;
  void Cancel(TimerId id) override;
  void Post(Task task) override;
  void Offload(Task work, Task done) override;
  uint64_t Random() override;

 private:
  struct Timer {
    int64_t at_ns;  // on the clock of NowNs
    uint64_t id;    // increases, so that timers of one instant run in the order of their setting
    bool operator>(const Timer& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : id > other.id;
    }
  };
  struct Source {
    int fd;  // -1: removed, waiting to be erased
    Drain drain;
    News news;
    bool ready = false;  // epoll told of it, and it is not drained yet
  };

  bool stopped() const { return stop_.load(std::memory_order_acquire); }
  int64_t NowNs() const;
  // Each returns true if anything ran.
  bool RunPosted();
  bool RunTimers();
  bool RunPollers();
  bool DrainSources();
  bool SpinForWork();
  void LearnFromIdleness(bool found_soon);
  void Sleep();
  bool PreparePollers();
  void WaitForEvents(std::optional<int64_t> timeout_ns);
  void OnEvent(int fd);
  void Wake();
  void DropCancelledTimers();

  // Constant after construction.
  const LoopEnvOptions options_;
  const int64_t spin_ns_;
  int64_t start_ns_ = 0;
  int epoll_fd_ = -1;
  int wake_fd_ = -1;

  // Owned by the loop.
  std::vector<Task> batch_;                     // posted tasks being run
  std::vector<Timer> heap_;                     // soonest first; holds cancelled ones until due
  absl::flat_hash_map<uint64_t, Task> timers_;  // pending, by id
  uint64_t next_timer_ = 1;
  std::vector<std::unique_ptr<Source>> sources_;
  bool sources_removed_ = false;
  std::vector<Poller*> pollers_;  // null: removed, waiting to be erased
  int busy_rounds_ = 0;           // since epoll was asked last
  int spin_credit_ = 0;           // above zero: spinning has found work lately
  int idle_periods_ = 0;          // since spinning was tried without credit
  uint64_t random_state_ = 0;
  bool precise_wait_ = true;  // the kernel has epoll_pwait2

  // Shared with other threads.
  std::atomic<bool> stop_{false};
  std::mutex mu_;  // guards posted_; held for a push or a swap
  std::vector<Task> posted_;
  std::atomic<bool> asleep_{false};      // the next Post must wake the loop
  std::atomic<bool> has_posted_{false};  // posted_ is not empty; to look without the lock

  std::unique_ptr<ThreadPool> pool_;  // last: its threads post until they are joined
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_LOOP_ENV_H_
