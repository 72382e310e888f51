// One child process: how it is started, how its end reads. Linux. Not thread-safe; the starting
// thread must live as long as the child (PR_SET_PDEATHSIG goes by thread).
#ifndef PARLEY_TOOLS_PARLEY_CHILD_PROCESS_H_
#define PARLEY_TOOLS_PARLEY_CHILD_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace parley {

struct ChildSpec {
  std::string name;               // for people: "worker 1"
  std::string program;            // a path
  std::vector<std::string> args;  // without the program
  std::string log;                // stderr, and stdout too unless inherited, are appended here
  bool inherit_stdout = false;
};

// Starts it in a process group of its own, so that Ctrl-C reaches the parent alone, and bound to
// the parent: when that dies, even by SIGKILL, the kernel kills the child. Errors name the program
// and the system's reason, also for a program that cannot be executed.
absl::StatusOr<pid_t> StartChild(const ChildSpec& spec);

// How it ended, from waitpid's status: "exited with code 1", "was killed by signal 9 (Killed)".
std::string DescribeWaitStatus(int wait_status);

// The last line of a file that is not blank, without control characters, cut to `max_length`; empty
// if there is none.
std::string LastLine(const std::string& path, size_t max_length = 300);

// The directory of the running program.
absl::StatusOr<std::string> ProgramDirectory();

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_CHILD_PROCESS_H_
