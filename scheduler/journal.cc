#include "scheduler/journal.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

constexpr absl::Duration kRetry = absl::Seconds(1);

}  // namespace

Journal::Journal(Env* env, StateStore* store, Handlers handlers)
    : env_(env),
      store_(store),
      handlers_(std::move(handlers)),
      alive_(std::make_shared<bool>(true)) {}

Journal::~Journal() {
  *alive_ = false;
  env_->Cancel(retry_);
}

void Journal::Save(absl::AnyInvocable<void()> then) {
  if (store_ == nullptr) {
    then();
    return;
  }
  if (deposed_) return;
  next_.push_back(std::move(then));
  if (!saving_) Begin();
}

void Journal::Begin() {
  saving_ = true;
  for (auto& then : next_) now_.push_back(std::move(then));
  next_.clear();
  store_->Save(handlers_.state(), [this, alive = alive_](absl::Status status) {
    if (*alive) OnSaved(status);
  });
}

void Journal::OnSaved(const absl::Status& status) {
  if (absl::IsFailedPrecondition(status)) {
    deposed_ = true;
    now_.clear();
    next_.clear();
    handlers_.on_deposed(status);
    return;
  }
  if (!status.ok()) {
    if (!complained_) {
      handlers_.event(
          absl::StrCat("the scheduler's state cannot be saved, and nothing changes until it can: ",
                       status.message()));
    }
    complained_ = true;
    retry_ = env_->After(kRetry, [this] { Begin(); });
    return;
  }
  if (complained_) handlers_.event("the scheduler's state can be saved again");
  complained_ = false;
  saving_ = false;
  std::vector<absl::AnyInvocable<void()>> done = std::move(now_);
  now_.clear();
  // Either may end this object's owner; what follows is the owner's to guard.
  std::shared_ptr<bool> alive = alive_;
  if (!next_.empty()) Begin();
  for (auto& then : done) {
    if (*alive) then();
  }
}

}  // namespace parley
