// The row kernels' one source, included after optimizer_kernels.inc.h by the same files and sharing
// its rules. No include guard and no library header on purpose: see optimizer_kernels.h. The
// conversions' intrinsics are always inlined, so no code of theirs can reach the linker.
#include <immintrin.h>

#include "ps/table/row_kernels.h"

namespace parley {
namespace PARLEY_KERNEL_NAMESPACE {
namespace {

constexpr uint64_t kMaxDim = 4096;

void WidenFloat16(const uint16_t* from, float* to, uint64_t n) {
  uint64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  for (; i < n; ++i) to[i] = _cvtsh_ss(from[i]);
}

void NarrowFloat16(const float* from, uint16_t* to, uint64_t n) {
  uint64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < n; ++i) to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

typedef uint32_t AliasBits __attribute__((may_alias));

void WidenBfloat16(const uint16_t* from, float* to, uint64_t n) {
  AliasBits* bits = reinterpret_cast<AliasBits*>(to);
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
}

void NarrowBfloat16(const float* from, uint16_t* to, uint64_t n) {
  const AliasBits* bits = reinterpret_cast<const AliasBits*>(from);
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) {
    const uint32_t x = bits[i];
    const uint32_t rounded = (x + 0x7FFF + ((x >> 16) & 1)) >> 16;
    // Rounding could carry a NaN's payload over into the sign.
    const uint32_t quiet = (x >> 16) | 0x40;
    to[i] = static_cast<uint16_t>((x & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
  }
}

// The finished gradient of row r, but for decay.
void RowGradient(const RowUpdatePass& pass, uint64_t r, float* g) {
  const uint64_t n = pass.dim;
  const uint64_t begin = pass.first ? pass.first[r] : r;
  const uint64_t end = pass.first ? pass.first[r + 1] : r + 1;
  const float inverse_weight = pass.inverse_weight, clip = pass.clip;
  const UnalignedFloat* a = reinterpret_cast<const UnalignedFloat*>(pass.gradients[begin]);
  if (end - begin == 1) {
#pragma GCC ivdep
    for (uint64_t i = 0; i < n; ++i) {
      float s = a[i] * inverse_weight;
      s = s < -clip ? -clip : s;
      g[i] = s > clip ? clip : s;
    }
    return;
  }
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) g[i] = a[i];
  for (uint64_t k = begin + 1; k < end; ++k) {
    a = reinterpret_cast<const UnalignedFloat*>(pass.gradients[k]);
#pragma GCC ivdep
    for (uint64_t i = 0; i < n; ++i) g[i] = g[i] + a[i];
  }
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) {
    float s = g[i] * inverse_weight;
    s = s < -clip ? -clip : s;
    g[i] = s > clip ? clip : s;
  }
}

// Sixteen float64 lanes, then a tree over them: one order of additions, whatever the width.
double MeanSquare(const float* g, uint64_t n) {
  alignas(64) double lanes[kLanes] = {};
  uint64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (uint64_t j = 0; j < kLanes; ++j) {
      const double x = g[i + j];
      lanes[j] += x * x;
    }
  }
  for (uint64_t j = 0; i + j < n; ++j) {
    const double x = g[i + j];
    lanes[j] += x * x;
  }
  for (uint64_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0] / static_cast<double>(n);
}

// One step for the whole row: Adagrad whose accumulator is the mean over the row.
void RowAdagrad(RuleScalars k, float* w, float* accumulator, const float* g, uint64_t n) {
  const float sum = *accumulator + static_cast<float>(MeanSquare(g, n));
  *accumulator = sum;
  const float root = __builtin_sqrtf(sum) + k.eps;
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) w[i] = w[i] + (k.minus_lr * g[i]) / root;
}

// The commonest pass, without stops between: float32 rows, plain SGD, one gradient each. kDim: the
// dimension if it is known, else 0.
template <uint64_t kDim>
void PlainSgd(const RowUpdatePass& pass) {
  const uint64_t n = kDim ? kDim : pass.dim;
  const float minus_lr = pass.scalars->minus_lr;
  const float inverse_weight = pass.inverse_weight, clip = pass.clip;
  for (uint64_t r = 0; r < pass.rows; ++r) {
    if (pass.row[r] == nullptr) continue;
    const UnalignedFloat* g = reinterpret_cast<const UnalignedFloat*>(pass.gradients[r]);
    float* w = reinterpret_cast<float*>(pass.row[r]);
#pragma GCC ivdep
    for (uint64_t i = 0; i < n; ++i) {
      float s = g[i] * inverse_weight;
      s = s < -clip ? -clip : s;
      s = s > clip ? clip : s;
      w[i] = w[i] + minus_lr * s;
    }
  }
}

