#include "tests/sim/update_worker.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/base/philox.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "worker/client/ps_client.h"

namespace parley {
namespace {

constexpr uint32_t kTable = 1, kPartitions = 8;
constexpr uint32_t kWindow = 12;  // updates of a worker that are open at once
constexpr uint64_t kStream = 0x0bda7e;
// Longer than any cut of the network and than the slowest worker.
constexpr absl::Duration kPatience = absl::Minutes(10);

pb::TableSpec Rows() {
  pb::TableSpec table;
  table.set_id(kTable);
  table.set_name("rows");
  table.set_seed(1);
  table.mutable_optimizer()->mutable_sgd();
  table.mutable_optimizer()->set_lr(1);
  table.mutable_optimizer()->mutable_schedule()->mutable_constant();
  table.mutable_sparse()->set_dim(UpdatePlan::kDim);
  table.mutable_sparse()->set_partitions(kPartitions);
  table.mutable_sparse()->set_init(pb::TensorSpec::ZERO);
  return table;
}

}  // namespace

UpdatePlan::Update UpdatePlan::Nth(uint32_t rank, uint32_t n) const {
  uint64_t index = (uint64_t{rank} << 40) + (uint64_t{n} << 8);
  const auto draw = [&](uint64_t below) { return Philox(seed, kStream, index++)[0] % below; };
  Update update;
  // Most have one key: those are gathered on a path of their own.
  update.keys.resize(draw(2) == 0 ? 1 : draw(7));
  for (uint64_t& key : update.keys) key = 1000 + draw(kKeys);
  update.gradients.resize(update.keys.size() * kDim);
  for (float& value : update.gradients) value = static_cast<float>(draw(7)) - 3;
  return update;
}

std::map<uint64_t, std::vector<float>> UpdatePlan::FinalRows() const {
  std::map<uint64_t, std::vector<float>> rows;
  for (uint32_t rank = 0; rank < workers; ++rank) {
    for (uint32_t n = 0; n < updates; ++n) {
      const Update update = Nth(rank, n);
      for (size_t i = 0; i < update.keys.size(); ++i) {
        std::vector<float>& row = rows[update.keys[i]];
        row.resize(kDim);
        for (uint32_t d = 0; d < kDim; ++d) row[d] -= update.gradients[i * kDim + d];
      }
    }
  }
  return rows;
}

class UpdateWorker::Impl {
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

  void Start() { link_.Start(); }

 private:
  SchedulerLink::Options LinkOptions() const {
    SchedulerLink::Options options;
    options.scheduler = options_.scheduler;
    options.hello.set_role(pb::WORKER);
    options.hello.set_job(options_.job);
    options.hello.set_node_name(options_.node_name);
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
    handlers.on_stop = [](const pb::Stop&) {};
    handlers.on_end = [this](absl::Status status) {
      if (done_) std::exchange(done_, nullptr)(std::move(status));
    };
    return handlers;
  }

  void OnWelcome(const pb::Welcome& welcome) {
    welcome_ = welcome;
    pb::Register registration;
    *registration.add_table() = Rows();
    registration.set_device("none");
    link_.Ask(pb::REGISTER, registration.SerializeAsString(), kPatience, "registration",
              [this](absl::StatusOr<Frame> answer) {
                pb::Assignment assignment;
                absl::Status status =
                    answer.ok() ? ParseBody(*answer, &assignment) : answer.status();
                if (status.ok()) status = Begin(assignment);
                if (!status.ok()) link_.Fail(status);
              });
  }

  absl::Status Begin(const pb::Assignment& assignment) {
    for (const pb::ShardAddress& shard : assignment.map().shard()) {
      absl::Status status = transport_->Connect(NodeId{shard.node()}, shard.endpoint());
      if (!status.ok()) return status;
    }
    PsClient::Options options;
    options.max_request_bytes = options_.max_request_bytes;
    options.progress_timeout = kPatience;
    options.on_error = [this](const absl::Status& status) { link_.Fail(status); };
    absl::StatusOr<std::unique_ptr<PsClient>> client =
        PsClient::Create(env_, &rpc_, assignment, std::move(options));
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    for (uint32_t i = 0; i < kWindow; ++i) Next();
    return absl::OkStatus();
  }

  void Next() {
    if (next_ == options_.plan.updates) {
      if (open_ == 0 && !std::exchange(sent_, true)) FinishUpdates();
      return;
    }
    const UpdatePlan::Update update = options_.plan.Nth(welcome_.rank(), next_++);
    ++open_;
    client_->sparse(kTable)->Update(update.keys, update.gradients.data(), [this] {
      --open_;
      ++acked_;
      Next();
    });
  }

  void FinishUpdates() {
    if (client_->sparse(kTable)->updates_open() != 0 ||
        client_->counters().updates_acked != acked_) {
      options_.violation(absl::StrFormat(
          "worker %d: %d updates are open and %d are counted as acknowledged, expected are 0 and "
          "%d",
          welcome_.rank(), client_->sparse(kTable)->updates_open(),
          client_->counters().updates_acked, acked_));
    }
    client_->WhenAllAcknowledged(
        [this] { client_->Leave(/*after_tick=*/0, [this] { PullAll(); }); });
  }

  // All rows, once all workers have left.
  void PullAll() {
    for (uint64_t i = 0; i < UpdatePlan::kKeys; ++i) keys_.push_back(1000 + i);
    rows_.resize(keys_.size() * UpdatePlan::kDim);
    client_->sparse(kTable)->Pull(DenseTable::kFinalTick, keys_, rows_.data(),
                                  [this](const PullResult&) { OnPulled(); });
  }

  void OnPulled() {
    const std::map<uint64_t, std::vector<float>> expected = options_.plan.FinalRows();
    for (size_t i = 0; i < keys_.size(); ++i) {
      const float* begin = rows_.data() + i * UpdatePlan::kDim;
      const std::vector<float> row(begin, begin + UpdatePlan::kDim);
      const auto found = expected.find(keys_[i]);
      const std::vector<float> want =
          found == expected.end() ? std::vector<float>(UpdatePlan::kDim) : found->second;
      if (row == want) continue;
      options_.violation(absl::StrFormat(
          "worker %d: the row of key %d is [%s] after all updates, expected is [%s]",
          welcome_.rank(), keys_[i], absl::StrJoin(row, ", "), absl::StrJoin(want, ", ")));
    }
    pb::Finished finished;
    finished.set_pushes_acked(client_->counters().pushes_acked);
    finished.set_rpc_retries(rpc_.counters().retries);
    link_.Ask(pb::FINISHED, finished.SerializeAsString(), kPatience, "the finished updates",
              [this](absl::StatusOr<Frame> answer) {
                if (!answer.ok()) link_.Fail(answer.status());
              });
  }

  Env* const env_;
  Transport* const transport_;
  Options options_;
  absl::AnyInvocable<void(absl::Status)> done_;
  Rpc rpc_;
  pb::Welcome welcome_;
  std::unique_ptr<PsClient> client_;
  uint32_t next_ = 0, open_ = 0;
  uint64_t acked_ = 0;
  bool sent_ = false;
  std::vector<uint64_t> keys_;
  std::vector<float> rows_;
  SchedulerLink link_;  // last: its handlers use the rest
};

UpdateWorker::UpdateWorker(Env* env, Transport* transport, Options options,
                           absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
UpdateWorker::~UpdateWorker() = default;
void UpdateWorker::Start() { impl_->Start(); }

}  // namespace parley
