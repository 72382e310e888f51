#include "worker/client/job_member.h"

#include <utility>

#include "absl/strings/str_cat.h"
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
  handlers.heartbeat = [this] {
    if (handlers_.heartbeat) return handlers_.heartbeat();
    pb::Heartbeat heartbeat;
    if (client_ != nullptr) heartbeat.set_waiting_for(client_->WaitingFor());
    return heartbeat;
  };
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

void JobMember::Register(const pb::Register& registration, absl::Duration patience,
                         PsClient::Options client, OnAssigned on_assigned) {
  link_.Ask(pb::REGISTER, registration.SerializeAsString(), patience, "registration",
            [this, client = std::move(client),
             on_assigned = std::move(on_assigned)](absl::StatusOr<Frame> answer) mutable {
              if (over_) return;
              const absl::Status status =
                  OnAssignment(std::move(answer), std::move(client), on_assigned);
              if (!status.ok()) Fail(status);
            });
}

absl::Status JobMember::OnAssignment(absl::StatusOr<Frame> answer, PsClient::Options client,
                                     OnAssigned& on_assigned) {
  pb::Assignment assignment;
  absl::Status status = answer.ok() ? ParseBody(*answer, &assignment) : answer.status();
  if (!status.ok()) return status;
  for (const pb::ShardAddress& shard : assignment.map().shard()) {
    status = transport_->Connect(NodeId{shard.node()}, shard.endpoint());
    if (!status.ok()) return status;
  }
  client.on_error = [this](const absl::Status& error) { Fail(error); };
  client.log = [this](const std::string& line) { Log(line); };
  absl::StatusOr<std::unique_ptr<PsClient>> created =
      PsClient::Create(env_, &rpc_, assignment, std::move(client));
  if (!created.ok()) return created.status();
  client_ = *std::move(created);
  return on_assigned(assignment, client_.get());
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

void JobMember::Fail(const absl::Status& status) {
  if (std::exchange(over_, true)) return;
  Log(absl::StrCat("failed: ", status.message()));
  link_.Fail(status);
}

void JobMember::Log(const std::string& line) {
  if (options_.log) options_.log(line);
}

}  // namespace parley
