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

ShardQueues::~ShardQueues() { CancelAll(); }

uint32_t ShardQueues::AddShard(NodeId node, std::string name) {
  size_t index = 0;
  while (index < shards_.size() && shards_[index].node != node) ++index;
  if (index == shards_.size()) shards_.emplace_back().node = node;
  shards_[index].name = std::move(name);
  return static_cast<uint32_t>(index);
}

void ShardQueues::Enqueue(uint32_t shard, std::unique_ptr<ShardRequest> request) {
  if (failed_) return;
  if (IsPush(*request)) ++pushes_open_;
  const Place place = NewPlace(*request);
  Insert(shard, place, std::move(request));
  Pump(shard);
}

ShardQueues::Place ShardQueues::NewPlace(const ShardRequest& request) {
  return {.step = request.step, .rank = request.rank, .serial = next_serial_++};
}

void ShardQueues::Insert(uint32_t shard, const Place& place,
                         std::unique_ptr<ShardRequest> request) {
  Lane& lane = LaneOf(shard, *request);
  Queue& queue = IsPush(*request) ? lane.pushes : lane.pulls;
  queue.emplace(place, std::move(request));
}

void ShardQueues::Pump(uint32_t shard) {
  if (paused_) return;
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
  const Place place = lane.pushes.begin()->first;
  std::unique_ptr<ShardRequest> request = std::move(lane.pushes.begin()->second);
  lane.pushes.erase(lane.pushes.begin());
  // Without credit for its answer, which other workers may hold up, the gradient leaves alone: they
  // may wait for it as well.
  if (!fused && request->kind == ShardRequest::Kind::kPushPull) {
    std::unique_ptr<ShardRequest> pull = request->Split();
    const Place pull_place = NewPlace(*pull);
    Insert(shard, pull_place, std::move(pull));
    request->kind = ShardRequest::Kind::kPush;
  }
  Charge(lane, *request, /*back=*/false);
  Send(shard, place, std::move(request));
  return true;
}

