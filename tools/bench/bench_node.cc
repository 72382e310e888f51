#include "tools/bench/bench_node.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "tools/bench/load.h"
#include "worker/client/ps_client.h"

namespace parley {
namespace {

constexpr absl::Duration kMeetLook = absl::Milliseconds(2);
constexpr absl::Duration kAnswerTimeout = absl::Seconds(60);

}  // namespace

class BenchNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        transport_(transport),
        options_(std::move(options)),
        done_(std::move(done)),
        rpc_(env, transport),
        link_(env, transport, &rpc_, LinkOptions(), LinkHandlers()) {
    rpc_.SetAdmission([this](NodeId, const pb::FrameHeader& header) {
      return CheckAdmission(header, welcome_.job_id());
    });
  }
  ~Impl() { env_->Cancel(meet_timer_); }

  void Start() { link_.Start(); }
  void Stop(const absl::Status& status) { link_.Fail(status); }

 private:
  SchedulerLink::Options LinkOptions() const {
    SchedulerLink::Options options;
    options.scheduler = options_.scheduler;
    options.hello.set_role(pb::WORKER);
    options.hello.set_job(options_.job);
    options.hello.set_node_name(options_.node_name);
    options.hello.set_wanted_rank(options_.rank);
    return options;
  }

  SchedulerLink::Handlers LinkHandlers() {
    SchedulerLink::Handlers handlers;
    handlers.on_welcome = [this](const pb::Welcome& welcome) { OnWelcome(welcome); };
    handlers.heartbeat = [this] {
      pb::Heartbeat heartbeat;
      if (client_ != nullptr) heartbeat.set_waiting_for(client_->WaitingFor());
      return heartbeat;
    };
    handlers.on_stop = [this](const pb::Stop&) { over_ = true; };
    handlers.on_end = [this](absl::Status status) {
      over_ = true;
      if (done_) std::exchange(done_, nullptr)(std::move(status));
    };
    return handlers;
  }

  void OnWelcome(const pb::Welcome& welcome) {
    welcome_ = welcome;
    pb::Register registration;
    for (pb::TableSpec& table : BenchTables(options_.plan)) {
      *registration.add_table() = std::move(table);
    }
    registration.set_device("bench");
    link_.Ask(pb::REGISTER, registration.SerializeAsString(), kAnswerTimeout, "registration",
              [this](absl::StatusOr<Frame> answer) {
                pb::Assignment assignment;
                absl::Status status =
                    answer.ok() ? ParseBody(*answer, &assignment) : answer.status();
                if (status.ok()) status = Begin(assignment);
                if (!status.ok()) Fail(status);
              });
  }

  absl::Status Begin(const pb::Assignment& assignment) {
    if (over_) return absl::OkStatus();
    for (const pb::ShardAddress& shard : assignment.map().shard()) {
      absl::Status status = transport_->Connect(NodeId{shard.node()}, shard.endpoint());
      if (!status.ok()) return status;
    }
    PsClient::Options options;
    options.max_request_bytes = uint64_t{options_.plan.max_request_kib} << 10;
    options.pool = options_.pool;
    options.on_error = [this](const absl::Status& status) { Fail(status); };
    options.log = [this](const std::string& line) { Log(line); };
    absl::StatusOr<std::unique_ptr<PsClient>> client =
        PsClient::Create(env_, &rpc_, assignment, std::move(options));
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    LoadContext context;
    context.env = env_;
    context.client = client_.get();
    context.plan = &options_.plan;
    context.pool = options_.pool;
    context.rank = welcome_.rank();
    context.record = [this](const Series& series) { Record(series); };
    context.meet = [this](const std::string& name, absl::AnyInvocable<void()> go) {
      Meet(name, std::move(go));
    };
    context.say = [this](const std::string& line) { Say(line); };
    load_ = Load::Create(std::move(context));
    load_->Start([this] { OnLoadDone(); });
    return absl::OkStatus();
  }

  void Record(const Series& series) {
    const absl::Status status =
        AppendSeries(WorkerResults(options_.directory, options_.rank), series);
    if (!status.ok()) Fail(status);
  }

  // Only one speaks; they all measure the same.
  void Say(const std::string& line) {
    Log(line);
    if (options_.rank != 0) return;
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }

  std::string MeetingFile(const std::string& name, uint32_t rank) const {
    return absl::StrFormat("%s/at-%s.%d", options_.directory, name, rank);
  }

  void Meet(const std::string& name, absl::AnyInvocable<void()> go) {
    std::ofstream(MeetingFile(name, options_.rank)).put('\n');
    meet_go_ = std::move(go);
    LookAround(name);
  }

  void LookAround(const std::string& name) {
    if (over_) return;
    bool all = true;
    std::error_code ignored;
    for (uint32_t rank = 0; rank < options_.plan.workers; ++rank) {
      all = all && std::filesystem::exists(MeetingFile(name, rank), ignored);
    }
    if (all) {
      env_->Post(std::exchange(meet_go_, nullptr));
    } else {
      meet_timer_ = env_->After(kMeetLook, [this, name] { LookAround(name); });
    }
  }

  void OnLoadDone() {
    client_->WhenAllAcknowledged([this] {
      client_->Leave(load_->ticks(), [this] {
        const PsClient::Counters& counters = client_->counters();
        pb::Finished finished;
        finished.set_steps(load_->ticks());
        finished.set_pushes_acked(counters.pushes_acked);
        finished.set_rpc_retries(rpc_.counters().retries);
        finished.set_bytes_pushed(counters.bytes_pushed);
        finished.set_bytes_pulled(counters.bytes_pulled);
        Record({"rpc_retries", "", {static_cast<double>(rpc_.counters().retries)}});
        link_.Ask(pb::FINISHED, finished.SerializeAsString(), kAnswerTimeout, "the finished load",
                  [this](absl::StatusOr<Frame> answer) {
                    if (!answer.ok()) Fail(answer.status());
                  });
      });
    });
  }

  void Fail(const absl::Status& status) {
    if (std::exchange(over_, true)) return;
    Log(absl::StrCat("failed: ", status.message()));
    link_.Fail(status);
  }

  void Log(const std::string& line) {
    if (options_.log) options_.log(line);
  }

  Env* const env_;
  Transport* const transport_;
  Options options_;
  absl::AnyInvocable<void(absl::Status)> done_;
  Rpc rpc_;
  pb::Welcome welcome_;
  std::unique_ptr<PsClient> client_;
  std::unique_ptr<Load> load_;
  absl::AnyInvocable<void()> meet_go_;
  TimerId meet_timer_ = kNoTimer;
  bool over_ = false;   // stopped or failed
  SchedulerLink link_;  // last: its handlers use the rest
};

BenchNode::BenchNode(Env* env, Transport* transport, Options options,
                     absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
BenchNode::~BenchNode() = default;
void BenchNode::Start() { impl_->Start(); }
void BenchNode::Stop(const absl::Status& status) { impl_->Stop(status); }

std::string WorkerResults(const std::string& directory, uint32_t rank) {
  return absl::StrFormat("%s/worker-%d.tsv", directory, rank);
}

}  // namespace parley
