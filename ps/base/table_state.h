// TableState: the values of a partition - or what a worker keeps of a table - as named arrays: what
// a copy on another server, or a checkpoint, is made from.
//
// The bytes are Buffers and stay as they are: whoever hands out live memory hands out a reference
// and writes elsewhere afterwards. Thread-safety: as Buffer's.
#ifndef PARLEY_PS_BASE_TABLE_STATE_H_
#define PARLEY_PS_BASE_TABLE_STATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"

namespace parley {

struct TableState {
  pb::TableState header;      // version and what the arrays are
  std::vector<Buffer> bytes;  // one an array, as header.array() says; little-endian, row-major

  // The bytes of the array of this name; null if there is none.
  const Buffer* Find(absl::string_view name) const;
  // REQUIRES: bytes.size() is what dtype and shape make.
  void Add(absl::string_view name, absl::string_view dtype, std::vector<uint64_t> shape,
           Buffer array);
  uint64_t total_bytes() const;
  // kInvalidArgument, unless every array has the bytes that its dtype and shape make and a name of
  // its own: for a state that came from a file or a peer.
  absl::Status Check() const;
};

// Bytes of one element of a safetensors dtype; 0 for one that is not known here.
uint64_t DtypeBytes(absl::string_view dtype);
// Bytes of an array; kInvalidArgument names it if its dtype is unknown or its shape overflows.
absl::Status ArrayBytes(const pb::StateArray& array, uint64_t* bytes);

}  // namespace parley

#endif  // PARLEY_PS_BASE_TABLE_STATE_H_
