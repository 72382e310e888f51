#include "worker/client/shard_queues.h"

#include <cassert>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace parley {
namespace {

bool IsPush(const ShardRequest& request) {
  return request.kind == ShardRequest::Kind::kPush || request.kind == ShardRequest::Kind::kPushPull;
}

}  // namespace

ShardQueues::~ShardQueues() {
  for (const auto& [id, flight] : in_flight_) rpc_->Cancel(flight.call);
}

void ShardQueues::AddShard(NodeId node, std::string name) {
  Shard& shard = shards_.emplace_back();
  shard.node = node;
  shard.name = std::move(name);
}

void ShardQueues::Enqueue(uint32_t shard, std::unique_ptr<ShardRequest> request) {
  if (failed_) return;
  if (IsPush(*request)) ++pushes_open_;
  Insert(shards_[shard], std::move(request));
  Pump(shard);
}

void ShardQueues::Insert(Shard& shard, std::unique_ptr<ShardRequest> request) {
  Lane& lane = shard.lanes[request->small ? 0 : 1];
  Queue& queue = IsPush(*request) ? lane.pushes : lane.pulls;
  const Place place{request->step, request->rank, next_serial_++};
  queue.emplace(place, std::move(request));
}

void ShardQueues::Pump(uint32_t shard) {
  for (Lane& lane : shards_[shard].lanes) {
    while (!failed_ && (SendPush(shard, lane) || SendPull(shard, lane))) {
    }
  }
}

bool ShardQueues::SendPush(uint32_t shard, Lane& lane) {
  if (lane.pushes.empty()) return false;
  ShardRequest& head = *lane.pushes.begin()->second;
  if (!head.MayLeave()) return false;
  const bool fused = head.kind == ShardRequest::Kind::kPushPull && PullsTake(lane, head);
  if (!fused && !lane.pushing.Takes(head.push_bytes)) return false;
  std::unique_ptr<ShardRequest> request = std::move(lane.pushes.begin()->second);
  lane.pushes.erase(lane.pushes.begin());
  // Without credit for its answer, which other workers may hold up, the gradient leaves alone: they
  // may wait for it as well.
  if (!fused && request->kind == ShardRequest::Kind::kPushPull) {
    Insert(shards_[shard], request->Split());
    request->kind = ShardRequest::Kind::kPush;
  }
  Charge(lane, *request, /*back=*/false);
  Send(shard, std::move(request));
  return true;
}

bool ShardQueues::SendPull(uint32_t shard, Lane& lane) {
  if (lane.pulls.empty()) return false;
  const auto head = lane.pulls.begin();
  if (!lane.pushes.empty()) {
    // Small pushes have no order but that of their coming, which so is a small pull's towards them.
    const Place& push = lane.pushes.begin()->first;
    const bool small = &lane == &shards_[shard].lanes[0];
    if (small ? push.serial < head->first.serial : push < head->first) return false;
  }
  if (!PullsTake(lane, *head->second)) return false;
  std::unique_ptr<ShardRequest> request = std::move(head->second);
  lane.pulls.erase(head);
  Charge(lane, *request, /*back=*/false);
  Send(shard, std::move(request));
  return true;
}

// Pulls of later ticks do not count: they may be parked until this one's tick is over.
bool ShardQueues::PullsTake(const Lane& lane, const ShardRequest& request) {
  Load load;
  for (const auto& [tick, pulling] : lane.pulling) {
    if (tick > request.pull_tick) break;
    load.messages += pulling.messages;
    load.bytes += pulling.bytes;
  }
  return load.Takes(request.pull_bytes);
}

void ShardQueues::Charge(Lane& lane, const ShardRequest& request, bool back) {
  const bool push = request.kind == ShardRequest::Kind::kPush;
  Load& load = push ? lane.pushing : lane.pulling[request.pull_tick];
  const uint64_t bytes = push ? request.push_bytes : request.pull_bytes;
  if (!back) {
    ++load.messages;
    load.bytes += bytes;
    return;
  }
  --load.messages;
  load.bytes -= bytes;
  if (!push && load.messages == 0) lane.pulling.erase(request.pull_tick);
}

