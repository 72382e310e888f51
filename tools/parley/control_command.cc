// parley resize, parley save alias checkpoint now: ask a running scheduler for something, as no
// member of its job.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/loop_env.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/net/security.h"
#include "ps/net/zmq_transport.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

// After which the scheduler, once it was there, is given up. What is asked for may take any time:
// asked again every few seconds, it says that it is at it. Time enough for one that died to be
// started again, which is then asked in its place.
constexpr absl::Duration kSilence = absl::Minutes(1);
// Nobody there: no scheduler needs so long for its first word.
constexpr absl::Duration kFirstWord = absl::Seconds(10);

constexpr char kKeysHelp[] = "the scheduler's keys, if the job has any; else RUNDIR/keys";

// The scheduler's endpoint from what the user gave: that, or a run directory.
absl::StatusOr<std::string> EndpointOf(const std::string& where) {
  if (absl::StrContains(where, "://")) return where;
  const std::string path = where + "/scheduler.endpoint";
  std::ifstream file(path);
  std::string line;
  if (std::getline(file, line) && !line.empty()) return line;
  return absl::NotFoundError(
      absl::StrCat("'", where,
                   "' is no run directory: it has no scheduler.endpoint; allowed: the "
                   "directory of a run, or the scheduler's endpoint, tcp://host:port"));
}

// What is asked with.
struct Credentials {
  std::shared_ptr<const NodeKeys> keys;  // null: none
  std::string story;                     // for people: which, and where from
};

// Who may order a job about has its scheduler's key: that of --keys, or of a run that made its own.
absl::StatusOr<Credentials> FindKeys(const std::string& where, std::string keys) {
  Credentials found;
  const bool given = !keys.empty();
  std::error_code error;
  if (!given && !absl::StrContains(where, "://") &&
      std::filesystem::is_directory(where + "/keys", error)) {
    keys = where + "/keys";
  }
  absl::Status used = UseKeys(keys, PeerRole::kScheduler, &found.keys);
  if (!used.ok()) return used;
  found.story = keys.empty() ? "without keys"
                             : absl::StrCat("with the scheduler's key in '", keys, "' (",
                                            given ? "of --keys" : "of the run directory", ")");
  return found;
}

// A node that wants other keys says nothing at all, nor does one that is not there.
absl::Status NoAnswer(const std::string& endpoint, const Credentials& with,
                      const std::string& last_log) {
  return absl::DeadlineExceededError(absl::StrCat(
      "the scheduler at ", endpoint, " did not answer within ", absl::FormatDuration(kFirstWord),
      "; is it running there? It was asked ", with.story,
      "; allowed: the keys that the job was started with, --keys DIR, or none if it has none",
      last_log.empty() ? "" : absl::StrCat(" (", last_log, ")")));
}

absl::StatusOr<pb::ControlAnswer> Ask(const std::string& endpoint, const Credentials& with,
                                      const pb::Control& control, const std::string& what) {
  std::string last_log;  // what the transport has to say, such as whose key was refused
  LoopEnv env({.offload_threads = 0});
  ZmqTransport::Options options;
  options.self = NodeId{env.Random()};
  options.keys = with.keys;
  options.log = [&last_log](const std::string& line) { last_log = line; };
  absl::StatusOr<std::unique_ptr<ZmqTransport>> transport =
      ZmqTransport::Create(&env, std::move(options));
  if (!transport.ok()) return transport.status();
  if (absl::Status s = (*transport)->Connect(kSchedulerNode, endpoint); !s.ok()) return s;
  Rpc rpc(&env, transport->get());
  absl::StatusOr<pb::ControlAnswer> result = absl::UnknownError("");
  env.Post([&] {
    Frame frame;
    frame.header.set_kind(pb::CONTROL);
    frame.header.set_body(control.SerializeAsString());
    const CallId call = rpc.Call(kSchedulerNode, std::move(frame),
                                 {.deadline = kSilence,
                                  .attempt = absl::Milliseconds(300),
                                  .what = absl::StrCat(what, " by the scheduler at ", endpoint),
                                  .parked_extends = true},
                                 [&](absl::StatusOr<Frame> answer) {
                                   pb::ControlAnswer body;
                                   absl::Status status =
                                       answer.ok() ? ParseBody(*answer, &body) : answer.status();
                                   if (status.ok()) {
                                     result = std::move(body);
                                   } else {
                                     result = std::move(status);
                                   }
                                   env.Stop();
                                 });
    env.After(kFirstWord, [&, call] {
      if (!rpc.ParkedFor(call).empty()) return;  // it is at it
      rpc.Cancel(call);
      result = NoAnswer(endpoint, with, last_log);
      env.Stop();
    });
  });
  env.Run();
  return result;
}

int Control(const std::string& where, const std::string& keys_directory, const pb::Control& control,
            const std::string& what) {
  absl::StatusOr<Credentials> keys = FindKeys(where, keys_directory);
  if (!keys.ok()) return Complain(keys.status(), kExitUsage);
  absl::StatusOr<std::string> endpoint = EndpointOf(where);
  if (!endpoint.ok()) return Complain(endpoint.status(), kExitUsage);
  absl::StatusOr<pb::ControlAnswer> answer = Ask(*endpoint, *keys, control, what);
  if (!answer.ok()) {
    const bool usage = absl::IsInvalidArgument(answer.status());
    return Complain(answer.status(), usage ? kExitUsage : kExitFailure);
  }
  std::string text = answer->text();
  if (answer->has_pause_ms()) {
    absl::StrAppendFormat(&text, "; the longest pause of a partition was %d ms",
                          answer->pause_ms());
  }
  std::printf("%s\n", text.c_str());
  return kExitOk;
}

}  // namespace

int ResizeCommand(const CommandArgs& args) {
  std::string where, keys;
  uint32_t servers = 0;
  FlagSet flags("parley resize",
                "Moves a running job's partitions to more servers, or to fewer. Server processes "
                "that it is to grow to are started before: `parley run --spare-servers`, or "
                "parley-server.");
  flags.Argument("RUNDIR|ENDPOINT", &where, "the run, or where its scheduler listens")
      .OptionalNumber("servers", &servers, 1, 1024,
                      "server processes that shall hold partitions (required)")
      .Text("keys", &keys, "DIR", kKeysHelp);
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  if (servers == 0) {
    return Complain(
        absl::InvalidArgumentError(
            "parley resize: flag --servers is missing: server processes that shall hold "
            "partitions; allowed: 1..1024"),
        kExitUsage);
  }
  pb::Control control;
  control.set_servers(servers);
  return Control(where, keys, control, absl::StrCat("resize to ", servers, " servers"));
}

namespace {

int Save(const std::string& command, const CommandArgs& args) {
  std::string where, keys;
  FlagSet flags(command, "Has a running job write a checkpoint as soon as may be.");
  flags.Argument("RUNDIR|ENDPOINT", &where, "the run, or where its scheduler listens")
      .Text("keys", &keys, "DIR", kKeysHelp);
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  pb::Control control;
  control.set_checkpoint(true);
  return Control(where, keys, control, "a checkpoint");
}

}  // namespace

int SaveCommand(const CommandArgs& args) { return Save("parley save", args); }
int CheckpointNowCommand(const CommandArgs& args) { return Save("parley checkpoint now", args); }

}  // namespace parley
