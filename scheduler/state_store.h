// StateStore: where the scheduler keeps what it must know after a restart, as one string.
//
// Thread-safety: as Env, everything on the loop; implementations that wait do so elsewhere.
#ifndef PARLEY_SCHEDULER_STATE_STORE_H_
#define PARLEY_SCHEDULER_STATE_STORE_H_

#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace parley {

class StateStore {
 public:
  virtual ~StateStore() = default;

  // Becomes the one that may write, once nobody else is, and hands over what was saved last; empty:
  // nothing yet. An error: it cannot be had.
  virtual void Open(
      absl::AnyInvocable<void(absl::StatusOr<std::optional<std::string>>)> opened) = 0;

  // Replaces what is saved. `saved` follows, OK once a crash cannot undo it; saves are done in
  // their order, and one that was overtaken before it began may be left out (its `saved` is called
  // with the later one's result). kFailedPrecondition: another has become the one that may write.
  virtual void Save(std::string state, absl::AnyInvocable<void(absl::Status)> saved) = 0;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_STATE_STORE_H_
