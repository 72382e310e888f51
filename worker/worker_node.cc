#include "worker/worker_node.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/ids.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "worker/client/ps_client.h"
#include "worker/trainer.h"
#include "worker/workload.h"

namespace parley {

class WorkerNode::Impl {
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

  void Start() {
    Log(absl::StrCat("joining the job at ", options_.scheduler));
    link_.Start();
  }

  void Stop(const absl::Status& status) { link_.Fail(status); }

 private:
  // Filled by the thread that loads, read by the loop afterwards.
  struct Loading {
    pb::Experiment experiment;
    absl::StatusOr<std::unique_ptr<Workload>> workload = absl::UnknownError("");
  };

  SchedulerLink::Options LinkOptions() const {
    SchedulerLink::Options options;
    options.scheduler = options_.scheduler;
    options.join_timeout = options_.join_timeout;
    options.hello.set_role(pb::WORKER);
    options.hello.set_job(options_.job);
    options.hello.set_node_name(options_.node_name);
    if (options_.wanted_rank) options.hello.set_wanted_rank(*options_.wanted_rank);
    return options;
  }

  SchedulerLink::Handlers LinkHandlers() {
    SchedulerLink::Handlers handlers;
    handlers.on_welcome = [this](const pb::Welcome& welcome) { OnWelcome(welcome); };
    handlers.heartbeat = [this] { return Heartbeat(); };
    handlers.on_stop = [this](const pb::Stop& stop) {
      Log(stop.ok() ? "told that the job is done" : absl::StrCat("told to stop: ", stop.reason()));
      // Nothing that is under way matters any more.
      over_ = true;
    };
    handlers.on_end = [this](absl::Status status) {
      over_ = true;
      if (done_) std::exchange(done_, nullptr)(std::move(status));
    };
    return handlers;
  }

