// Rows of a sparse table on their way between a caller's array and a message.
//
// Shapes: rows [call, dim] in the caller's order, values [keys, dim] in the order of a KeySplit, at
// any alignment. Both ends are far apart in memory, so what comes next is fetched ahead. The copies
// are of a row each, too short to be counted one by one: the caller counts them (NoteCopied in
// ps/base/payload_copy.h), a row for each occurrence when scattering, for each key when gathering.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_ROWS_H_
#define PARLEY_WORKER_CLIENT_SPARSE_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "worker/client/key_split.h"

namespace parley {

// values [to - from, dim] of keys from..to-1 -> rows, once for each time a key occurs.
void ScatterRows(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim,
                 const std::byte* values, float* rows);

// rows -> values of keys from..to-1: where a key occurs more than once, the sum in the order of
// the call.
void GatherRows(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim, const float* rows,
                std::byte* values);

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_ROWS_H_
