#include "scheduler/membership.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

std::string Member::Describe(bool with_shard) const {
  const char* kind = role == pb::SERVER ? "server" : "worker";
  std::string text = absl::StrCat(spare ? "spare " : "", kind, " ", rank);
  if (role == pb::SERVER && with_shard) absl::StrAppend(&text, " shard ", shard);
  return absl::StrCat(text, " (", name, ")");
}

Membership::Membership(std::string job, const pb::Cluster& cluster)
    : job_(std::move(job)),
      servers_wanted_(cluster.servers()),
      shards_(cluster.shards_per_server()),
      workers_wanted_(cluster.workers()) {}

absl::StatusOr<Member*> Membership::Admit(NodeId node, const pb::Hello& hello, absl::Duration now) {
  if (!hello.job().empty() && hello.job() != job_) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "this scheduler runs job '%s', the node asks for job '%s'", job_, hello.job()));
  }
  if (Member* known = Find(node)) {
    known->last_heard = now;
    return known;
  }
  if (std::find(gone_.begin(), gone_.end(), node) != gone_.end()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "node %s was given up for dead; it has to be started again", ToString(node)));
  }
  if (hello.node_name().size() > kMaxName || hello.endpoint().size() > kMaxName) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a name of %d and an endpoint of %d bytes; allowed are %d each",
                        hello.node_name().size(), hello.endpoint().size(), kMaxName));
  }
  Member member;
  member.node = node;
  member.role = hello.role();
  member.name = hello.node_name();
  member.endpoint = hello.endpoint();
  member.last_heard = now;
  if (hello.role() == pb::SERVER) return AdmitServer(node, hello, std::move(member));
  if (hello.role() == pb::WORKER) return AdmitWorker(node, hello, std::move(member));
  return absl::InvalidArgumentError(absl::StrFormat(
      "role %s cannot join, allowed are SERVER and WORKER", pb::Role_Name(hello.role())));
}

absl::StatusOr<Member*> Membership::AdmitServer(NodeId node, const pb::Hello& hello,
                                                Member member) {
  if (hello.endpoint().empty())
    return absl::InvalidArgumentError("a server must name its endpoint");
  if (hello.process() == 0) return absl::InvalidArgumentError("a server must name its process");
  if (hello.shard() >= shards_) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shard %d of %s is one too many: the experiment has shards_per_server %d",
                        hello.shard(), hello.node_name(), shards_));
  }
  member.shard = hello.shard();
  member.process = hello.process();
  auto known = process_rank_.find(hello.process());
  if (known == process_rank_.end()) {
    const uint32_t rank = PickRank(hello, server_ranks_, servers_wanted_);
    if (rank >= servers_wanted_) {
      if (absl::Status status = CheckSpares(pb::SERVER); !status.ok()) return status;
    }
    server_ranks_.insert(rank);
    known = process_rank_.emplace(hello.process(), rank).first;
  }
  member.rank = known->second;
  member.spare = member.rank >= servers_wanted_;
  for (const auto& [other_node, other] : members_) {
    if (other.role == pb::SERVER && other.rank == member.rank && other.shard == member.shard) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s is there already", other.Describe(true)));
    }
  }
  return &(members_[node] = std::move(member));
}

uint32_t Membership::PickRank(const pb::Hello& hello, const std::set<uint32_t>& taken,
                              uint32_t places) {
  if (!hello.spare() && hello.has_wanted_rank() && hello.wanted_rank() < places &&
      !taken.contains(hello.wanted_rank())) {
    return hello.wanted_rank();
  }
  uint32_t rank = hello.spare() ? places : 0;
  while (taken.contains(rank)) ++rank;
  return rank;
}

absl::StatusOr<Member*> Membership::AdmitWorker(NodeId node, const pb::Hello& hello,
                                                Member member) {
  member.rank = PickRank(hello, worker_ranks_, workers_wanted_);
  if (member.rank >= workers_wanted_) {
    if (absl::Status status = CheckSpares(pb::WORKER); !status.ok()) return status;
  }
  worker_ranks_.insert(member.rank);
  member.spare = member.rank >= workers_wanted_;
  return &(members_[node] = std::move(member));
}

absl::Status Membership::CheckSpares(pb::Role role) const {
  const size_t spares = std::count_if(members_.begin(), members_.end(), [&](const auto& entry) {
    return entry.second.spare && entry.second.role == role;
  });
  if (spares < kMaxSpares) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("job '%s' has all its %d %ss and %d spares waiting; no more are admitted",
                      job_, role == pb::SERVER ? servers_wanted_ : workers_wanted_,
                      role == pb::SERVER ? "server" : "worker", spares));
}

Member* Membership::Find(NodeId node) {
  auto found = members_.find(node);
  return found == members_.end() ? nullptr : &found->second;
}

void Membership::Heard(NodeId node, absl::Duration now) {
  if (Member* member = Find(node)) member->last_heard = now;
}

void Membership::HeardAll(absl::Duration now) {
  for (auto& [node, member] : members_) {
    if (member.last_heard != absl::InfiniteDuration()) member.last_heard = now;
  }
}

std::vector<Member*> Membership::all() {
  std::vector<Member*> found;
  for (auto& [node, member] : members_) found.push_back(&member);
  std::sort(found.begin(), found.end(), [](const Member* a, const Member* b) {
    return std::tie(a->role, a->rank, a->shard) < std::tie(b->role, b->rank, b->shard);
  });
  return found;
}

