// The kernels' one source, included by a file per instruction set that names
// PARLEY_KERNEL_NAMESPACE and PARLEY_KERNEL_ISA. No include guard and no library header on purpose:
// see optimizer_kernels.h.
//
// The loops are plain so that one text serves every width: the compiler vectorises them, and since
// each element sees the same IEEE operations (correctly rounded + - * / sqrt, never an FMA) the
// width cannot show in the result. `ivdep` instead of restrict, because weights may be updated in
// place: element i is read before it is written, and no other element of the same array is touched.
#include "ps/table/optimizer_kernels.h"

#define PARLEY_ELEMENT inline __attribute__((always_inline))
#define PARLEY_SQRT(x) __builtin_sqrtf(x)
#define PARLEY_ABS(x) __builtin_fabsf(x)

namespace parley {
namespace PARLEY_KERNEL_NAMESPACE {
namespace {

// A tile's gradient (8 KiB) and its weights stay in the first-level cache between the loops.
constexpr uint64_t kTile = 2048;
constexpr uint64_t kLanes = 16;  // of the sum of squares

// Received gradients may begin at any byte.
typedef float UnalignedFloat __attribute__((aligned(1), may_alias));

#include "ps/table/optimizer_elements.inc.h"

// g = the sum of kCount gradients in order (on top of g unless kFirst), scaled and clipped if
// kLast.
template <int kCount, bool kFirst, bool kLast>
void SumTile(const GradientSum& sum, uint64_t from, uint64_t offset, uint64_t n, float* g) {
  const float* const* all = sum.gradients + from;
  const UnalignedFloat* a = reinterpret_cast<const UnalignedFloat*>(all[0]) + offset;
  const UnalignedFloat* b =
      kCount > 1 ? reinterpret_cast<const UnalignedFloat*>(all[1]) + offset : a;
  const UnalignedFloat* c =
      kCount > 2 ? reinterpret_cast<const UnalignedFloat*>(all[2]) + offset : a;
  const UnalignedFloat* d =
      kCount > 3 ? reinterpret_cast<const UnalignedFloat*>(all[3]) + offset : a;
  const float inverse_weight = sum.inverse_weight, norm_scale = sum.norm_scale, clip = sum.clip;
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) {
    float s = kFirst ? a[i] : g[i] + a[i];
    if (kCount > 1) s = s + b[i];
    if (kCount > 2) s = s + c[i];
    if (kCount > 3) s = s + d[i];
    g[i] = kLast ? Scaled(s, inverse_weight, norm_scale, clip) : s;
  }
}

template <bool kFirst, bool kScaled>
void SumLast(const GradientSum& sum, uint64_t from, uint64_t offset, uint64_t n, float* g) {
  switch (sum.count - from) {
    case 1:
      return SumTile<1, kFirst, kScaled>(sum, from, offset, n, g);
    case 2:
      return SumTile<2, kFirst, kScaled>(sum, from, offset, n, g);
    case 3:
      return SumTile<3, kFirst, kScaled>(sum, from, offset, n, g);
    default:
      return SumTile<4, kFirst, kScaled>(sum, from, offset, n, g);
  }
}

// Four gradients at a time: that is as many streams as the hardware prefetches well, and g itself
// stays in cache. Unless kScaled, g is the sum alone.
template <bool kScaled>
void SumGradients(const GradientSum& sum, uint64_t offset, uint64_t n, float* g) {
  if (sum.count == 0) {
    for (uint64_t i = 0; i < n; ++i) g[i] = 0;
    return;
  }
  if (sum.count <= 4) return SumLast<true, kScaled>(sum, 0, offset, n, g);
  SumTile<4, true, false>(sum, 0, offset, n, g);
  uint64_t from = 4;
  for (; sum.count - from > 4; from += 4) SumTile<4, false, false>(sum, from, offset, n, g);
  SumLast<false, kScaled>(sum, from, offset, n, g);
}

void DecayTile(float weight_decay, const float* w, float* g, uint64_t n) {
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) g[i] = Decayed(weight_decay, w[i], g[i]);
}

// A rule over a tile. w: weights before, out: after, g: the finished gradient; all [n], as are the
// slots that the rule has.
template <typename Rule>
void RuleTile(RuleScalars k, const float* w, float* out, float* const* slots, const float* g,
              uint64_t n) {
  float* const first = slots[0];
  float* const second = slots[1];
  float* const third = slots[2];
#pragma GCC ivdep
  for (uint64_t i = 0; i < n; ++i) {
    float a = Rule::kSlots > 0 ? first[i] : 0;
    float b = Rule::kSlots > 1 ? second[i] : 0;
    float c = Rule::kSlots > 2 ? third[i] : 0;
    const float next = Rule::Next(k, w[i], g[i], a, b, c);
    if (Rule::kSlots > 0) first[i] = a;
    if (Rule::kSlots > 1) second[i] = b;
    if (Rule::kSlots > 2) third[i] = c;
    out[i] = next;
  }
}

struct TileOfRule {
  const RuleScalars& k;
  const float* w;
  float* out;
  float* const* slots;
  const float* g;
  uint64_t n;
  template <typename Rule>
  void Visit() const {
    RuleTile<Rule>(k, w, out, slots, g, n);
  }
};

void UpdateTile(UpdateRule rule, const RuleScalars& k, const float* w, float* out,
                float* const* slots, const float* g, uint64_t n) {
  VisitRule(rule, TileOfRule{k, w, out, slots, g, n});
}

// SumTile and Sgd of few gradients in one loop: nothing lies between them, so the gradient's sum
// need not be stored and read again.
template <int kCount>
void SumAndSgd(const UpdatePass& pass) {
  const float* const* all = pass.sum.gradients;
  const UnalignedFloat* a = reinterpret_cast<const UnalignedFloat*>(all[0]);
  const UnalignedFloat* b = reinterpret_cast<const UnalignedFloat*>(all[kCount > 1 ? 1 : 0]);
  const UnalignedFloat* c = reinterpret_cast<const UnalignedFloat*>(all[kCount > 2 ? 2 : 0]);
  const UnalignedFloat* d = reinterpret_cast<const UnalignedFloat*>(all[kCount > 3 ? 3 : 0]);
  const float inverse_weight = pass.sum.inverse_weight, norm_scale = pass.sum.norm_scale;
  const float clip = pass.sum.clip;
  const RuleScalars k = pass.scalars;
  float none = 0;
  const float* w = pass.weights_in;
  float* out = pass.weights_out;
#pragma GCC ivdep
  for (uint64_t i = 0; i < pass.n; ++i) {
    float s = a[i];
    if (kCount > 1) s = s + b[i];
    if (kCount > 2) s = s + c[i];
    if (kCount > 3) s = s + d[i];
    out[i] = SgdRule::Next(k, w[i], Scaled(s, inverse_weight, norm_scale, clip), none, none, none);
  }
}

bool TrySumAndSgd(const UpdatePass& pass) {
  if (pass.rule != UpdateRule::kSgd || pass.weight_decay != 0) return false;
  switch (pass.sum.count) {
    case 1:
      SumAndSgd<1>(pass);
      return true;
    case 2:
      SumAndSgd<2>(pass);
      return true;
    case 3:
      SumAndSgd<3>(pass);
      return true;
    case 4:
      SumAndSgd<4>(pass);
      return true;
    default:
      return false;
  }
}

void Update(const UpdatePass& pass) {
  if (TrySumAndSgd(pass)) return;
  alignas(64) float g[kTile];
  for (uint64_t begin = 0; begin < pass.n; begin += kTile) {
    const uint64_t n = pass.n - begin < kTile ? pass.n - begin : kTile;
    SumGradients<true>(pass.sum, begin, n, g);
    if (pass.weight_decay != 0) DecayTile(pass.weight_decay, pass.weights_in + begin, g, n);
    float* slots[3];
    for (int s = 0; s < 3; ++s) slots[s] = pass.slots[s] ? pass.slots[s] + begin : nullptr;
    UpdateTile(pass.rule, pass.scalars, pass.weights_in + begin, pass.weights_out + begin, slots, g,
               n);
  }
}

void Sum(uint64_t n, const GradientSum& sum, float* out) {
  for (uint64_t begin = 0; begin < n; begin += kTile) {
    const uint64_t size = n - begin < kTile ? n - begin : kTile;
    SumGradients<false>(sum, begin, size, out + begin);
  }
}

double SumOfSquares(uint64_t n, const GradientSum& sum) {
  static_assert(kTile % kLanes == 0, "every tile begins at lane 0");
  alignas(64) float g[kTile];
  alignas(64) double lanes[kLanes] = {};
  for (uint64_t begin = 0; begin < n; begin += kTile) {
    const uint64_t size = n - begin < kTile ? n - begin : kTile;
    SumGradients<true>(sum, begin, size, g);
    // Zeros up to a whole row of lanes add nothing: x + 0.0 is x for every x >= 0.
    const uint64_t padded = (size + kLanes - 1) / kLanes * kLanes;
    for (uint64_t i = size; i < padded; ++i) g[i] = 0;
    double row[kLanes];
    for (uint64_t j = 0; j < kLanes; ++j) row[j] = lanes[j];
    for (uint64_t i = 0; i < padded; i += kLanes) {
      for (uint64_t j = 0; j < kLanes; ++j) {
        const double x = g[i + j];
        row[j] += x * x;
      }
    }
    for (uint64_t j = 0; j < kLanes; ++j) lanes[j] = row[j];
  }
  double total = 0;
  for (uint64_t j = 0; j < kLanes; ++j) total += lanes[j];
  return total;
}

}  // namespace

const OptimizerKernels kKernels = {PARLEY_KERNEL_ISA, &Update, &SumOfSquares, &Sum};

}  // namespace PARLEY_KERNEL_NAMESPACE
}  // namespace parley

#undef PARLEY_ELEMENT
#undef PARLEY_SQRT
#undef PARLEY_ABS
