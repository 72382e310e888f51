// Journal: saves the scheduler's state before the scheduler acts on it.
//
// `then` runs once what the state was at the call, or later, survives a crash; in the order of
// calls; at once without a store. A save that fails is tried again until it works: what cannot be
// saved is not done. Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_SCHEDULER_JOURNAL_H_
#define PARLEY_SCHEDULER_JOURNAL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "ps/base/env.h"
#include "scheduler/state_store.h"

namespace parley {

class Journal {
 public:
  struct Handlers {
    absl::AnyInvocable<std::string()> state;  // as it is now
    absl::AnyInvocable<void(const std::string&)> event;
    // Another scheduler leads the job now; nothing is saved any more, and no `then` runs.
    absl::AnyInvocable<void(absl::Status)> on_deposed;
  };

  // `store` may be null. Both must outlive this.
  Journal(Env* env, StateStore* store, Handlers handlers);
  ~Journal();

  void Save(absl::AnyInvocable<void()> then);

 private:
  void Begin();
  void OnSaved(const absl::Status& status);

  Env* const env_;
  StateStore* const store_;
  Handlers handlers_;
  std::shared_ptr<bool> alive_;  // false once this is gone: the store may call back later
  bool saving_ = false, deposed_ = false, complained_ = false;
  std::vector<absl::AnyInvocable<void()>> now_;   // wait for the save under way
  std::vector<absl::AnyInvocable<void()>> next_;  // wait for the one after it
  TimerId retry_ = kNoTimer;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_JOURNAL_H_
