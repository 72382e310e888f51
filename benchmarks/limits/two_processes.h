// Two processes that measure something between them: a child that serves and this one, which asks.
//
// Not thread-safe, and to be called before this process has threads, since the child is forked.
#ifndef PARLEY_BENCHMARKS_LIMITS_TWO_PROCESSES_H_
#define PARLEY_BENCHMARKS_LIMITS_TWO_PROCESSES_H_

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace parley {

// What the child says to its parent before it serves: one line, as where it listens.
class Announce {
 public:
  explicit Announce(int fd) : fd_(fd) {}
  void operator()(const std::string& line);

 private:
  int fd_;
};

// Runs serve(announce) in a child and, once it has announced itself, measure(line) here; then waits
// for the child to end, which it must by itself (it is killed if measure fails or it takes longer
// than ten seconds). The child dies with this process. Errors: measure's, serve's (its text), or
// the system's.
absl::Status WithSecondProcess(const std::function<absl::Status(Announce announce)>& serve,
                               const std::function<absl::Status(const std::string& line)>& measure);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_LIMITS_TWO_PROCESSES_H_
