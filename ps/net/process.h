// NodeProcess: what the mains of server, worker and scheduler share - event loops with a node each,
// signals, the log, one line at the end, an exit code.
//
//   absl::StatusOr<std::unique_ptr<NodeProcess>> process = NodeProcess::Create(
//       {.program = "parley-worker", .log_file = flags.log});
//   if (!process.ok()) return NodeProcess::Complain("parley-worker", process.status());
//   absl::Status status = (*process)->AddNode(
//       {.offload_threads = 2},
//       [&](LoopEnv* env) { return MakeTransport(env); },      // StatusOr<unique_ptr<Transport>>
//       [&](const NodeProcess::Seat& seat) {
//         return NodeProcess::Hold(std::make_shared<WorkerNode>(seat.env, seat.transport, options,
//                                                               seat.done));
//       });
//   if (!status.ok()) return NodeProcess::Complain("parley-worker", status);
//   return (*process)->Run();
//
// A process with several shards calls AddNode once for each: every node has an event loop, a
// transport and a thread of its own. When one node ends with an error the others are stopped for
// the same reason; when all have ended the process ends.
//
// SIGTERM, SIGINT and SIGHUP end the nodes cleanly (they tell the scheduler first); a second one
// ends the process at once. SIGPIPE is ignored.
//
// Thread-safety: all calls from the thread that made it, before Run; Log from any thread.
#ifndef PARLEY_PS_NET_PROCESS_H_
#define PARLEY_PS_NET_PROCESS_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ps/base/loop_env.h"
#include "ps/net/transport.h"

namespace parley {

class NodeProcess {
 public:
  struct Options {
    std::string program;        // "parley-worker": in front of the last line
    std::string log_file = "";  // appended to; empty = stderr
    // Called on the first node's loop for each SIGUSR1; null: the signal ends the process, as ever.
    std::function<void()> on_user_signal = nullptr;
  };
  // What a node is built on. `done` is called by the node, once, on its loop.
  struct Seat {
    Env* env = nullptr;
    Transport* transport = nullptr;
    std::function<void(absl::Status)> done = nullptr;
    std::function<void(const std::string&)> log = nullptr;
  };
  // A node of any kind, held alive and driven on its loop.
  struct Held {
    std::shared_ptr<void> node;
    std::function<void()> start;
    std::function<void(const absl::Status&)> stop;
  };
  using MakeTransport =
      absl::AnyInvocable<absl::StatusOr<std::unique_ptr<Transport>>(LoopEnv* env)>;
  using MakeNode = absl::AnyInvocable<Held(const Seat& seat)>;

  // For any node with Start() and Stop(const absl::Status&).
  template <typename Node>
  static Held Hold(std::shared_ptr<Node> node) {
    Node* raw = node.get();
    return {std::move(node), [raw] { raw->Start(); },
            [raw](const absl::Status& status) { raw->Stop(status); }};
  }

  // Blocks the signals and tunes malloc, so call it before anything starts a thread. Errors name
  // the log file or the system call.
  static absl::StatusOr<std::unique_ptr<NodeProcess>> Create(Options options);
  ~NodeProcess();
  NodeProcess(const NodeProcess&) = delete;
  NodeProcess& operator=(const NodeProcess&) = delete;

  // Makes a loop, a transport on it (its error is returned: a failed bind) and a node on both. The
  // node starts in Run.
  absl::Status AddNode(LoopEnvOptions options, MakeTransport make_transport, MakeNode make_node);

  // Runs all nodes until they have ended. Prints "<program>: <why>" on stderr if one failed or a
  // signal came. Returns the exit code: 0 or 1. REQUIRES: one AddNode at least; once only.
  int Run();

  // One line with a time stamp into the log.
  void Log(absl::string_view line);

  // Prints "<program>: <message>" on stderr as one line; returns the exit code 1. For errors before
  // Run.
  static int Complain(const std::string& program, const absl::Status& status);

 private:
  class Logger;
  struct Place;

  NodeProcess(Options options, std::unique_ptr<Logger> logger, int signal_fd);
  bool OnSignal();
  void OnNodeDone(size_t index, const absl::Status& status);
  void StopNodes(const absl::Status& status);
  void StopLoops();

  const Options options_;
  const std::unique_ptr<Logger> logger_;
  const int signal_fd_;
  std::vector<std::unique_ptr<Place>> places_;

  // Owned by the first loop.
  absl::Status why_;        // the first failure
  bool stopping_ = false;   // nodes have been told
  bool signalled_ = false;  // the next signal ends it at once
  size_t running_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_NET_PROCESS_H_
