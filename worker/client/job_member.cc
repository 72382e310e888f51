#include "worker/client/job_member.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/net/admission.h"

namespace parley {

JobMember::JobMember(Env* env, Transport* transport, Options options, Handlers handlers)
    : env_(env),
      transport_(transport),
      options_(std::move(options)),
      handlers_(std::move(handlers)),
      rpc_(env, transport),
      link_(env, transport, &rpc_, LinkOptions(), LinkHandlers()) {
  rpc_.SetAdmission([this](NodeId, const pb::FrameHeader& header) {
    return CheckAdmission(header, welcome_.job_id());
  });
}

SchedulerLink::Options JobMember::LinkOptions() const {
  SchedulerLink::Options options{options_.scheduler, options_.join_timeout, options_.hello};
  options.hello.set_role(pb::WORKER);
  return options;
}

SchedulerLink::Handlers JobMember::LinkHandlers() {
  SchedulerLink::Handlers handlers;
  handlers.on_welcome = [this](const pb::Welcome& welcome) {
    welcome_ = welcome;
    handlers_.on_welcome(welcome_);
  };
  handlers.heartbeat = [this] { return handlers_.heartbeat ? handlers_.heartbeat() : Waiting(); };
  handlers.on_assign = [this](const pb::Assignment& assignment) { return OnAssign(assignment); };
  handlers.log = [this](const std::string& line) { Log(line); };
  handlers.on_stop = [this](const pb::Stop& stop) {
    Log(stop.ok() ? "told that the job is done" : absl::StrCat("told to stop: ", stop.reason()));
    over_ = true;
  };
  handlers.on_end = [this](absl::Status status) {
    over_ = true;
    if (handlers_.on_end) std::exchange(handlers_.on_end, nullptr)(std::move(status));
  };
  return handlers;
}

void JobMember::Start() {
  Log(absl::StrCat("joining the job at ", options_.scheduler));
  link_.Start();
}

pb::Heartbeat JobMember::Waiting() const {
  pb::Heartbeat heartbeat;
  for (const auto& [rank, seat] : seats_) {
    pb::Heartbeat* worker = heartbeat.add_worker();
    worker->set_rank(rank);
    worker->set_waiting_for(seat.client->WaitingFor());
  }
  return heartbeat;
}

void JobMember::Register(const pb::Register& registration, absl::Duration patience,
                         PsClient::Options client, Hosting hosting) {
  registered_ = true;
  client_options_ = std::move(client);
  hosting_ = std::move(hosting);
  link_.Ask(pb::REGISTER, registration.SerializeAsString(), patience, "registration",
            [this](absl::StatusOr<Frame> answer) { OnRegistered(std::move(answer)); });
}

void JobMember::OnRegistered(absl::StatusOr<Frame> answer) {
  // An ASSIGN may have overtaken it, and then says all there is to know.
  if (over_ || (assigned_ && !answer.ok())) return;
  pb::Assignment assignment;
  absl::Status status = answer.ok() ? ParseBody(*answer, &assignment) : answer.status();
  if (status.ok()) status = Take(assignment);
  if (!status.ok()) Fail(status);
}

absl::StatusOr<std::string> JobMember::OnAssign(const pb::Assignment& assignment) {
  if (over_) return absl::FailedPreconditionError("this worker is ending");
  if (!registered_) return absl::UnavailableError("this worker has not registered yet");
  absl::Status status = Take(assignment);
  if (status.ok()) return std::string();
  Fail(status);
  return status;
}

absl::Status JobMember::Take(const pb::Assignment& assignment) {
  const auto newer = std::pair(assignment.generation(), assignment.map().epoch());
  if (assigned_ && newer <= std::pair(generation_, epoch_)) return absl::OkStatus();
  if (assignment.worker_node_size() != assignment.worker_incarnation_size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "assignment: it has %d incarnations for %d workers, expected is one for each",
        assignment.worker_incarnation_size(), assignment.worker_node_size()));
  }
  absl::Status status = ConnectShards(assignment.map());
  if (!status.ok()) return status;
  const bool anew = assigned_ && assignment.generation() != generation_;
  assigned_ = true;
  generation_ = assignment.generation();
  epoch_ = assignment.map().epoch();
  // What goes, goes before anything begins: it frees memory, and a rank may do both.
  std::vector<uint32_t> going;
  for (const auto& [rank, seat] : seats_) {
    if (anew || !IsOurs(assignment, rank) ||
        assignment.worker_incarnation(static_cast<int>(rank)) != seat.incarnation) {
      going.push_back(rank);
    }
  }
  for (uint32_t rank : going) {
    if (status = Drop(rank); !status.ok()) return status;
  }
  for (auto& [rank, seat] : seats_) {
    if (status = seat.client->OnMap(assignment.map()); !status.ok()) return status;
    if (over_) return absl::OkStatus();
  }
  DisconnectOthers(assignment.map());
  for (uint32_t rank = 0; rank < static_cast<uint32_t>(assignment.worker_node_size()); ++rank) {
    if (over_) return absl::OkStatus();
    if (!IsOurs(assignment, rank) || seats_.contains(rank)) continue;
    if (status = Begin(assignment, rank); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool JobMember::IsOurs(const pb::Assignment& assignment, uint32_t rank) const {
  return rank < static_cast<uint32_t>(assignment.worker_node_size()) &&
         NodeId{assignment.worker_node(static_cast<int>(rank))} == transport_->self();
}

absl::Status JobMember::ConnectShards(const pb::PartitionMap& map) {
  for (const pb::ShardAddress& shard : map.shard()) {
    std::string& endpoint = shards_[NodeId{shard.node()}];
    if (endpoint == shard.endpoint()) continue;
    absl::Status status = transport_->Connect(NodeId{shard.node()}, shard.endpoint());
    if (absl::IsUnavailable(status)) {
      // It may have died already; a later map says who has its partitions, or it is there by then.
      Log(absl::StrCat("cannot connect: ", status.message()));
      continue;
    }
    if (!status.ok()) return status;
    endpoint = shard.endpoint();
  }
  return absl::OkStatus();
}

// Nobody is asked there any more; a transport would go on trying to reach one that is dead.
void JobMember::DisconnectOthers(const pb::PartitionMap& map) {
  std::set<NodeId> named;
  for (const pb::ShardAddress& shard : map.shard()) named.insert(NodeId{shard.node()});
  std::erase_if(shards_, [&](const auto& shard) {
    const bool gone = !named.contains(shard.first);
    if (gone) transport_->Disconnect(shard.first);
    return gone;
  });
}

absl::Status JobMember::Drop(uint32_t rank) {
  if (!hosting_.drop) {
    return absl::FailedPreconditionError(
        absl::StrFormat("worker %d is moved or begins anew in epoch %d, which this kind of worker "
                        "cannot do",
                        rank, epoch_));
  }
  hosting_.drop(rank);
  seats_.erase(rank);
  return absl::OkStatus();
}

absl::Status JobMember::Begin(const pb::Assignment& assignment, uint32_t rank) {
  if (!hosting_.drop && !seats_.empty()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "worker %d is assigned beside worker %d, but this kind of worker hosts one alone", rank,
        seats_.begin()->first));
  }
  const int at = static_cast<int>(rank);
  Seat seat{.incarnation = assignment.worker_incarnation(at),
            .client = nullptr,
            .alive = std::make_shared<bool>(true)};
  PsClient::Options options;
  options.rank = rank;
  options.incarnation = seat.incarnation;
  options.max_request_bytes = client_options_.max_request_bytes;
  options.max_part_bytes = client_options_.max_part_bytes;
  options.progress_timeout = client_options_.progress_timeout;
  options.pool = client_options_.pool;
  options.mover = client_options_.mover;
  options.on_error = [this](const absl::Status& error) { Fail(error); };
  options.log = [this](const std::string& line) { Log(line); };
  absl::StatusOr<std::unique_ptr<PsClient>> created =
      PsClient::Create(env_, &rpc_, assignment, std::move(options));
  if (!created.ok()) return created.status();
  seat.client = *std::move(created);
  Hosted hosted{.rank = rank,
                .incarnation = seat.incarnation,
                .generation = assignment.generation(),
                .workers = static_cast<uint32_t>(assignment.worker_node_size()),
                .first_tick = assignment.restore().step(),
                .shards = static_cast<uint32_t>(assignment.map().shard_size()),
                .client = seat.client.get()};
  // Who begins with the generation is not always told where: with everybody.
  hosted.start_tick = hosted.first_tick;
  if (at < assignment.worker_start_size()) {
    hosted.start_tick = std::max(hosted.start_tick, assignment.worker_start(at));
  }
  if (at < assignment.worker_skip_below_size()) {
    hosted.skip_below = assignment.worker_skip_below(at);
  }
  seats_[rank] = std::move(seat);
  return hosting_.begin(hosted);
}

