// Loops over batches of rows, compiled once per instruction set; internal to ps/table.
//
// Plain data in, plain data out, and nothing but <cstdint>, for the reason given in
// optimizer_kernels.h. A row is float32, float16 or bfloat16 weights, then what the optimizer keeps
// (RowFormat); arithmetic is float32, and narrow weights are rounded to nearest even once, at the
// end of the update. Both instruction sets give the same bits.
#ifndef PARLEY_PS_TABLE_ROW_KERNELS_H_
#define PARLEY_PS_TABLE_ROW_KERNELS_H_

#include <cstdint>

#include "ps/table/optimizer_kernels.h"

namespace parley {

enum class RowStorage : uint8_t { kFloat32, kFloat16, kBfloat16 };

// One update of each of `rows` rows, in order: a row may occur twice.
struct RowUpdatePass {
  uint64_t rows = 0;
  uint64_t dim = 0;  // at most 4096
  RowStorage storage = RowStorage::kFloat32;
  uint8_t* const* row = nullptr;  // [rows]; null: nothing is done for it
  // Row r has the gradients [first[r], first[r + 1]) of this list, summed in that order; one at
  // least. Without `first`, gradient r. Each float32 [dim], any alignment.
  const float* const* gradients = nullptr;
  const uint32_t* first = nullptr;
  float inverse_weight = 1;
  float clip = 0;  // +infinity: off
  float weight_decay = 0;
  UpdateRule rule = UpdateRule::kSgd;
  const RuleScalars* scalars = nullptr;  // of row r: scalars[r * scalars_step]
  uint64_t scalars_step = 0;             // 0: one for all; 1: one each
  uint64_t slots_at = 0;                 // bytes from the row to its slots, [slots, dim]
  uint64_t accumulator_at = 0;           // kRowAdagrad: to the row's accumulator
};

struct RowKernels {
  const char* isa;
  void (*update)(const RowUpdatePass& pass);
  // out /* [rows, dim], any alignment */ = the weights; rows that are null are left out.
  void (*read)(uint64_t rows, uint64_t dim, RowStorage storage, const uint8_t* const* row,
               float* out);
  // The narrowing of `read`'s opposite: row /* [dim] of storage */ from values /* [dim] */.
  void (*write)(uint64_t dim, RowStorage storage, const float* values, uint8_t* row);
};

namespace kernels_avx2 {
extern const RowKernels kRowKernels;
}
namespace kernels_avx512 {
extern const RowKernels kRowKernels;
}

// The ones to use on this machine; follows ForceOptimizerKernelIsa.
const RowKernels& BestRowKernels();

}  // namespace parley

#endif  // PARLEY_PS_TABLE_ROW_KERNELS_H_
