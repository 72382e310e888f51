#include "ps/server/pull_handler.h"

#include <new>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// A pull that waits longer than this is told that it is parked. Below the first retry of rpc.h,
// above a usual step.
constexpr absl::Duration kParkedNotice = absl::Milliseconds(300);

}  // namespace

bool PullHandler::TellIfHeld(NodeId from, const pb::FrameHeader& header) {
  const ParkedPulls::Entry* entry = parked_.Find(from, header.request_id());
  if (entry == nullptr) return false;
  rpc_->ReplyParked(from, header, WaitsFor(entry->request));
  return true;
}

void PullHandler::Pull(NodeId from, TableRequest&& request) {
  if (Answer(from, request)) return;
  absl::Status status = parked_.Park(from, std::move(request), env_->Now());
  if (!status.ok()) {
    rpc_->ReplyError(from, request.header, status);
  } else if (timer_ == kNoTimer) {
    timer_ = env_->After(kParkedNotice, [this] { Notify(); });
  }
}

bool PullHandler::Answer(NodeId from, const TableRequest& request) {
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

Frame PullHandler::Read(const TableRequest& request) {
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

std::string PullHandler::WaitsFor(const TableRequest& request) {
  for (const HostedPartition* partition : request.partitions) {
    if (!partition->MayRead(request.pull_tick())) return partition->WaitsFor(request.pull_tick());
  }
  return "";
}

void PullHandler::Release() {
  if (parked_.empty()) return;
  parked_.Release([this](ParkedPulls::Entry& entry) { return Answer(entry.from, entry.request); });
}

// Tells each caller once that its pull is held; if that is lost, the caller asks again and is told
// again.
void PullHandler::Notify() {
  timer_ = kNoTimer;
  bool more = false;
  parked_.Release([&](ParkedPulls::Entry& entry) {
    if (!entry.told && env_->Now() - entry.since >= kParkedNotice) {
      entry.told = true;
      rpc_->ReplyParked(entry.from, entry.request.header, WaitsFor(entry.request));
    }
    more |= !entry.told;
    return false;
  });
  if (more) timer_ = env_->After(kParkedNotice, [this] { Notify(); });
}

std::string PullHandler::WaitingFor() {
  std::string text;
  parked_.Release([&](ParkedPulls::Entry& entry) {
    if (entry.told && text.empty()) text = WaitsFor(entry.request);
    return false;
  });
  return text;
}

}  // namespace parley
