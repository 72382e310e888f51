// What a scheduler finds when it is started again, and what any node finds of keys.
//
//   u8 mode, modulo 3
//   0: the state's file     u8 how (bit 0: it gets its first line), then the content
//   1: the state            u8 how (bits: the format; the job; scripted nodes answer), u8 the
//                           cluster, then the message; a scheduler goes on from it for a while
//   2: files of keys        u8 role, u8 mode bits, u16 the size of the secret's file, the file, and
//                           the rest is that of an authorized key
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/scheduler.pb.h"
#include "ps/base/sim_env.h"
#include "ps/base/sim_file_system.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/security.h"
#include "ps/net/sim_network.h"
#include "scheduler/disk_store.h"
#include "scheduler/scheduler_node.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley {
namespace {

constexpr char kJob[] = "job";
constexpr int kMaxEvents = 20000;

std::string WithFirstLine(std::string_view state) {
  unsigned char hash[32];
  Check(sodium_init() >= 0, "libsodium can be initialised");
  crypto_generichash(hash, sizeof(hash), reinterpret_cast<const unsigned char*>(state.data()),
                     state.size(), nullptr, 0);
  return absl::StrCat(
      "parley-scheduler-state 1 ",
      absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(hash), sizeof(hash))), "\n",
      std::string(state));
}

class Quiet : public RunObserver {
 public:
  void OnStart(const std::string&, const pb::Experiment&) override {}
  void OnEvent(const std::string& line) override { Check(!line.empty(), "an event says what"); }
  void OnProgress(const RunProgress&) override {}
  void OnEpoch(const EpochMetrics&) override {}
  void OnFinish(const RunSummary&) override {}
};

// A node that agrees to everything.
struct ScriptedNode {
  ScriptedNode(SimWorld* world, SimNetwork* network, uint64_t id)
      : env(world, absl::StrCat("node ", id)),
        transport(network->CreateTransport(&env, NodeId{id}, absl::StrCat("sim://", id))),
        rpc(&env, transport.get()) {
    Check(transport->Connect(kSchedulerNode, "sim://scheduler").ok(), "a scheduler is known");
    rpc.SetIdentity(JobId(kJob), 1, 0);
    for (const pb::Kind kind : {pb::ASSIGN, pb::PING, pb::STOP, pb::COUNT, pb::CHECKPOINT}) {
      rpc.Handle(kind,
                 [this](NodeId from, Frame frame) { rpc.Reply(from, frame.header, Frame()); });
    }
    Beat();
  }
  void Beat() {
    Frame frame;
    frame.header.set_kind(pb::HEARTBEAT);
    rpc.Tell(kSchedulerNode, std::move(frame));
    env.After(absl::Milliseconds(700), [this] { Beat(); });
  }

  SimEnv env;
  std::unique_ptr<Transport> transport;
  Rpc rpc;
};

struct Cluster {
  Cluster(SimFileSystem* disk, uint8_t cluster, bool nodes)
      : network(&world, {}), env(&world, "scheduler"), store({"state", disk, /*lock=*/false}) {
    pb::Cluster* config = options.experiment.mutable_cluster();
    config->set_servers(1 + cluster % 2);
    config->set_shards_per_server(1 + cluster / 2 % 2);
    config->set_workers(1 + cluster / 4 % 2);
    config->set_replicas(cluster / 8 % 2);
    config->set_worker_loss(static_cast<pb::Cluster::WorkerLoss>(cluster / 16 % 3));
    config->set_max_restarts(2);
    config->set_heartbeat_ms(1000);
    config->set_node_timeout_ms(3000);
    config->set_start_timeout_ms(4000);
    options.experiment.mutable_training()->set_epochs(1);
    options.experiment.mutable_training()->set_global_batch(10);
    options.job = kJob;
    options.store = &store;
    options.files = disk;
    options.checkpoint_root = "checkpoints";
    store.Attach(&env);
    transport = network.CreateTransport(&env, kSchedulerNode, "sim://scheduler");
    for (uint64_t id = 100; nodes && id < 104; ++id) {
      others.push_back(std::make_unique<ScriptedNode>(&world, &network, id));
    }
    node = std::make_unique<SchedulerNode>(&env, transport.get(), options, &observer,
                                           [this](absl::Status status) { end = status; });
    node->Start();
  }
  void Run(absl::Duration time) {
    int events = 0;
    world.RunUntil([&] { return end.has_value() || ++events > kMaxEvents; }, time);
    Check(events <= kMaxEvents, "a scheduler does not spin");
  }

