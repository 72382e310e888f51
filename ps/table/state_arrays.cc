#include "ps/table/state_arrays.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace parley {
namespace {

std::string TypeOf(const pb::StateArray& array) {
  return absl::StrFormat("%s [%s]", array.dtype(), absl::StrJoin(array.shape(), ", "));
}

}  // namespace

StateArrays::StateArrays(const TableState& state, absl::string_view owner)
    : state_(state), owner_(owner), taken_(state.header.array_size()) {}

absl::Status StateArrays::Error(absl::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(owner_, ": ", message));
}

absl::Status StateArrays::Check(bool changes_allowed) const {
  if (!state_.header.has_version()) {
    return Error("a state has no version, allowed is the number of updates");
  }
  if (state_.header.changes_only() && !changes_allowed) {
    return Error("a state holds changes only, allowed is everything");
  }
  if (absl::Status status = state_.Check(); !status.ok()) return Error(status.message());
  return absl::OkStatus();
}

absl::StatusOr<int> StateArrays::Find(absl::string_view name, absl::string_view allowed) {
  for (int i = 0; i < state_.header.array_size(); ++i) {
    if (state_.header.array(i).name() != name) continue;
    taken_[i] = true;
    return i;
  }
  return Error(absl::StrFormat("a state has no array '%s', wanted is %s", name, allowed));
}

absl::StatusOr<const std::byte*> StateArrays::Take(absl::string_view name, absl::string_view dtype,
                                                   const std::vector<uint64_t>& shape) {
  const std::string allowed = absl::StrFormat("%s [%s]", dtype, absl::StrJoin(shape, ", "));
  const absl::StatusOr<int> found = Find(name, allowed);
  if (!found.ok()) return found.status();
  const std::string type = TypeOf(state_.header.array(*found));
  if (type != allowed) {
    return Error(absl::StrFormat("array '%s' is %s, allowed here is %s", name, type, allowed));
  }
  return state_.bytes[*found].data();
}

absl::StatusOr<KeyList> StateArrays::TakeKeys(absl::string_view name) {
  const absl::StatusOr<int> found = Find(name, "U64 [n]");
  if (!found.ok()) return found.status();
  const pb::StateArray& array = state_.header.array(*found);
  if (array.dtype() != "U64" || array.shape_size() != 1) {
    return Error(absl::StrFormat("array '%s' is %s, allowed here is U64 [n]", name, TypeOf(array)));
  }
  return KeyList(state_.bytes[*found]);
}

absl::Status StateArrays::CheckAllTaken() const {
  for (int i = 0; i < state_.header.array_size(); ++i) {
    if (taken_[i]) continue;
    const pb::StateArray& array = state_.header.array(i);
    return Error(
        absl::StrFormat("array '%s' (%s) is not one of this table's, allowed are those "
                        "that its optimizer and options need",
                        array.name(), TypeOf(array)));
  }
  return absl::OkStatus();
}

}  // namespace parley
