#include "worker/worker_node.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/ids.h"
#include "worker/client/job_member.h"
#include "worker/client/ps_client.h"
#include "worker/trainer.h"
#include "worker/workload.h"

namespace parley {

class WorkerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        pool_(options.pool),
        member_(env, transport, MemberOptions(std::move(options)),
                MemberHandlers(std::move(done))) {}

  void Start() { member_.Start(); }
  void Stop(const absl::Status& status) { member_.Fail(status); }

 private:
  // Filled by the thread that loads, read by the loop afterwards.
  struct Loading {
    pb::Experiment experiment;
    absl::StatusOr<std::unique_ptr<Workload>> workload = absl::UnknownError("");
  };

  static JobMember::Options MemberOptions(Options options) {
    JobMember::Options member{.scheduler = std::move(options.scheduler),
                              .join_timeout = options.join_timeout,
                              .log = std::move(options.log)};
    member.hello.set_job(options.job);
    member.hello.set_node_name(options.node_name);
    if (options.wanted_rank) member.hello.set_wanted_rank(*options.wanted_rank);
    return member;
  }

  JobMember::Handlers MemberHandlers(absl::AnyInvocable<void(absl::Status)> done) {
    return {.on_welcome = [this](const pb::Welcome& welcome) { OnWelcome(welcome); },
            .heartbeat = [this] { return Heartbeat(); },
            .on_end = std::move(done)};
  }

  void OnWelcome(const pb::Welcome& welcome) {
    if (welcome.spare()) {
      Log(absl::StrCat("joined job ", welcome.job(), " as a spare"));
      waiting_for_ = "work: this worker is a spare";
      return;
    }
    Log(absl::StrFormat("joined job %s as worker %d", welcome.job(), welcome.rank()));
    auto loading = std::make_shared<Loading>();
    loading->experiment = welcome.experiment();
    env_->Offload([loading] { loading->workload = LoadWorkload(loading->experiment); },
                  [this, loading, alive = std::weak_ptr<bool>(alive_)] {
                    if (!alive.expired() && !member_.over()) OnLoaded(std::move(loading->workload));
                  });
  }

  void OnLoaded(absl::StatusOr<std::unique_ptr<Workload>> workload) {
    if (!workload.ok()) {
      Fail(workload.status());
      return;
    }
    workload_ = *std::move(workload);
    pb::Register registration;
    *registration.add_table() = ModelTable(member_.welcome().experiment(), *workload_->model);
    if (workload_->embedding.has_value()) {
      *registration.add_table() = EmbeddingTable(member_.welcome().experiment());
    }
    registration.set_train_samples(workload_->data.train->samples());
    registration.set_test_samples(workload_->data.test->samples());
    registration.set_device(workload_->device->description());
    Log(absl::StrFormat("loaded %d training and %d test samples; device: %s",
                        registration.train_samples(), registration.test_samples(),
                        registration.device()));
    waiting_for_ = "the scheduler's assignment";
    // Longer than the scheduler's own patience: it is the one that knows who is missing.
    const pb::Cluster& cluster = member_.welcome().experiment().cluster();
    member_.Register(
        registration,
        absl::Milliseconds(uint64_t{cluster.start_timeout_ms()} + cluster.node_timeout_ms()),
        {.max_request_bytes = uint64_t{cluster.max_request_kib()} * 1024,
         .progress_timeout = absl::Milliseconds(cluster.progress_timeout_ms()),
         .pool = pool_},
        [this](const pb::Assignment& assignment, PsClient* client) {
          return BeginTraining(assignment, client);
        });
  }

