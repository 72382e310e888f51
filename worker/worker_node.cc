#include "worker/worker_node.h"

#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/dense_layout.h"
#include "worker/client/job_member.h"
#include "worker/client/ps_client.h"
#include "worker/logical_worker.h"
#include "worker/workload.h"

namespace parley {

class WorkerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        pool_(options.pool),
        gpu_(options.gpu != nullptr ? options.gpu : own_gpu_.get()),
        probe_(options.probe),
        member_(env, transport, MemberOptions(std::move(options)),
                MemberHandlers(std::move(done))) {}

  void Start() { member_.Start(); }
  void Stop(const absl::Status& status) { member_.Fail(status); }

 private:
  // Filled by the thread that builds, read by the loop afterwards.
  struct Building {
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
    if (options.spare) member.hello.set_spare(true);
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
    } else {
      Log(absl::StrFormat("joined job %s as worker %d", welcome.job(), welcome.rank()));
    }
    Build(nullptr, [this](std::shared_ptr<Workload> workload) { OnLoaded(std::move(workload)); });
  }

  // Builds a workload off the loop, on data that are there already or else loads them, and calls
  // `done` with it; an error ends the node.
  void Build(std::shared_ptr<const Workload::Data> data,
             absl::AnyInvocable<void(std::shared_ptr<Workload>)> done) {
    auto building = std::make_shared<Building>();
    building->experiment = member_.welcome().experiment();
    env_->Offload(
        [building, data = std::move(data), gpu = gpu_, own = own_gpu_] {
          building->workload = data == nullptr ? LoadWorkload(building->experiment, gpu)
                                               : BuildWorkload(building->experiment, *data, gpu);
        },
        [this, building, done = std::move(done), alive = std::weak_ptr<bool>(alive_)]() mutable {
          if (alive.expired() || member_.over()) return;
          if (building->workload.ok()) {
            done(*std::move(building->workload));
          } else {
            Fail(building->workload.status());
          }
        });
  }

  void OnLoaded(std::shared_ptr<Workload> workload) {
    const pb::Experiment& experiment = member_.welcome().experiment();
    data_ = std::make_shared<const Workload::Data>(workload->data);
    model_table_ = ModelTable(experiment, *workload->model);
    dim_ = workload->embedding.has_value() ? workload->embedding->dim() : 0;
    if (workload->device_pool != nullptr) {
      absl::StatusOr<std::unique_ptr<PayloadMover>> mover = gpu_->MakeMover();
      if (!mover.ok()) {
        Fail(mover.status());
        return;
      }
      mover_ = *std::move(mover);
    }
    pb::Register registration;
    *registration.add_table() = model_table_;
    if (dim_ > 0) *registration.add_table() = EmbeddingTable(experiment);
    registration.set_train_samples(data_->train->samples());
    registration.set_test_samples(data_->test->samples());
    registration.set_device(workload->device->description());
    unused_ = std::move(workload);
    Log(absl::StrFormat("loaded %d training and %d test samples; device: %s",
                        registration.train_samples(), registration.test_samples(),
                        registration.device()));
    if (!unused_->device_note.empty()) Log(unused_->device_note);
    loaded_ = true;
    // Longer than the scheduler's own patience, and than it may be away: it is the one that knows
    // who is missing.
    const pb::Cluster& cluster = experiment.cluster();
    member_.Register(registration,
                     absl::Milliseconds(uint64_t{cluster.start_timeout_ms()} +
                                        cluster.node_timeout_ms() + cluster.scheduler_timeout_ms()),
                     {.max_request_bytes = uint64_t{cluster.max_request_kib()} * 1024,
                      .progress_timeout = absl::Milliseconds(cluster.progress_timeout_ms()),
                      .pool = pool_,
                      .mover = mover_.get()},
                     {.begin = [this](const JobMember::Hosted& hosted) { return Begin(hosted); },
                      .drop = [this](uint32_t rank) { Drop(rank); }});
  }

  absl::Status Begin(const JobMember::Hosted& hosted) {
    absl::Status status = CheckTables(hosted);
    if (!status.ok()) return status;
    auto worker = std::make_shared<LogicalWorker>(env_, &member_, hosted, pool_, probe_);
    workers_[hosted.rank] = worker;
    if (unused_ != nullptr) {
      worker->Train(std::exchange(unused_, nullptr));
      return absl::OkStatus();
    }
    // The one before may still be computing with its own.
    Build(data_,
          [worker = std::weak_ptr<LogicalWorker>(worker)](std::shared_ptr<Workload> workload) {
            if (std::shared_ptr<LogicalWorker> alive = worker.lock())
              alive->Train(std::move(workload));
          });
    return absl::OkStatus();
  }

  void Drop(uint32_t rank) {
    Log(absl::StrFormat("part %d is dropped: it is moved, or begins anew", rank));
    workers_.erase(rank);
  }

  // All workers must have read the same data.
  absl::Status CheckTables(const JobMember::Hosted& hosted) const {
    absl::StatusOr<DenseLayout> own = DenseLayout::Create(model_table_);
    if (!own.ok()) return own.status();
    const DenseTable* dense = hosted.client->dense(kModelTable);
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
    const SparseTable* rows = hosted.client->sparse(kEmbeddingTable);
    if ((rows == nullptr ? 0 : rows->dim()) != dim_) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "assignment: the rows of table %d have %d values, expected is %d as registered",
          kEmbeddingTable, rows == nullptr ? 0 : rows->dim(), dim_));
    }
    return absl::OkStatus();
  }

  pb::Heartbeat Heartbeat() const {
    pb::Heartbeat heartbeat;
    for (const auto& [rank, worker] : workers_) *heartbeat.add_worker() = worker->Progress();
    if (!loaded_) {
      heartbeat.set_waiting_for("its data");
    } else if (workers_.empty()) {
      heartbeat.set_waiting_for("work");
    }
    return heartbeat;
  }

  void Fail(const absl::Status& status) { member_.Fail(status); }
  void Log(const std::string& line) { member_.Log(line); }

  Env* const env_;
  BufferPool* const pool_;
  // Held by what is being built off the loop, too.
  const std::shared_ptr<GpuSeat> own_gpu_ = std::make_shared<GpuSeat>();
  GpuSeat* const gpu_;
  std::unique_ptr<PayloadMover> mover_;  // to device memory, where tables are there
  WorkerProbe* const probe_;
  JobMember member_;  // owns the clients that the workers use
  // Of what was loaded; set with loaded_.
  bool loaded_ = false;
  std::shared_ptr<const Workload::Data> data_;
  pb::TableSpec model_table_;
  uint32_t dim_ = 0;                  // of the embedding's rows; 0: there is none
  std::shared_ptr<Workload> unused_;  // the first, until somebody trains with it
  std::map<uint32_t, std::shared_ptr<LogicalWorker>> workers_;        // by rank; owned here alone
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
};

WorkerNode::WorkerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}

WorkerNode::~WorkerNode() = default;

void WorkerNode::Start() { impl_->Start(); }

void WorkerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