void UpdateRow(const RowUpdatePass& pass, uint64_t r, float* g, float* wide) {
  uint8_t* row = pass.row[r];
  const uint64_t n = pass.dim;
  const RuleScalars& k = pass.scalars[r * pass.scalars_step];
  float* w = reinterpret_cast<float*>(row);
  if (pass.storage == RowStorage::kFloat16) {
    WidenFloat16(reinterpret_cast<const uint16_t*>(row), wide, n);
    w = wide;
  } else if (pass.storage == RowStorage::kBfloat16) {
    WidenBfloat16(reinterpret_cast<const uint16_t*>(row), wide, n);
    w = wide;
  }
  RowGradient(pass, r, g);
  if (pass.weight_decay != 0) DecayTile(pass.weight_decay, w, g, n);
  if (pass.rule == UpdateRule::kRowAdagrad) {
    RowAdagrad(k, w, reinterpret_cast<float*>(row + pass.accumulator_at), g, n);
  } else {
    float* first_slot = reinterpret_cast<float*>(row + pass.slots_at);
    float* const slots[3] = {first_slot, first_slot + n, first_slot + 2 * n};
    UpdateTile(pass.rule, k, w, w, slots, g, n);
  }
  if (pass.storage == RowStorage::kFloat16) {
    NarrowFloat16(wide, reinterpret_cast<uint16_t*>(row), n);
  } else if (pass.storage == RowStorage::kBfloat16) {
    NarrowBfloat16(wide, reinterpret_cast<uint16_t*>(row), n);
  }
}

void UpdateRows(const RowUpdatePass& pass) {
  if (pass.rule == UpdateRule::kSgd && pass.storage == RowStorage::kFloat32 && !pass.first &&
      pass.weight_decay == 0) {
    switch (pass.dim) {
      case 8:
        return PlainSgd<8>(pass);
      case 16:
        return PlainSgd<16>(pass);
      case 32:
        return PlainSgd<32>(pass);
      case 64:
        return PlainSgd<64>(pass);
      default:
        return PlainSgd<0>(pass);
    }
  }
  // FTRL's step at a learning rate of 0 has no meaning (it divides by it): rows stay.
  if (pass.rule == UpdateRule::kFtrl && pass.scalars->alpha == 0) return;
  alignas(64) float g[kMaxDim];
  alignas(64) float wide[kMaxDim];
  for (uint64_t r = 0; r < pass.rows; ++r) {
    if (pass.row[r] != nullptr) UpdateRow(pass, r, g, wide);
  }
}

template <uint64_t kDim>
void ReadFloat32(uint64_t rows, uint64_t dim, const uint8_t* const* row, float* out) {
  const uint64_t n = kDim ? kDim : dim;
  UnalignedFloat* to = reinterpret_cast<UnalignedFloat*>(out);
  for (uint64_t r = 0; r < rows; ++r, to += n) {
    if (row[r] != nullptr) __builtin_memcpy(to, row[r], n * sizeof(float));
  }
}

void ReadRows(uint64_t rows, uint64_t dim, RowStorage storage, const uint8_t* const* row,
              float* out) {
  if (storage == RowStorage::kFloat32) {
    switch (dim) {
      case 8:
        return ReadFloat32<8>(rows, dim, row, out);
      case 16:
        return ReadFloat32<16>(rows, dim, row, out);
      case 32:
        return ReadFloat32<32>(rows, dim, row, out);
      default:
        return ReadFloat32<0>(rows, dim, row, out);
    }
  }
  alignas(64) float wide[kMaxDim];
  UnalignedFloat* to = reinterpret_cast<UnalignedFloat*>(out);
  for (uint64_t r = 0; r < rows; ++r, to += dim) {
    if (row[r] == nullptr) continue;
    const uint16_t* narrow = reinterpret_cast<const uint16_t*>(row[r]);
    if (storage == RowStorage::kFloat16) {
      WidenFloat16(narrow, wide, dim);
    } else {
      WidenBfloat16(narrow, wide, dim);
    }
    __builtin_memcpy(to, wide, dim * sizeof(float));
  }
}

void WriteRow(uint64_t dim, RowStorage storage, const float* values, uint8_t* row) {
  switch (storage) {
    case RowStorage::kFloat32:
      __builtin_memcpy(row, values, dim * sizeof(float));
      return;
    case RowStorage::kFloat16:
      return NarrowFloat16(values, reinterpret_cast<uint16_t*>(row), dim);
    case RowStorage::kBfloat16:
      return NarrowBfloat16(values, reinterpret_cast<uint16_t*>(row), dim);
  }
}

}  // namespace

const RowKernels kRowKernels = {PARLEY_KERNEL_ISA, &UpdateRows, &ReadRows, &WriteRow};

}  // namespace PARLEY_KERNEL_NAMESPACE
}  // namespace parley
