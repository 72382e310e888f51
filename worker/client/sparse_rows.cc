#include "worker/client/sparse_rows.h"

#include <cstring>

namespace parley {
namespace {

constexpr uint32_t kPositionsAhead = 16;

// A row of kDim floats, or of `dim` if kDim is 0: where the length is known, the copy is a few
// vector moves instead of a call.
template <uint32_t kDim>
struct Row {
  static size_t Bytes(uint32_t dim) { return (kDim == 0 ? dim : kDim) * sizeof(float); }
  static void Copy(const std::byte* from, uint32_t dim, std::byte* to) {
    std::memcpy(to, from, Bytes(dim));
  }
  // Fetches its cache lines: one more than its length has, unless it begins with one.
  template <int kWrite>
  static void Fetch(const std::byte* row, uint32_t dim) {
    for (size_t offset = 0; offset < Bytes(dim); offset += 64) {
      __builtin_prefetch(row + offset, kWrite);
    }
    __builtin_prefetch(row + Bytes(dim) - 1, kWrite);
  }
};

template <uint32_t kDim>
void Scatter(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim,
             const std::byte* values, std::byte* rows) {
  const size_t bytes = Row<kDim>::Bytes(dim);
  const uint32_t* const first = split.first.data();
  const uint32_t* const positions = split.positions.data();
  const uint32_t end = first[to];
  for (uint32_t key = from, at = first[from]; key < to; ++key, values += bytes) {
    for (; at < first[key + 1]; ++at) {
      if (at + kPositionsAhead < end) {
        Row<kDim>::template Fetch<1>(rows + positions[at + kPositionsAhead] * bytes, dim);
      }
      Row<kDim>::Copy(values, dim, rows + positions[at] * bytes);
    }
  }
}

template <uint32_t kDim>
void Gather(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim, const std::byte* rows,
            std::byte* values) {
  const size_t bytes = Row<kDim>::Bytes(dim);
  const uint32_t* const first = split.first.data();
  const uint32_t* const positions = split.positions.data();
  const uint32_t end = first[to];
  for (uint32_t key = from, at = first[from]; key < to; ++key, values += bytes) {
    if (at + kPositionsAhead < end) {
      Row<kDim>::template Fetch<0>(rows + positions[at + kPositionsAhead] * bytes, dim);
    }
    Row<kDim>::Copy(rows + positions[at] * bytes, dim, values);
    for (++at; at < first[key + 1]; ++at) {
      const auto* more = reinterpret_cast<const float*>(rows + positions[at] * bytes);
      for (uint32_t i = 0; i < dim; ++i) {
        // By way of a float, since the place in the message is at any alignment.
        float sum;
        std::memcpy(&sum, values + i * sizeof(float), sizeof(sum));
        sum += more[i];
        std::memcpy(values + i * sizeof(float), &sum, sizeof(sum));
      }
    }
  }
}

}  // namespace

void ScatterRows(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim,
                 const std::byte* values, float* rows) {
  auto* bytes = reinterpret_cast<std::byte*>(rows);
  switch (dim) {
    case 1:
      return Scatter<1>(split, from, to, dim, values, bytes);
    case 8:
      return Scatter<8>(split, from, to, dim, values, bytes);
    case 16:
      return Scatter<16>(split, from, to, dim, values, bytes);
    case 32:
      return Scatter<32>(split, from, to, dim, values, bytes);
    default:
      return Scatter<0>(split, from, to, dim, values, bytes);
  }
}

void GatherRows(const KeySplit& split, uint32_t from, uint32_t to, uint32_t dim, const float* rows,
                std::byte* values) {
  const auto* bytes = reinterpret_cast<const std::byte*>(rows);
  switch (dim) {
    case 1:
      return Gather<1>(split, from, to, dim, bytes, values);
    case 8:
      return Gather<8>(split, from, to, dim, bytes, values);
    case 16:
      return Gather<16>(split, from, to, dim, bytes, values);
    case 32:
      return Gather<32>(split, from, to, dim, bytes, values);
    default:
      return Gather<0>(split, from, to, dim, bytes, values);
  }
}

}  // namespace parley
