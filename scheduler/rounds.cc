#include "scheduler/rounds.h"

#include <algorithm>
#include <utility>

#include "ps/net/scheduler_link.h"

namespace parley {
namespace {

// In deadlines: how long all of it may take a server that says it is at work, as one that reads a
// checkpoint. A disk may hang while its server lives.
constexpr int kLongestDeadlines = 10;

}  // namespace

Rounds::Rounds(Env* env, Rpc* rpc, absl::Duration deadline, Handlers handlers)
    : env_(env), rpc_(rpc), deadline_(deadline), handlers_(std::move(handlers)) {}

Rounds::~Rounds() { Cancel(); }

void Rounds::Cancel() {
  for (const auto& [node, call] : servers_) rpc_->Cancel(call);
  for (const auto& [node, call] : workers_) rpc_->Cancel(call);
  servers_.clear();
  workers_.clear();
}

bool Rounds::OwnsAny(const pb::Assignment& assignment, NodeId node) {
  const pb::PartitionMap& map = assignment.map();
  for (const pb::TableMap& table : map.table()) {
    for (uint32_t owner : table.owner()) {
      if (map.shard(owner).node() == Value(node)) return true;
    }
  }
  return false;
}

void Rounds::Run(pb::Assignment assignment, const std::vector<Target>& servers, bool skip) {
  Cancel();
  assignment_ = std::move(assignment);
  // What an earlier round said of it is out of date.
  assignment_.clear_worker_start();
  assignment_.clear_worker_skip_below();
  skip_ = skip;
  began_ = env_->Now();
  answers_.clear();
  for (const Target& target : servers) {
    Call(target, &servers_, [this](NodeId node, Frame answer) { OnServer(node, answer); });
  }
}

void Rounds::Call(const Target& target, std::map<NodeId, CallId>* calls,
                  absl::AnyInvocable<void(NodeId, Frame)> answered) {
  Frame frame;
  frame.header.set_kind(pb::ASSIGN);
  frame.header.set_body(assignment_.SerializeAsString());
  // Impatient: an answer takes no time, or is parked; and what one server misses all wait for.
  CallOptions call{.deadline = deadline_,
                   .attempt = absl::Milliseconds(200),
                   .max_attempt = absl::Seconds(2),
                   .what = "assignment to " + target.name,
                   .parked_extends = true,
                   .longest = kLongestDeadlines * deadline_};
  (*calls)[target.node] = rpc_->Call(target.node, std::move(frame), std::move(call),
                                     [this, node = target.node, answered = std::move(answered)](
                                         absl::StatusOr<Frame> answer) mutable {
                                       if (!answer.ok()) {
                                         handlers_.on_error(node, answer.status());
                                         return;
                                       }
                                       answered(node, *std::move(answer));
                                     });
}

void Rounds::OnServer(NodeId node, const Frame& answer) {
  pb::Assigned assigned;
  // Only who owns partitions knows what is missing.
  if (OwnsAny(assignment_, node) && ParseBody(answer, &assigned).ok()) {
    if (!assigned.lacks().empty()) return handlers_.on_lacks(node, assigned);
    answers_.push_back(std::move(assigned));
  }
  servers_.erase(node);
  if (servers_.empty()) OnServersReady();
}

bool Rounds::parked() const {
  return std::any_of(servers_.begin(), servers_.end(),
                     [this](const auto& entry) { return !rpc_->ParkedFor(entry.second).empty(); });
}

void Rounds::Drop(NodeId server) {
  auto found = servers_.find(server);
  if (found == servers_.end()) return;
  rpc_->Cancel(found->second);
  servers_.erase(found);
  if (servers_.empty()) OnServersReady();
}

void Rounds::OnServersReady() {
  FillStarts();
  handlers_.on_servers_ready(assignment_);
  TellWorkers();
}

void Rounds::FillStarts() {
  for (int rank = 0; rank < assignment_.worker_node_size(); ++rank) {
    std::optional<uint64_t> lowest;
    uint64_t highest = 0;
    for (const pb::Assigned& answer : answers_) {
      if (rank < answer.lowest_missing_size()) {
        lowest = std::min(lowest.value_or(~uint64_t{0}), answer.lowest_missing(rank));
      }
      if (rank < answer.highest_missing_size()) {
        highest = std::max(highest, answer.highest_missing(rank));
      }
    }
    const uint64_t start = lowest.value_or(assignment_.restore().step());
    assignment_.add_worker_start(start);
    if (skip_) assignment_.add_worker_skip_below(std::max(start, highest));
  }
}

void Rounds::TellWorkers() {
  const std::vector<Target> targets = handlers_.workers_to_tell();
  for (const Target& target : targets) {
    Call(target, &workers_, [this](NodeId node, Frame) {
      workers_.erase(node);
      if (workers_.empty()) Done();
    });
  }
  if (targets.empty()) Done();
}

void Rounds::Done() { handlers_.on_done(env_->Now() - began_); }

}  // namespace parley
