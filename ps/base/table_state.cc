#include "ps/base/table_state.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace parley {
namespace {

struct Dtype {
  absl::string_view name;
  uint64_t bytes;
};

constexpr Dtype kDtypes[] = {{"U8", 1},  {"I8", 1},  {"F16", 2}, {"BF16", 2},
                             {"U16", 2}, {"I16", 2}, {"F32", 4}, {"U32", 4},
                             {"I32", 4}, {"F64", 8}, {"U64", 8}, {"I64", 8}};

}  // namespace

const Buffer* TableState::Find(absl::string_view name) const {
  for (int i = 0; i < header.array_size() && static_cast<size_t>(i) < bytes.size(); ++i) {
    if (header.array(i).name() == name) return &bytes[i];
  }
  return nullptr;
}

void TableState::Add(absl::string_view name, absl::string_view dtype, std::vector<uint64_t> shape,
                     Buffer array) {
  pb::StateArray* added = header.add_array();
  added->set_name(name.data(), name.size());
  added->set_dtype(dtype.data(), dtype.size());
  for (const uint64_t size : shape) added->add_shape(size);
  bytes.push_back(std::move(array));
}

uint64_t TableState::total_bytes() const {
  uint64_t total = 0;
  for (const Buffer& array : bytes) total += array.size();
  return total;
}

absl::Status TableState::Check() const {
  if (bytes.size() != static_cast<size_t>(header.array_size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a state has %d arrays and bytes of %d, allowed is as many of either",
                        header.array_size(), bytes.size()));
  }
  absl::flat_hash_set<absl::string_view> names;
  for (int i = 0; i < header.array_size(); ++i) {
    const pb::StateArray& array = header.array(i);
    if (!names.insert(array.name()).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("array '%s' is there twice, allowed is once", array.name()));
    }
    uint64_t expected = 0;
    if (absl::Status status = ArrayBytes(array, &expected); !status.ok()) return status;
    if (bytes[i].size() != expected) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "array '%s' of %s [%s] has %d bytes, allowed are %d", array.name(), array.dtype(),
          absl::StrJoin(array.shape(), ", "), bytes[i].size(), expected));
    }
  }
  return absl::OkStatus();
}

uint64_t DtypeBytes(absl::string_view dtype) {
  for (const Dtype& known : kDtypes) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

absl::Status ArrayBytes(const pb::StateArray& array, uint64_t* bytes) {
  uint64_t total = DtypeBytes(array.dtype());
  if (total == 0) {
    const auto name = [](std::string* out, const Dtype& dtype) {
      out->append(dtype.name.data(), dtype.name.size());
    };
    return absl::InvalidArgumentError(absl::StrFormat("array '%s' is of dtype '%s', allowed are %s",
                                                      array.name(), array.dtype(),
                                                      absl::StrJoin(kDtypes, ", ", name)));
  }
  bool overflows = false, is_empty = false;
  for (const uint64_t size : array.shape()) {
    is_empty |= size == 0;
    overflows |= __builtin_mul_overflow(total, size, &total);
  }
  if (overflows && !is_empty) {
    return absl::InvalidArgumentError(
        absl::StrFormat("array '%s' is of shape [%s], allowed are up to 2^64 - 1 bytes",
                        array.name(), absl::StrJoin(array.shape(), ", ")));
  }
  *bytes = is_empty ? 0 : total;
  return absl::OkStatus();
}

}  // namespace parley
