#include "scheduler/offloaded_store.h"

#include <memory>
#include <utility>

namespace parley {

void OffloadedStore::Open(Opened opened) { TryOpen(std::move(opened)); }

void OffloadedStore::TryOpen(Opened opened) {
  using Result = absl::StatusOr<std::optional<std::string>>;
  auto result = std::make_shared<Result>(absl::UnknownError("not run"));
  env_->Offload([this, result] { *result = OpenNow(); },
                [this, result, opened = std::move(opened)]() mutable {
                  if (absl::IsAborted(result->status())) {
                    env_->After(kRetry, [this, opened = std::move(opened)]() mutable {
                      TryOpen(std::move(opened));
                    });
                    return;
                  }
                  if (result->ok()) OnOpened();
                  opened(*std::move(result));
                });
}

void OffloadedStore::Save(std::string state, Saved saved) {
  next_ = std::move(state);
  waiting_.push_back(std::move(saved));
  if (!saving_) SaveNext();
}

void OffloadedStore::SaveNext() {
  saving_ = true;
  auto state = std::make_shared<const std::string>(*std::exchange(next_, std::nullopt));
  auto result = std::make_shared<absl::Status>();
  env_->Offload([this, state, result] { *result = SaveNow(*state); },
                [this, result, saved = std::exchange(waiting_, {})]() mutable {
                  saving_ = false;
                  // First, so that one who saves again in his callback waits for it.
                  if (next_) SaveNext();
                  for (Saved& tell : saved) tell(*result);
                });
}

}  // namespace parley
