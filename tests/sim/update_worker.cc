#include "tests/sim/update_worker.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/base/philox.h"
#include "worker/client/job_member.h"

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
      : options_(std::move(options)),
        member_(env, transport, MemberOptions(),
                {.on_welcome = [this](const pb::Welcome&) { OnWelcome(); },
                 .on_end = std::move(done)}) {}

  void Start() { member_.Start(); }

 private:
  JobMember::Options MemberOptions() const {
    JobMember::Options member{.scheduler = options_.scheduler};
    member.hello.set_job(options_.job);
    member.hello.set_node_name(options_.node_name);
    return member;
  }

  void OnWelcome() {
    pb::Register registration;
    *registration.add_table() = Rows();
    registration.set_device("none");
    member_.Register(
        registration, kPatience,
        {.max_request_bytes = options_.max_request_bytes, .progress_timeout = kPatience},
        {.begin = [this](const JobMember::Hosted& hosted) {
          client_ = hosted.client;
          rank_ = hosted.rank;
          for (uint32_t i = 0; i < kWindow; ++i) Next();
          return absl::OkStatus();
        }});
  }

  void Next() {
    if (next_ == options_.plan.updates) {
      if (open_ == 0 && !std::exchange(sent_, true)) FinishUpdates();
      return;
    }
    const UpdatePlan::Update update = options_.plan.Nth(rank_, next_++);
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
          rank_, client_->sparse(kTable)->updates_open(), client_->counters().updates_acked,
          acked_));
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
          "worker %d: the row of key %d is [%s] after all updates, expected is [%s]", rank_,
          keys_[i], absl::StrJoin(row, ", "), absl::StrJoin(want, ", ")));
    }
    pb::Finished finished;
    finished.set_pushes_acked(client_->counters().pushes_acked);
    member_.Finish(rank_, std::move(finished), kPatience);
  }

  Options options_;
  JobMember member_;
  PsClient* client_ = nullptr;  // the member's
  uint32_t rank_ = 0;
  uint32_t next_ = 0, open_ = 0;
  uint64_t acked_ = 0;
  bool sent_ = false;
  std::vector<uint64_t> keys_;
  std::vector<float> rows_;
};

UpdateWorker::UpdateWorker(Env* env, Transport* transport, Options options,
                           absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
UpdateWorker::~UpdateWorker() = default;
void UpdateWorker::Start() { impl_->Start(); }

}  // namespace parley