void JobMember::Ask(pb::Kind kind, std::string body, absl::Duration deadline,
                    const std::string& what, absl::AnyInvocable<void()> heard) {
  link_.Ask(kind, std::move(body), deadline, what,
            [this, heard = std::move(heard)](absl::StatusOr<Frame> answer) mutable {
              if (!answer.ok()) {
                Fail(answer.status());
              } else if (heard) {
                heard();
              }
            });
}

void JobMember::AskFor(uint32_t rank, pb::Kind kind, std::string body, absl::Duration deadline,
                       const std::string& what, absl::AnyInvocable<void()> heard) {
  link_.Ask(kind, std::move(body), deadline, what,
            [this, heard = std::move(heard), alive = std::weak_ptr<bool>(seats_.at(rank).alive)](
                absl::StatusOr<Frame> answer) mutable {
              if (alive.expired()) return;
              if (absl::IsFailedPrecondition(answer.status())) {
                Log(absl::StrCat("refused: ", answer.status().message()));
              } else if (!answer.ok()) {
                Fail(answer.status());
              } else if (heard) {
                heard();
              }
            });
}

void JobMember::Finish(uint32_t rank, pb::Finished finished, absl::Duration deadline) {
  finished.set_rank(rank);
  finished.set_incarnation(seats_.at(rank).incarnation);
  finished.set_generation(generation_);
  // The node's, each once.
  finished.set_rpc_retries(rpc_.counters().retries -
                           std::exchange(retries_told_, rpc_.counters().retries));
  AskFor(rank, pb::FINISHED, finished.SerializeAsString(), deadline,
         absl::StrFormat("the end of worker %d", rank));
}

void JobMember::Fail(const absl::Status& status) {
  if (std::exchange(over_, true)) return;
  Log(absl::StrCat("failed: ", status.message()));
  link_.Fail(status);
}

void JobMember::Log(const std::string& line) {
  if (options_.log) options_.log(line);
}

}  // namespace parley