std::vector<Member*> Membership::servers() {
  std::vector<Member*> found = all();
  std::erase_if(found, [](const Member* m) { return m->role != pb::SERVER || m->spare; });
  return found;
}

std::vector<Member*> Membership::workers() {
  std::vector<Member*> found = all();
  std::erase_if(found, [](const Member* m) { return m->role != pb::WORKER || m->spare; });
  return found;
}

bool Membership::servers_complete() const {
  const size_t count = std::count_if(members_.begin(), members_.end(), [](const auto& entry) {
    return entry.second.role == pb::SERVER && !entry.second.spare;
  });
  return count == size_t{servers_wanted_} * shards_;
}

bool Membership::workers_complete() const {
  return std::count_if(worker_ranks_.begin(), worker_ranks_.end(),
                       [&](uint32_t rank) { return rank < workers_wanted_; }) == workers_wanted_;
}

void Membership::Remove(NodeId node) {
  auto found = members_.find(node);
  if (found == members_.end()) return;
  const Member& member = found->second;
  if (member.role == pb::WORKER) {
    worker_ranks_.erase(member.rank);
  } else if (ShardsOf(member.process).size() == 1) {
    // The other shards of its process keep the rank until they are gone, too.
    server_ranks_.erase(member.rank);
    process_rank_.erase(member.process);
  }
  members_.erase(found);
  gone_.push_back(node);
  if (gone_.size() > kMaxGone) gone_.pop_front();
}

std::vector<Member*> Membership::FillPlaces() {
  std::vector<Member*> filled;
  for (Member* spare : all()) {
    if (!spare->spare) continue;
    const bool server = spare->role == pb::SERVER;
    std::set<uint32_t>& taken = server ? server_ranks_ : worker_ranks_;
    uint32_t rank = 0;
    while (taken.contains(rank)) ++rank;
    if (rank >= (server ? servers_wanted_ : workers_wanted_)) continue;
    std::vector<Member*> nodes = {spare};
    if (server) {
      nodes = ShardsOf(spare->process);
      if (nodes.size() < shards_) continue;
      process_rank_[spare->process] = rank;
    }
    taken.erase(spare->rank);
    taken.insert(rank);
    for (Member* node : nodes) {
      node->rank = rank;
      node->spare = false;
      filled.push_back(node);
    }
  }
  return filled;
}

std::vector<Member*> Membership::ShardsOf(uint64_t process) {
  std::vector<Member*> found;
  for (auto& [node, member] : members_) {
    if (member.role == pb::SERVER && member.process == process) found.push_back(&member);
  }
  return found;
}

void Membership::Save(pb::SchedulerState* state) const {
  for (const auto& [node, member] : members_) {
    pb::MemberState* saved = state->add_member();
    saved->set_node(Value(node));
    saved->set_role(member.role);
    saved->set_rank(member.rank);
    saved->set_shard(member.shard);
    saved->set_incarnation(member.incarnation);
    saved->set_spare(member.spare);
    saved->set_process(member.process);
    saved->set_name(member.name);
    saved->set_endpoint(member.endpoint);
    saved->set_ready(member.ready);
    saved->set_slow(member.slow);
  }
}

void Membership::Load(const pb::SchedulerState& state, absl::Duration now) {
  for (const pb::MemberState& saved : state.member()) {
    Member member;
    member.node = NodeId{saved.node()};
    member.role = saved.role();
    member.rank = saved.rank();
    member.shard = saved.shard();
    member.incarnation = saved.incarnation();
    member.spare = saved.spare();
    member.process = saved.process();
    member.name = saved.name();
    member.endpoint = saved.endpoint();
    member.ready = saved.ready();
    member.slow = saved.slow();
    member.last_heard = now;
    if (member.role == pb::SERVER) {
      server_ranks_.insert(member.rank);
      process_rank_[member.process] = member.rank;
    } else {
      worker_ranks_.insert(member.rank);
    }
    members_[member.node] = std::move(member);
  }
}

std::string Membership::Missing() const {
  std::vector<uint32_t> shards_of(servers_wanted_, 0);
  for (const auto& [node, member] : members_) {
    if (member.role == pb::SERVER && !member.spare) ++shards_of[member.rank];
  }
  std::string missing;
  for (uint32_t rank = 0; rank < servers_wanted_; ++rank) {
    if (shards_of[rank] == shards_) continue;
    absl::StrAppend(&missing, missing.empty() ? "" : ", ", "server ", rank);
    if (shards_of[rank] > 0) {
      absl::StrAppend(&missing, " (", shards_of[rank], " of ", shards_, " shards)");
    }
  }
  for (uint32_t rank = 0; rank < workers_wanted_; ++rank) {
    if (worker_ranks_.contains(rank)) continue;
    absl::StrAppend(&missing, missing.empty() ? "" : ", ", "worker ", rank);
  }
  return missing;
}

Member* Membership::Silent(absl::Duration now, absl::Duration allowed) {
  Member* silent = nullptr;
  for (auto& [node, member] : members_) {
    if (now - member.last_heard <= allowed) continue;
    if (silent == nullptr || member.last_heard < silent->last_heard) silent = &member;
  }
  return silent;
}

}  // namespace parley
