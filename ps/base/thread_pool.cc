#include "ps/base/thread_pool.h"

#include <cassert>
#include <utility>

namespace parley {

ThreadPool::ThreadPool(int threads) {
  assert(threads >= 1);
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

ThreadPool::~ThreadPool() {
  Close();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Submit(Task work) {
  {
    std::lock_guard lock(mu_);
    if (closed_) return;
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void ThreadPool::Close() {
  std::deque<Task> dropped;  // destroyed after the lock: what a task owns may call back into us
  {
    std::lock_guard lock(mu_);
    closed_ = true;
    dropped.swap(queue_);
  }
  wake_.notify_all();
}

void ThreadPool::Loop() {
  std::unique_lock lock(mu_);
  while (true) {
    wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (closed_) return;
    Task work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it owns goes before the lock is taken again
    lock.lock();
  }
}

}  // namespace parley