  SimWorld world{1};
  SimNetwork network;
  SimEnv env;
  DiskStore store;
  SchedulerNode::Options options;
  Quiet observer;
  std::unique_ptr<Transport> transport;
  std::vector<std::unique_ptr<ScriptedNode>> others;
  std::unique_ptr<SchedulerNode> node;
  std::optional<absl::Status> end;
};

void GoOnFrom(const std::string& content, uint8_t cluster, bool nodes) {
  SimFileSystem disk(1);
  Check(disk.MakeDirectory("state").ok() && disk.WriteWhole("state/state", content).ok(),
        "a disk without faults takes a file");
  {
    Cluster first(&disk, cluster, nodes);
    first.Run(absl::Seconds(1));
    if (first.end.has_value() && !first.node->owns_state()) {
      Check(!first.end->ok() && !first.end->message().empty(), "a state is refused, and why");
      const std::string* left = disk.Content("state/state");
      Check(left != nullptr && *left == content, "and left alone");
      return;
    }
    if (!first.end.has_value()) first.Run(absl::Seconds(12));
  }
  // Killed now; what it saved last is a state like any other.
  Cluster second(&disk, cluster, nodes);
  second.Run(absl::Seconds(1));
  Check(second.node->owns_state() || !second.end.has_value(), "what was saved can be gone on from");
}

void RunFile(FuzzInput input) {
  const auto how = input.Take<uint8_t>();
  const std::string_view content = input.TakeRest();
  GoOnFrom(how & 1 ? WithFirstLine(content) : std::string(content), 0, false);
}

void RunState(FuzzInput input) {
  const auto how = input.Take<uint8_t>();
  const auto cluster = input.Take<uint8_t>();
  const std::string_view message = input.TakeRest();
  pb::SchedulerState state;
  if (!state.ParseFromArray(message.data(), static_cast<int>(message.size()))) return;
  if (how & 1) state.set_format(1);
  if (how & 2) state.set_job(kJob);
  GoOnFrom(WithFirstLine(state.SerializeAsString()), cluster, how & 4);
}

// A directory of this process alone, gone when it ends.
class Directory {
 public:
  Directory() {
    path_ = (std::filesystem::temp_directory_path() / "parley_fuzz_XXXXXX").string();
    Check(mkdtemp(path_.data()) != nullptr, "a directory can be made");
    Check(mkdir((path_ + "/authorized").c_str(), 0755) == 0, "and one in it");
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string Put(const std::string& name, std::string_view content, mode_t mode) const {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    Check(chmod(path.c_str(), mode) == 0, "a mode can be set");
    return path;
  }

 private:
  std::string path_;
};

void RunKeys(FuzzInput input) {
  static const Directory directory;
  const auto role = static_cast<PeerRole>(input.Take<uint8_t>() % 3 + 1);
  const auto how = input.Take<uint8_t>();
  const auto size = input.Take<uint16_t>();
  const std::string secret(input.TakeBytes(size));
  const std::string name = absl::StrCat(std::string(RoleName(role)), ".key");
  const std::string path = directory.Put(name, secret, how & 1 ? 0640 : 0600);
  directory.Put("authorized/one.pub", input.TakeRest(), how & 2 ? 0664 : 0644);
  const absl::StatusOr<NodeKeys> keys = LoadKeys(directory.path(), role);
  Check(unlink(path.c_str()) == 0, "the file is still there");
  if (!keys.ok()) {
    Check(keys.status().message().find("key") != std::string::npos, "a refusal names the file");
    return;
  }
  Check((how & 3) == 0, "what others may read or write is refused");
  Check(keys->role == role && keys->secret_key.size() == 40, "what is loaded is whole");
  Check(keys->authorized.size() == 1, "one is let in");
  for (const auto& [key, of] : keys->authorized) {
    Check(key.size() == 40 && of != PeerRole::kUnproven, "by a key, as something");
    Check(keys->RoleOf(key) == of, "which is what it is");
  }
}

}  // namespace
}  // namespace parley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::FuzzInput input(data, size);
  switch (input.Take<uint8_t>() % 3) {
    case 0:
      parley::RunFile(input);
      break;
    case 1:
      parley::RunState(input);
      break;
    default:
      parley::RunKeys(input);
  }
  return 0;
}
