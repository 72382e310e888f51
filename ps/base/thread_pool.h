// ThreadPool: a fixed number of threads that take work from one queue, first come first served.
//
// Thread-safety: Submit and Close from any thread; the destructor from one that is not of the pool.
// The queue is not bounded here: the caller has a bound on what it offloads (its own work in
// flight).
#ifndef PARLEY_PS_BASE_THREAD_POOL_H_
#define PARLEY_PS_BASE_THREAD_POOL_H_

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "ps/base/env.h"

namespace parley {

class ThreadPool {
 public:
  // Throws std::system_error if the system refuses a thread. REQUIRES: threads >= 1.
  explicit ThreadPool(int threads);

  // Close(), then waits for work that has begun.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Runs `work` on one of the threads; after Close() it is dropped.
  void Submit(Task work);

  // Drops what has not begun, unrun, and everything submitted from now on. Does not wait.
  void Close();

 private:
  void Loop();

  std::mutex mu_;  // guards what follows
  std::condition_variable wake_;
  std::deque<Task> queue_;
  bool closed_ = false;

  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_THREAD_POOL_H_
