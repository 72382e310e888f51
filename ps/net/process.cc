#include "ps/net/process.h"

#include <malloc.h>
#include <signal.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace parley {
namespace {

// For nodes that do not end by themselves once told to.
constexpr absl::Duration kStopTimeout = absl::Seconds(5);

std::string OneLine(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\n", " "}, {"\r", ""}});
}

}  // namespace

class NodeProcess::Logger {
 public:
  static absl::StatusOr<std::unique_ptr<Logger>> Open(const Options& options) {
    spdlog::sink_ptr sink;
    try {
      if (options.log_file.empty()) {
        sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
      } else {
        sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.log_file);
      }
    } catch (const spdlog::spdlog_ex& error) {
      return absl::UnavailableError(
          absl::StrFormat("the log file %s cannot be opened: %s", options.log_file, error.what()));
    }
    return std::make_unique<Logger>(options.program, std::move(sink));
  }
  Logger(const std::string& name, spdlog::sink_ptr sink) : logger_(name, std::move(sink)) {
    logger_.set_pattern("%Y-%m-%dT%H:%M:%S.%e %v");
    logger_.flush_on(spdlog::level::info);  // a process that is killed leaves its last words
  }
  void Line(absl::string_view line) { logger_.info("{}", OneLine(line)); }

 private:
  spdlog::logger logger_;
};

// Declared in the order of construction: the node goes first, then its transport, then the loop.
struct NodeProcess::Place {
  std::unique_ptr<LoopEnv> env;
  std::unique_ptr<Transport> transport;
  Held held;
  std::thread thread;  // runs the loop; the first place's runs on the caller of Run
  bool done = false;   // owned by the first loop
};

namespace {

// Received messages are large, short-lived and allocated by ZeroMQ. By default glibc maps each
// afresh or gives its pages back at once, and faulting them in again costs more than copying what
// comes: keep them.
void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  mallopt(M_TOP_PAD, 16 << 20);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NodeProcess>> NodeProcess::Create(Options options) {
  KeepFreedMemory();
  absl::StatusOr<std::unique_ptr<Logger>> logger = Logger::Open(options);
  if (!logger.ok()) return logger.status();
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  // Unless it is ignored, as under nohup: a blocked signal would be queued all the same.
  struct sigaction hangup;
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
    sigaddset(&signals, SIGHUP);
  }
  if (options.on_user_signal) sigaddset(&signals, SIGUSR1);
  // Blocked here and so in all threads to come: the signals reach nobody but the descriptor.
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) {
    return absl::InternalError("SIGTERM, SIGINT and SIGHUP cannot be blocked");
  }
  const int fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) return absl::InternalError(absl::StrCat("signalfd: ", std::strerror(errno)));
  return std::unique_ptr<NodeProcess>(new NodeProcess(std::move(options), *std::move(logger), fd));
}

NodeProcess::NodeProcess(Options options, std::unique_ptr<Logger> logger, int signal_fd)
    : options_(std::move(options)), logger_(std::move(logger)), signal_fd_(signal_fd) {}

NodeProcess::~NodeProcess() {
  for (std::unique_ptr<Place>& place : places_) {
    place->held = {};
    place->transport.reset();
    place->env.reset();
  }
  close(signal_fd_);
}

absl::Status NodeProcess::AddNode(LoopEnvOptions options, MakeTransport make_transport,
                                  MakeNode make_node) {
  auto place = std::make_unique<Place>();
  try {
    place->env = std::make_unique<LoopEnv>(options);
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("no event loop: ", error.what()));
  }
  absl::StatusOr<std::unique_ptr<Transport>> transport = make_transport(place->env.get());
  if (!transport.ok()) return transport.status();
  place->transport = *std::move(transport);
  if (places_.empty()) {
    absl::Status status = place->env->AddSource(
        signal_fd_, [this] { return OnSignal(); }, LoopEnv::News::kUntilTaken);
    if (!status.ok()) return status;
  }
  const size_t index = places_.size();
  Seat seat{.env = place->env.get(), .transport = place->transport.get()};
  // A node reports on its own loop; what becomes of the process is decided on the first.
  seat.done = [this, index](absl::Status status) {
    places_.front()->env->Post(
        [this, index, status = std::move(status)] { OnNodeDone(index, status); });
  };
  seat.log = [this](const std::string& line) { Log(line); };
  place->held = make_node(seat);
  places_.push_back(std::move(place));
  return absl::OkStatus();
}

int NodeProcess::Run() {
  running_ = places_.size();
  for (std::unique_ptr<Place>& place : places_) {
    place->env->Post([start = place->held.start] { start(); });
  }
  for (size_t i = 1; i < places_.size(); ++i) {
    places_[i]->thread = std::thread([env = places_[i]->env.get()] { env->Run(); });
  }
  places_.front()->env->Run();
  for (std::unique_ptr<Place>& place : places_) {
    if (place->thread.joinable()) place->thread.join();
  }
  places_.front()->env->RemoveSource(signal_fd_);
  if (why_.ok()) {
    Log("done");
    return 0;
  }
  if (!options_.log_file.empty()) Log(absl::StrCat("ended: ", std::string(why_.message())));
  return Complain(options_.program, why_);
}

bool NodeProcess::OnSignal() {
  signalfd_siginfo info;
  if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) return false;
  if (info.ssi_signo == SIGUSR1) {
    options_.on_user_signal();
    return true;
  }
  const char* name = info.ssi_signo == SIGINT   ? "SIGINT"
                     : info.ssi_signo == SIGHUP ? "SIGHUP"
                                                : "SIGTERM";
  Log(absl::StrCat("received ", name));
  if (why_.ok()) why_ = absl::CancelledError(absl::StrCat("stopped by ", name));
  if (std::exchange(signalled_, true)) {
    StopLoops();
  } else {
    StopNodes(why_);
  }
  return true;
}

void NodeProcess::OnNodeDone(size_t index, const absl::Status& status) {
  if (std::exchange(places_[index]->done, true)) return;
  --running_;
  if (!status.ok() && why_.ok()) why_ = status;
  if (running_ == 0) {
    StopLoops();
  } else if (!status.ok()) {
    StopNodes(status);
  }
}

void NodeProcess::StopNodes(const absl::Status& status) {
  if (std::exchange(stopping_, true)) return;
  for (std::unique_ptr<Place>& place : places_) {
    if (place->done) continue;
    place->env->Post([stop = place->held.stop, status] { stop(status); });
  }
  places_.front()->env->After(kStopTimeout, [this] {
    Log(absl::StrFormat("%d nodes did not end within %s", running_,
                        absl::FormatDuration(kStopTimeout)));
    StopLoops();
  });
}

void NodeProcess::StopLoops() {
  for (std::unique_ptr<Place>& place : places_) place->env->Stop();
}

void NodeProcess::Log(absl::string_view line) { logger_->Line(line); }

int NodeProcess::Complain(const std::string& program, const absl::Status& status) {
  std::string line = OneLine(status.message());
  // Errors of flags name their command already.
  const std::string prefix = program + ": ";
  if (line.rfind(prefix, 0) != 0) line = prefix + line;
  std::fprintf(stderr, "%s\n", line.c_str());
  return 1;
}

}  // namespace parley
