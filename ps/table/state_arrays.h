// StateArrays: the arrays of a TableState that came from a file or a peer, taken by name, each
// once.
//
// Borrows the state. Every error is kInvalidArgument and names the owner, the array, what it is and
// what is allowed. Not thread-safe.
#ifndef PARLEY_PS_TABLE_STATE_ARRAYS_H_
#define PARLEY_PS_TABLE_STATE_ARRAYS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ps/base/table_state.h"
#include "ps/table/table_partition.h"

namespace parley {

class StateArrays {
 public:
  // `owner`: "table 'rows', partition 3".
  StateArrays(const TableState& state, absl::string_view owner);

  // Of the state as a whole. REQUIRES for all below: this was OK.
  absl::Status Check(bool changes_allowed) const;
  // The bytes of an array, at any alignment.
  absl::StatusOr<const std::byte*> Take(absl::string_view name, absl::string_view dtype,
                                        const std::vector<uint64_t>& shape);
  // An array of U64, as many as there are.
  absl::StatusOr<KeyList> TakeKeys(absl::string_view name);
  // Nothing is there that nobody asked for.
  absl::Status CheckAllTaken() const;

  // An error of this owner's.
  absl::Status Error(absl::string_view message) const;

 private:
  // Which array it is; an error if there is none.
  absl::StatusOr<int> Find(absl::string_view name, absl::string_view allowed);

  const TableState& state_;
  const std::string owner_;
  std::vector<bool> taken_;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_STATE_ARRAYS_H_
