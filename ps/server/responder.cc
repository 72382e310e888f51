#include "ps/server/responder.h"

#include <new>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// A request that waits longer than this is told that it is parked. Below the first retry of rpc.h,
// above a usual step.
constexpr absl::Duration kParkedNotice = absl::Milliseconds(300);

}  // namespace

Responder::~Responder() {
  env_->Cancel(timer_);
  env_->Cancel(release_timer_);
}

bool Responder::TellIfHeld(NodeId from, const pb::FrameHeader& header) {
  const ParkedRequests::Entry* entry = parked_.Find(from, header.request_id());
  if (entry == nullptr) return false;
  rpc_->ReplyParked(from, header, WaitsFor(entry->request));
  return true;
}

void Responder::Answer(NodeId from, TableRequest&& request, bool tell) {
  if (TryAnswer(from, request)) return;
  absl::Status status = parked_.Park(from, std::move(request), env_->Now());
  if (!status.ok()) {
    rpc_->ReplyError(from, request.header, status);
    return;
  }
  if (tell) {
    ParkedRequests::Entry& entry = parked_.back();
    entry.told = true;
    rpc_->ReplyParked(from, entry.request.header, WaitsFor(entry.request));
  } else if (timer_ == kNoTimer) {
    timer_ = env_->After(kParkedNotice, [this] { Notify(); });
  }
}

bool Responder::TryAnswer(NodeId from, const TableRequest& request) {
  if (!MayAcknowledge(request)) return false;
  const pb::Kind kind = request.header.kind();
  if (kind == pb::PUSH || kind == pb::LEAVE) {
    rpc_->Reply(from, request.header, Frame());
    return true;
  }
  const uint64_t tick = request.pull_tick();
  for (const HostedPartition* partition : request.partitions) {
    if (!partition->MayRead(tick)) return false;
  }
  Frame answer;
  try {
    answer = Read(request);
  } catch (const std::bad_alloc&) {
    // Reading changes nothing: whoever asks again may find memory.
    rpc_->ReplyError(from, request.header,
                     absl::ResourceExhaustedError(absl::StrFormat(
                         "no memory for an answer from table %d", request.header.table())));
    return true;
  }
  rpc_->Reply(from, request.header, std::move(answer));
  return true;
}

Frame Responder::Read(const TableRequest& request) {
  const pb::FrameHeader& header = request.header;
  const uint64_t tick = request.pull_tick();
  Frame answer;
  answer.header.set_table(header.table());
  answer.header.set_tick(tick);
  answer.payload.reserve(request.partitions.size());
  for (size_t i = 0; i < request.partitions.size(); ++i) {
    Buffer values =
        request.partitions[i]->Read(header.rank(), tick, header.part(static_cast<int>(i)),
                                    request.payload[i].keys, answer.header.add_part());
    if (!values.empty()) answer.payload.push_back(std::move(values));
  }
  return answer;
}

bool Responder::MayAcknowledge(const TableRequest& request) {
  for (size_t i = 0; i < request.tickets.size(); ++i) {
    if (!request.partitions[i]->MayAcknowledge(request.tickets[i])) return false;
  }
  if (request.header.kind() == pb::LEAVE) {
    for (const HostedPartition* partition : request.partitions) {
      if (!partition->MayAcknowledgeLeave(request.header.rank())) return false;
    }
  }
  return true;
}

std::string Responder::WaitsFor(const TableRequest& request) {
  const pb::Kind kind = request.header.kind();
  if (kind == pb::LEAVE) return "the copies of what it leaves";
  for (size_t i = 0; i < request.tickets.size(); ++i) {
    const HostedPartition::Ticket& ticket = request.tickets[i];
    const HostedPartition& partition = *request.partitions[i];
    if (partition.MayAcknowledge(ticket)) continue;
    std::string who = ticket.tick ? partition.WaitsFor(*ticket.tick + 1) : "";
    return who.empty() ? absl::StrFormat("the copies of partition %d", partition.index()) : who;
  }
  if (kind == pb::PUSH) return "";
  for (const HostedPartition* partition : request.partitions) {
    if (!partition->MayRead(request.pull_tick())) return partition->WaitsFor(request.pull_tick());
  }
  return "";
}

void Responder::Release() {
  if (parked_.empty()) return;
  parked_.Release(
      [this](ParkedRequests::Entry& entry) { return TryAnswer(entry.from, entry.request); });
}

void Responder::ReleaseSoon() {
  if (parked_.empty() || release_timer_ != kNoTimer) return;
  release_timer_ = env_->After(absl::ZeroDuration(), [this] {
    release_timer_ = kNoTimer;
    Release();
  });
}

void Responder::Refuse(absl::FunctionRef<bool(NodeId from, const TableRequest&)> which,
                       const absl::Status& status) {
  parked_.Release([&](ParkedRequests::Entry& entry) {
    if (!which(entry.from, entry.request)) return false;
    rpc_->ReplyError(entry.from, entry.request.header, status);
    return true;
  });
}

// Tells each caller once that its request is held; if that is lost, the caller asks again and is
// told again.
void Responder::Notify() {
  timer_ = kNoTimer;
  bool more = false;
  parked_.Release([&](ParkedRequests::Entry& entry) {
    if (!entry.told && env_->Now() - entry.since >= kParkedNotice) {
      entry.told = true;
      rpc_->ReplyParked(entry.from, entry.request.header, WaitsFor(entry.request));
    }
    more |= !entry.told;
    return false;
  });
  if (more) timer_ = env_->After(kParkedNotice, [this] { Notify(); });
}

std::string Responder::WaitingFor() {
  std::string text;
  parked_.Release([&](ParkedRequests::Entry& entry) {
    if (entry.told && text.empty()) text = WaitsFor(entry.request);
    return false;
  });
  return text;
}

}  // namespace parley
