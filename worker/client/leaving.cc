#include "worker/client/leaving.h"

#include <algorithm>
#include <cassert>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "proto/cluster.pb.h"
#include "worker/client/shard_queues.h"

namespace parley {

class Leaving::Request : public ShardRequest {
 public:
  Request(Leaving* leaving, uint32_t shard, uint64_t number)
      : ShardRequest(Kind::kLeave), leaving_(leaving), shard_(shard), number_(number) {
    small = true;
  }

  Frame MakeFrame() override {
    Frame frame;
    frame.header.set_kind(pb::LEAVE);
    frame.header.set_epoch(leaving_->core_->epoch);
    pb::Leave leave;
    leave.set_after_tick(leaving_->after_tick_);
    frame.header.set_body(leave.SerializeAsString());
    return frame;
  }
  std::string What(const std::string& shard) const override {
    return absl::StrFormat("leave after %d steps to %s", leaving_->after_tick_, shard);
  }
  bool BelongsTo(uint32_t shard) const override { return leaving_->Counts(shard, number_); }
  std::vector<Piece> SplitByOwner() override {
    std::vector<Piece> pieces;
    if (BelongsTo(shard_)) {
      pieces.push_back({shard_, std::make_unique<Request>(leaving_, shard_, number_)});
    }
    return pieces;
  }
  absl::Status OnAnswer(Frame) override {
    leaving_->asked_.at(shard_).answered = true;
    leaving_->EndIfAllAnswered();
    return absl::OkStatus();
  }

 private:
  Leaving* const leaving_;
  const uint32_t shard_;
  const uint64_t number_;
};

void Leaving::Begin(uint64_t after_tick, absl::AnyInvocable<void()> done) {
  assert(!begun_);
  begun_ = true;
  after_tick_ = after_tick;
  on_left_ = std::move(done);
  for (uint32_t shard : core_->shards) asked_[shard];
  for (uint32_t shard : core_->shards) Ask(shard);
}

void Leaving::OnMap(const std::set<uint32_t>& gained) {
  if (!begun_) return;
  const std::set<uint32_t> present(core_->shards.begin(), core_->shards.end());
  std::erase_if(asked_, [&present](const auto& asked) { return !present.contains(asked.first); });
  for (uint32_t shard : present) {
    if (gained.contains(shard) || !asked_.contains(shard)) Ask(shard);
  }
}

void Leaving::EndIfAllAnswered() {
  if (!on_left_ || !std::all_of(asked_.begin(), asked_.end(),
                                [](const auto& asked) { return asked.second.answered; })) {
    return;
  }
  std::exchange(on_left_, nullptr)();
}

void Leaving::Ask(uint32_t shard) {
  asked_[shard] = {.number = next_number_, .answered = false};
  core_->queues->Enqueue(shard, std::make_unique<Request>(this, shard, next_number_++));
}

bool Leaving::Counts(uint32_t shard, uint64_t number) const {
  const auto found = asked_.find(shard);
  return found != asked_.end() && found->second.number == number;
}

}  // namespace parley
