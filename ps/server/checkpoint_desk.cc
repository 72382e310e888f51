#include "ps/server/checkpoint_desk.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

bool Same(const pb::CheckpointRequest& a, const pb::CheckpointRequest& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

}  // namespace

void CheckpointDesk::OnRequest(NodeId from, const pb::FrameHeader& header,
                               const pb::CheckpointRequest& request, const std::string& file_name,
                               const std::vector<HostedTable*>& tables, bool bsp) {
  // A duplicate that comes late must not end the one that is wanted by now.
  if (IsOver(header.request_id())) {
    return rpc_->ReplyError(
        from, header,
        absl::AbortedError(absl::StrFormat(
            "this checkpoint of step %d was given up, another is wanted by now", request.step())));
  }
  // The answer was lost. Under another id it is wanted anew, if it still can be: what was written
  // may be gone since.
  const bool asked_before = std::find(ids_.begin(), ids_.end(), header.request_id()) != ids_.end();
  if (task_ == nullptr && last_ && Same(last_->first, request) &&
      (asked_before || !CheckpointTask::Check(request.step(), tables).ok())) {
    NoteId(header.request_id());
    askers_.emplace_back(from, header);
    return AnswerAll(last_->second);
  }
  if (task_ == nullptr || !Same(task_->request(), request)) {
    absl::Status status = CheckpointTask::Check(request.step(), tables);
    if (!status.ok()) return rpc_->ReplyError(from, header, status);
    Abandon(absl::AbortedError(
        absl::StrFormat("a checkpoint of step %d is wanted by now", request.step())));
    task_ = std::make_unique<CheckpointTask>(
        env_, files_, request, file_name, tables, bsp,
        [this](absl::StatusOr<pb::CheckpointFile> result) { OnDone(std::move(result)); });
  }
  const bool again = std::any_of(askers_.begin(), askers_.end(), [&](const Asker& asker) {
    return asker.first == from && asker.second.request_id() == header.request_id();
  });
  if (!again) askers_.emplace_back(from, header);
  NoteId(header.request_id());
  rpc_->ReplyParked(from, header, task_->WaitsFor());
}

bool CheckpointDesk::IsOver(uint64_t request_id) const {
  return std::find(over_.begin(), over_.end(), request_id) != over_.end();
}

void CheckpointDesk::NoteId(uint64_t request_id) {
  if (std::find(ids_.begin(), ids_.end(), request_id) != ids_.end()) return;
  if (ids_.size() == kMaxOver) ids_.erase(ids_.begin());
  ids_.push_back(request_id);
}

void CheckpointDesk::Supersede() {
  over_.insert(over_.end(), ids_.begin(), ids_.end());
  ids_.clear();
  while (over_.size() > kMaxOver) over_.pop_front();
}

void CheckpointDesk::OnDone(absl::StatusOr<pb::CheckpointFile> result) {
  // Of an answer that sounds temporary the rpc would not let go: this attempt is over.
  if (absl::IsResourceExhausted(result.status()) || absl::IsUnavailable(result.status())) {
    result = absl::InternalError(result.status().message());
  }
  // What failed may succeed when it is asked for again, even if by the same request.
  last_.reset();
  if (result.ok()) last_.emplace(task_->request(), *result);
  task_.reset();
  AnswerAll(result);
}

void CheckpointDesk::AnswerAll(const absl::StatusOr<pb::CheckpointFile>& result) {
  for (const auto& [from, header] : std::exchange(askers_, {})) {
    if (!result.ok()) {
      rpc_->ReplyError(from, header, result.status());
      continue;
    }
    Frame answer;
    answer.header.set_body(result->SerializeAsString());
    rpc_->Reply(from, header, std::move(answer));
  }
}

void CheckpointDesk::Abandon(const absl::Status& why) {
  last_.reset();
  Supersede();
  if (task_ == nullptr) return;
  task_.reset();
  AnswerAll(why);
}

}  // namespace parley
