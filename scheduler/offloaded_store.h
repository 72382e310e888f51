// OffloadedStore: a StateStore over two blocking functions. They run off the loop, one at a time;
// of the saves that wait for the one under way, the newest is done and the others share its result.
//
// Thread-safety: as StateStore, everything on the loop; OpenNow and SaveNow run elsewhere, and
// never two of them at once.
#ifndef PARLEY_SCHEDULER_OFFLOADED_STORE_H_
#define PARLEY_SCHEDULER_OFFLOADED_STORE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ps/base/env.h"
#include "scheduler/state_store.h"

namespace parley {

class OffloadedStore : public StateStore {
 public:
  // Names the loop that all calls come from and go back to, and what it runs must end before this
  // does. A second call moves the store to another loop. REQUIRES: nothing is under way.
  virtual void Attach(Env* env) { env_ = env; }

  // May be called again when it is open: tells what is saved by now.
  void Open(absl::AnyInvocable<void(absl::StatusOr<std::optional<std::string>>)> opened) override;
  void Save(std::string state, absl::AnyInvocable<void(absl::Status)> saved) override;

  // The job is over, and what was saved is of no more use: blocks until it is gone, and lets go of
  // the right to write. REQUIRES: nothing is under way.
  virtual absl::Status Forget() = 0;

 protected:
  // kAborted: somebody else has it, or that cannot be told now: Open is to try again after kRetry.
  virtual absl::StatusOr<std::optional<std::string>> OpenNow() = 0;
  virtual absl::Status SaveNow(const std::string& state) = 0;
  // On the loop, after each OpenNow that went well.
  virtual void OnOpened() {}

  Env* env() const { return env_; }

 private:
  using Opened = absl::AnyInvocable<void(absl::StatusOr<std::optional<std::string>>)>;
  using Saved = absl::AnyInvocable<void(absl::Status)>;
  static constexpr absl::Duration kRetry = absl::Milliseconds(300);

  void TryOpen(Opened opened);
  void SaveNext();

  Env* env_ = nullptr;
  bool saving_ = false;
  std::optional<std::string> next_;  // what to save when the save under way has ended
  std::vector<Saved> waiting_;       // for next_
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_OFFLOADED_STORE_H_