void ShardQueues::Send(uint32_t index, std::unique_ptr<ShardRequest> request) {
  const Shard& shard = shards_[index];
  const uint64_t id = next_flight_++;
  Frame frame = request->MakeFrame();
  CallOptions options{.deadline = options_.progress_timeout, .what = request->What(shard.name)};
  const CallId call =
      rpc_->Call(shard.node, std::move(frame), std::move(options),
                 [this, id](absl::StatusOr<Frame> answer) { OnAnswer(id, std::move(answer)); });
  in_flight_.emplace_hint(in_flight_.end(), id, InFlight{index, call, std::move(request)});
}

void ShardQueues::OnAnswer(uint64_t id, absl::StatusOr<Frame> answer) {
  const auto found = in_flight_.find(id);
  assert(found != in_flight_.end());
  InFlight flight = std::move(found->second);
  in_flight_.erase(found);
  ShardRequest& request = *flight.request;
  if (!answer.ok()) {
    if (request.TryAgain(answer.status())) {
      if (options_.log && absl::IsDeadlineExceeded(answer.status())) {
        options_.log(absl::StrCat("still waiting: ", answer.status().message()));
      }
      // At once, with the credit that it holds: what stands at the head of the queue may wait for
      // its sequence.
      Send(flight.shard, std::move(flight.request));
    } else {
      OnError(flight, answer.status());
    }
    return;
  }
  Charge(shards_[flight.shard].lanes[request.small ? 0 : 1], request, /*back=*/true);
  // After a push, once its acknowledgement is counted: the next one should say so. Where there are
  // weights, before: the link should not wait for what is done with them. A push-pull has both, and
  // what stands at the head of the queue may wait for its sequence.
  const bool counted = IsPush(request);
  if (request.kind != ShardRequest::Kind::kPush) Pump(flight.shard);
  absl::Status status = request.OnAnswer(*std::move(answer));
  if (!status.ok()) {
    OnError(flight, status);
    return;
  }
  if (failed_) return;
  if (counted) Pump(flight.shard);
  flight.request.reset();
  if (counted) Release();
}

void ShardQueues::OnError(const InFlight& flight, const absl::Status& error) {
  // A deadline's message names the request already.
  const std::string what = flight.request->What(shards_[flight.shard].name);
  const std::string text(error.message());
  Fail(absl::StartsWith(text, what) ? error
                                    : absl::Status(error.code(), absl::StrCat(what, ": ", text)));
}

void ShardQueues::Release() {
  if (--pushes_open_ == 0 && on_all_acknowledged_) std::exchange(on_all_acknowledged_, nullptr)();
}

void ShardQueues::WhenAllAcknowledged(absl::AnyInvocable<void()> done) {
  if (failed_) return;
  if (pushes_open_ == 0) {
    done();
  } else {
    on_all_acknowledged_ = std::move(done);
  }
}

void ShardQueues::Fail(const absl::Status& status) {
  if (std::exchange(failed_, true)) return;
  for (const auto& [id, flight] : in_flight_) rpc_->Cancel(flight.call);
  in_flight_.clear();
  for (Shard& shard : shards_) {
    for (Lane& lane : shard.lanes) {
      lane.pushes.clear();
      lane.pulls.clear();
    }
  }
  on_all_acknowledged_ = nullptr;
  options_.on_error(status);
}

std::string ShardQueues::WaitingFor() const {
  if (in_flight_.empty()) return "";
  const InFlight& oldest = in_flight_.begin()->second;
  const std::string reason = rpc_->ParkedFor(oldest.call);
  return reason.empty() ? oldest.request->What(shards_[oldest.shard].name) : reason;
}

}  // namespace parley