  absl::Status BeginTraining(const pb::Assignment& assignment, PsClient* client) {
    if (assignment.data_parts() == 0 || assignment.data_part() >= assignment.data_parts()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: data part %d of %d, expected is less than the number of parts",
          assignment.data_part(), assignment.data_parts()));
    }
    absl::StatusOr<DenseLayout> own =
        DenseLayout::Create(ModelTable(member_.welcome().experiment(), *workload_->model));
    if (!own.ok()) return own.status();
    const DenseTable* dense = client->dense(kModelTable);
    if (dense == nullptr) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: table %d is not in it, expected is the one registered", kModelTable));
    }
    const DenseLayout& given = dense->layout();
    if (own->elements() != given.elements() || own->partitions() != given.partitions()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: its table has %d elements in %d partitions, expected is %d in %d as "
          "registered: do all workers read the same data?",
          given.elements(), given.partitions(), own->elements(), own->partitions()));
    }
    const SparseTable* rows = client->sparse(kEmbeddingTable);
    const uint32_t dim = workload_->embedding.has_value() ? workload_->embedding->dim() : 0;
    if ((rows == nullptr ? 0 : rows->dim()) != dim) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: the rows of table %d have %d values, expected is %d as registered",
          kEmbeddingTable, rows == nullptr ? 0 : rows->dim(), dim));
    }
    Trainer::Options options{.experiment = member_.welcome().experiment(),
                             .rank = member_.welcome().rank(),
                             .data_part = assignment.data_part(),
                             .data_parts = assignment.data_parts(),
                             .pool = pool_};
    Trainer::Handlers handlers;
    handlers.on_report = [this](pb::Report report) { SendReport(std::move(report)); };
    handlers.on_finished = [this](pb::Finished finished) {
      finished_ = std::move(finished);
      MaybeFinish();
    };
    handlers.on_error = [this](const absl::Status& status) { Fail(status); };
    trainer_ =
        std::make_unique<Trainer>(env_, client, workload_, std::move(options), std::move(handlers));
    Log(absl::StrFormat("training part %d of %d with %d shards", assignment.data_part(),
                        assignment.data_parts(), assignment.map().shard_size()));
    trainer_->Start();
    return absl::OkStatus();
  }

  void SendReport(pb::Report report) {
    Log(absl::StrFormat("epoch %d: %d samples in %.2f s (computing %.2f s, waiting %.2f s)",
                        report.data_epoch() + 1, report.train_samples(), report.train_seconds(),
                        report.compute_seconds(), report.wait_seconds()));
    ++reports_open_;
    member_.Ask(pb::REPORT, report.SerializeAsString(), AskTimeout(),
                absl::StrFormat("report of epoch %d", report.data_epoch() + 1), [this] {
                  --reports_open_;
                  MaybeFinish();
                });
  }

  // FINISHED comes after every REPORT, though the network keeps no order.
  void MaybeFinish() {
    if (!finished_.has_value() || reports_open_ > 0 || std::exchange(finish_sent_, true)) return;
    finished_->set_rpc_retries(member_.rpc().counters().retries);
    Log(absl::StrFormat("finished after %d steps", finished_->steps()));
    member_.Ask(pb::FINISHED, finished_->SerializeAsString(), AskTimeout(),
                "the finished training");
    waiting_for_ = "the end of the job";
  }

  absl::Duration AskTimeout() const {
    return absl::Milliseconds(member_.welcome().experiment().cluster().progress_timeout_ms());
  }

  pb::Heartbeat Heartbeat() const {
    pb::Heartbeat heartbeat;
    if (trainer_ != nullptr) heartbeat = trainer_->Progress();
    if (trainer_ == nullptr || finish_sent_) heartbeat.set_waiting_for(waiting_for_);
    return heartbeat;
  }

  void Fail(const absl::Status& status) { member_.Fail(status); }
  void Log(const std::string& line) { member_.Log(line); }

  Env* const env_;
  BufferPool* const pool_;
  JobMember member_;  // owns the client that the trainer uses
  std::shared_ptr<Workload> workload_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<pb::Finished> finished_;
  uint64_t reports_open_ = 0;
  bool finish_sent_ = false;
  std::string waiting_for_;  // while there is no trainer, and after it
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
};

WorkerNode::WorkerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}

WorkerNode::~WorkerNode() = default;

void WorkerNode::Start() { impl_->Start(); }

void WorkerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