  void OnWelcome(const pb::Welcome& welcome) {
    welcome_ = welcome;
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
                    if (!alive.expired() && !over_) OnLoaded(std::move(loading->workload));
                  });
  }

  void OnLoaded(absl::StatusOr<std::unique_ptr<Workload>> workload) {
    if (!workload.ok()) {
      Fail(workload.status());
      return;
    }
    workload_ = *std::move(workload);
    pb::Register registration;
    *registration.add_table() = ModelTable(welcome_.experiment(), *workload_->model);
    if (workload_->embedding.has_value()) {
      *registration.add_table() = EmbeddingTable(welcome_.experiment());
    }
    registration.set_train_samples(workload_->data.train->samples());
    registration.set_test_samples(workload_->data.test->samples());
    registration.set_device(workload_->device->description());
    Log(absl::StrFormat("loaded %d training and %d test samples; device: %s",
                        registration.train_samples(), registration.test_samples(),
                        registration.device()));
    waiting_for_ = "the scheduler's assignment";
    // Longer than the scheduler's own patience: it is the one that knows who is missing.
    const pb::Cluster& cluster = welcome_.experiment().cluster();
    link_.Ask(pb::REGISTER, registration.SerializeAsString(),
              absl::Milliseconds(uint64_t{cluster.start_timeout_ms()} + cluster.node_timeout_ms()),
              "registration", [this](absl::StatusOr<Frame> answer) {
                pb::Assignment assignment;
                absl::Status status =
                    answer.ok() ? ParseBody(*answer, &assignment) : answer.status();
                if (status.ok()) status = BeginTraining(assignment);
                if (!status.ok()) Fail(status);
              });
  }

  absl::Status BeginTraining(const pb::Assignment& assignment) {
    if (over_) return absl::OkStatus();
    if (assignment.data_parts() == 0 || assignment.data_part() >= assignment.data_parts()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: data part %d of %d, expected is less than the number of parts",
          assignment.data_part(), assignment.data_parts()));
    }
    for (const pb::ShardAddress& shard : assignment.map().shard()) {
      absl::Status status = transport_->Connect(NodeId{shard.node()}, shard.endpoint());
      if (!status.ok()) return status;
    }
    absl::StatusOr<std::unique_ptr<PsClient>> client =
        PsClient::Create(env_, &rpc_, assignment, ClientOptions());
    if (!client.ok()) return client.status();
    absl::StatusOr<DenseLayout> own =
        DenseLayout::Create(ModelTable(welcome_.experiment(), *workload_->model));
    if (!own.ok()) return own.status();
    const DenseTable* dense = (*client)->dense(kModelTable);
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
    const SparseTable* rows = (*client)->sparse(kEmbeddingTable);
    const uint32_t dim = workload_->embedding.has_value() ? workload_->embedding->dim() : 0;
    if ((rows == nullptr ? 0 : rows->dim()) != dim) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: the rows of table %d have %d values, expected is %d as registered",
          kEmbeddingTable, rows == nullptr ? 0 : rows->dim(), dim));
    }
    client_ = *std::move(client);
    Trainer::Options options{.experiment = welcome_.experiment(),
                             .rank = welcome_.rank(),
                             .data_part = assignment.data_part(),
                             .data_parts = assignment.data_parts(),
                             .pool = options_.pool};
    Trainer::Handlers handlers;
    handlers.on_report = [this](pb::Report report) { SendReport(std::move(report)); };
    handlers.on_finished = [this](pb::Finished finished) {
      finished_ = std::move(finished);
      MaybeFinish();
    };
    handlers.on_error = [this](const absl::Status& status) { Fail(status); };
    trainer_ = std::make_unique<Trainer>(env_, client_.get(), workload_, std::move(options),
                                         std::move(handlers));
    Log(absl::StrFormat("training part %d of %d with %d shards", assignment.data_part(),
                        assignment.data_parts(), assignment.map().shard_size()));
    trainer_->Start();
    return absl::OkStatus();
  }

  PsClient::Options ClientOptions() {
    const pb::Cluster& cluster = welcome_.experiment().cluster();
    PsClient::Options options;
    options.max_request_bytes = uint64_t{cluster.max_request_kib()} * 1024;
    options.progress_timeout = absl::Milliseconds(cluster.progress_timeout_ms());
    options.pool = options_.pool;
    options.on_error = [this](const absl::Status& status) { Fail(status); };
    options.log = [this](const std::string& line) { Log(line); };
    return options;
  }

  void SendReport(pb::Report report) {
    Log(absl::StrFormat("epoch %d: %d samples in %.2f s (computing %.2f s, waiting %.2f s)",
                        report.data_epoch() + 1, report.train_samples(), report.train_seconds(),
                        report.compute_seconds(), report.wait_seconds()));
    ++reports_open_;
    link_.Ask(pb::REPORT, report.SerializeAsString(), AskTimeout(),
              absl::StrFormat("report of epoch %d", report.data_epoch() + 1),
              [this](absl::StatusOr<Frame> answer) {
                if (!answer.ok()) {
                  Fail(answer.status());
                  return;
                }
                --reports_open_;
                MaybeFinish();
              });
  }

  // FINISHED comes after every REPORT, though the network keeps no order.
  void MaybeFinish() {
    if (!finished_.has_value() || reports_open_ > 0 || std::exchange(finish_sent_, true)) return;
    finished_->set_rpc_retries(rpc_.counters().retries);
    Log(absl::StrFormat("finished after %d steps", finished_->steps()));
    link_.Ask(pb::FINISHED, finished_->SerializeAsString(), AskTimeout(), "the finished training",
              [this](absl::StatusOr<Frame> answer) {
                if (!answer.ok()) Fail(answer.status());
              });
    waiting_for_ = "the end of the job";
  }

  absl::Duration AskTimeout() const {
    return absl::Milliseconds(welcome_.experiment().cluster().progress_timeout_ms());
  }

  pb::Heartbeat Heartbeat() const {
    pb::Heartbeat heartbeat;
    if (trainer_ != nullptr) heartbeat = trainer_->Progress();
    if (trainer_ == nullptr || finish_sent_) heartbeat.set_waiting_for(waiting_for_);
    return heartbeat;
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
  std::shared_ptr<Workload> workload_;
  std::unique_ptr<PsClient> client_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<pb::Finished> finished_;
  uint64_t reports_open_ = 0;
  bool finish_sent_ = false;
  bool over_ = false;        // stopped or failed: late results are ignored
  std::string waiting_for_;  // while there is no trainer, and after it
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
  SchedulerLink link_;  // last: its handlers use the rest
};

WorkerNode::WorkerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}

WorkerNode::~WorkerNode() = default;

void WorkerNode::Start() { impl_->Start(); }

void WorkerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
