#include "tools/bench/bench_node.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/bench/load.h"
#include "worker/client/job_member.h"

namespace parley {
namespace {

constexpr absl::Duration kMeetLook = absl::Milliseconds(2);
constexpr absl::Duration kAnswerTimeout = absl::Seconds(60);

}  // namespace

class BenchNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        options_(std::move(options)),
        member_(env, transport, MemberOptions(),
                {.on_welcome = [this](const pb::Welcome&) { OnWelcome(); },
                 .on_end = std::move(done)}) {}
  ~Impl() { env_->Cancel(meet_timer_); }

  void Start() { member_.Start(); }
  void Stop(const absl::Status& status) { member_.Fail(status); }

 private:
  JobMember::Options MemberOptions() {
    JobMember::Options member{.scheduler = options_.scheduler, .log = std::move(options_.log)};
    member.hello.set_job(options_.job);
    member.hello.set_node_name(options_.node_name);
    member.hello.set_wanted_rank(options_.rank);
    return member;
  }

  void OnWelcome() {
    pb::Register registration;
    for (pb::TableSpec& table : BenchTables(options_.plan)) {
      *registration.add_table() = std::move(table);
    }
    registration.set_device("bench");
    member_.Register(
        registration, kAnswerTimeout,
        {.max_request_bytes = uint64_t{options_.plan.max_request_kib} << 10, .pool = options_.pool},
        {.begin = [this](const JobMember::Hosted& hosted) {
          Begin(hosted);
          return absl::OkStatus();
        }});
  }

  void Begin(const JobMember::Hosted& hosted) {
    client_ = hosted.client;
    rank_ = hosted.rank;
    LoadContext context;
    context.env = env_;
    context.client = client_;
    context.plan = &options_.plan;
    context.pool = options_.pool;
    context.rank = rank_;
    context.record = [this](const Series& series) { Record(series); };
    context.meet = [this](const std::string& name, absl::AnyInvocable<void()> go) {
      Meet(name, std::move(go));
    };
    context.say = [this](const std::string& line) { Say(line); };
    load_ = Load::Create(std::move(context));
    load_->Start([this] { OnLoadDone(); });
  }

  void Record(const Series& series) {
    const absl::Status status =
        AppendSeries(WorkerResults(options_.directory, options_.rank), series);
    if (!status.ok()) member_.Fail(status);
  }

  // Only one speaks; they all measure the same.
  void Say(const std::string& line) {
    member_.Log(line);
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
    if (member_.over()) return;
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
        finished.set_bytes_pushed(counters.bytes_pushed);
        finished.set_bytes_pulled(counters.bytes_pulled);
        Record({"rpc_retries", "", {static_cast<double>(member_.rpc().counters().retries)}});
        member_.Finish(rank_, std::move(finished), kAnswerTimeout);
      });
    });
  }

  Env* const env_;
  Options options_;
  JobMember member_;
  PsClient* client_ = nullptr;  // the member's
  uint32_t rank_ = 0;           // given
  std::unique_ptr<Load> load_;
  absl::AnyInvocable<void()> meet_go_;
  TimerId meet_timer_ = kNoTimer;
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