bool ShardQueues::SendPull(uint32_t shard, Lane& lane) {
  if (lane.pulls.empty()) return false;
  const auto head = lane.pulls.begin();
  if (!lane.pushes.empty()) {
    // Small pushes have no order but that of their coming, which so is a small pull's towards them.
    const Place& push = lane.pushes.begin()->first;
    const bool small = &lane == &shards_[shard].lanes[0];
    const bool before =
        small ? !push.fresh || push.serial < head->first.serial : push < head->first;
    if (before) return false;
  }
  if (!PullsTake(lane, *head->second)) return false;
  const Place place = head->first;
  std::unique_ptr<ShardRequest> request = std::move(head->second);
  lane.pulls.erase(head);
  Charge(lane, *request, /*back=*/false);
  Send(shard, place, std::move(request));
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

void ShardQueues::GiveCreditBack(InFlight& flight) {
  if (!std::exchange(flight.charged, false)) return;
  Charge(LaneOf(flight.shard, *flight.request), *flight.request, /*back=*/true);
}

void ShardQueues::Send(uint32_t index, const Place& place, std::unique_ptr<ShardRequest> request) {
  const Shard& shard = shards_[index];
  const uint64_t id = next_flight_++;
  Frame frame = request->MakeFrame();
  frame.header.set_rank(options_.rank);
  frame.header.set_incarnation(options_.incarnation);
  CallOptions options{.deadline = options_.progress_timeout,
                      .what = request->What(shard.name),
                      .on_parked = [this, id] { OnParked(id); }};
  InFlight flight{.shard = index, .place = place, .maps = maps_};
  flight.request = std::move(request);
  flight.call =
      rpc_->Call(shard.node, std::move(frame), std::move(options),
                 [this, id](absl::StatusOr<Frame> answer) { OnAnswer(id, std::move(answer)); });
  in_flight_.emplace_hint(in_flight_.end(), id, std::move(flight));
}

// It was taken. A push is parked for other workers, who may wait for pushes behind it.
void ShardQueues::OnParked(uint64_t id) {
  InFlight& flight = in_flight_.at(id);
  flight.request->give_up_at.reset();
  if (flight.request->kind != ShardRequest::Kind::kPush) return;
  GiveCreditBack(flight);
  Pump(flight.shard);
}

void ShardQueues::OnAnswer(uint64_t id, absl::StatusOr<Frame> answer) {
  const auto found = in_flight_.find(id);
  assert(found != in_flight_.end());
  InFlight flight = std::move(found->second);
  in_flight_.erase(found);
  ShardRequest& request = *flight.request;
  if (!answer.ok()) {
    if (absl::IsFailedPrecondition(answer.status())) {
      OnRefused(std::move(flight), answer.status());
    } else if (request.TryAgain(answer.status())) {
      if (options_.log && absl::IsDeadlineExceeded(answer.status())) {
        options_.log(absl::StrCat("still waiting: ", answer.status().message()));
      }
      // At once, with the credit that it holds, or without: what stands at the head of the queue
      // may wait for its sequence.
      if (!flight.charged) Charge(LaneOf(flight.shard, request), request, /*back=*/false);
      Send(flight.shard, flight.place, std::move(flight.request));
    } else {
      OnError(flight.shard, request, answer.status());
    }
    return;
  }
  GiveCreditBack(flight);
  // After a push, once its acknowledgement is counted: the next one should say so. Where there are
  // weights, before: the link should not wait for what is done with them. A push-pull has both, and
  // what stands at the head of the queue may wait for its sequence.
  const bool counted = IsPush(request);
  if (request.kind != ShardRequest::Kind::kPush) Pump(flight.shard);
  absl::Status status = request.OnAnswer(*std::move(answer));
  if (!status.ok()) {
    OnError(flight.shard, request, status);
    return;
  }
  if (failed_) return;
  if (counted) Pump(flight.shard);
  flight.request.reset();
  if (counted) Release();
}

// Some partition is not at the shard any more, or not yet: a newer map will say where it is.
void ShardQueues::OnRefused(InFlight flight, const absl::Status& error) {
  GiveCreditBack(flight);
  ShardRequest& request = *flight.request;
  if (IsPush(request)) flight.place.fresh = false;
  if (!request.give_up_at.has_value()) {
    request.give_up_at = env_->Now() + options_.progress_timeout;
  }
  if (flight.maps < maps_) {
    // There is one already, which leads to the same shard; it was asked before it had that map.
    Insert(flight.shard, flight.place, std::move(flight.request));
  } else {
    if (options_.log && held_.empty()) {
      options_.log(absl::StrCat("held for a newer partition map: ",
                                request.What(shards_[flight.shard].name), ": ", error.message()));
    }
    const uint64_t id = next_flight_++;
    const TimerId timer =
        env_->After(*request.give_up_at - env_->Now(), [this, id] { OnGiveUp(id); });
    held_.emplace(id, Held{.shard = flight.shard,
                           .place = flight.place,
                           .said = std::string(error.message()),
                           .timer = timer,
                           .request = std::move(flight.request)});
  }
  Pump(flight.shard);
}

void ShardQueues::OnGiveUp(uint64_t id) {
  const auto found = held_.find(id);
  const Held held = std::move(found->second);
  held_.erase(found);
  OnError(held.shard, *held.request,
          absl::FailedPreconditionError(
              absl::StrCat(held.said, "; no partition map that came within ",
                           absl::FormatDuration(options_.progress_timeout), " changed that")));
}

void ShardQueues::Reroute() {
  paused_ = false;
  if (failed_) return;
  ++maps_;
  std::vector<std::pair<Place, std::unique_ptr<ShardRequest>>> moved;
  for (uint32_t shard = 0; shard < shards_.size(); ++shard) {
    for (Lane& lane : shards_[shard].lanes) {
      for (Queue* queue : {&lane.pushes, &lane.pulls}) {
        for (auto it = queue->begin(); it != queue->end();) {
          const auto at = it++;
          if (at->second->BelongsTo(shard)) continue;
          moved.emplace_back(at->first, std::move(at->second));
          queue->erase(at);
        }
      }
    }
  }
  for (auto it = in_flight_.begin(); it != in_flight_.end();) {
    const auto at = it++;
    InFlight& flight = at->second;
    if (flight.request->BelongsTo(flight.shard)) continue;
    rpc_->Cancel(flight.call);
    GiveCreditBack(flight);
    if (IsPush(*flight.request)) flight.place.fresh = false;
    moved.emplace_back(flight.place, std::move(flight.request));
    in_flight_.erase(at);
  }
  for (auto& [id, held] : held_) {
    env_->Cancel(held.timer);
    moved.emplace_back(held.place, std::move(held.request));
  }
  held_.clear();
  for (auto& [place, request] : moved) {
    std::vector<ShardRequest::Piece> pieces = request->SplitByOwner();
    if (IsPush(*request)) pushes_open_ += pieces.size() - 1;
    for (ShardRequest::Piece& piece : pieces) {
      piece.request->give_up_at = request->give_up_at;
      Insert(piece.shard, place, std::move(piece.request));
    }
  }
  for (uint32_t shard = 0; shard < shards_.size(); ++shard) Pump(shard);
}

void ShardQueues::OnError(uint32_t shard, const ShardRequest& request, const absl::Status& error) {
  // A deadline's message names the request already.
  const std::string what = request.What(shards_[shard].name);
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
  CancelAll();
  for (Shard& shard : shards_) {
    for (Lane& lane : shard.lanes) {
      lane.pushes.clear();
      lane.pulls.clear();
    }
  }
  on_all_acknowledged_ = nullptr;
  options_.on_error(status);
}

void ShardQueues::CancelAll() {
  for (const auto& [id, flight] : in_flight_) rpc_->Cancel(flight.call);
  in_flight_.clear();
  for (const auto& [id, held] : held_) env_->Cancel(held.timer);
  held_.clear();
}

std::string ShardQueues::WaitingFor() const {
  if (!held_.empty()) {
    const Held& oldest = held_.begin()->second;
    return absl::StrCat("a newer partition map for the ",
                        oldest.request->What(shards_[oldest.shard].name), ": ", oldest.said);
  }
  if (in_flight_.empty()) return "";
  const InFlight& oldest = in_flight_.begin()->second;
  const std::string reason = rpc_->ParkedFor(oldest.call);
  return reason.empty() ? oldest.request->What(shards_[oldest.shard].name) : reason;
}

}  // namespace parley
