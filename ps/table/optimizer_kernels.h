// The fused pass over a partition, compiled once per instruction set; internal to ps/table.
//
// Plain data in, plain data out, and nothing but <cstdint>: the files behind this are compiled for
// a wider machine than the rest, and an inline function of a library header emitted there could be
// the copy that the linker keeps for everybody.
#ifndef PARLEY_PS_TABLE_OPTIMIZER_KERNELS_H_
#define PARLEY_PS_TABLE_OPTIMIZER_KERNELS_H_

#include <cstdint>

namespace parley {

// One loop each. Slots in the order of torch.optim's state:
enum class UpdateRule : uint8_t {
  kSgd,                      // -
  kSgdMomentum,              // momentum buffer
  kSgdNesterov,              // momentum buffer
  kAdagrad,                  // sum of squares
  kAdadelta,                 // square average, accumulated delta
  kRmsProp,                  // square average
  kRmsPropMomentum,          // square average, momentum buffer
  kRmsPropCentered,          // square average, gradient average
  kRmsPropCenteredMomentum,  // square average, gradient average, momentum buffer
  kAdam,                     // first moment, second moment; AdamW too (weight_factor)
  kAdamAmsgrad,              // first moment, second moment, its maximum
  kFtrl,                     // z, n of McMahan 2013; rows only
  kRowAdagrad,               // - (one accumulator a row); rows only, see row_kernels.h
};

// The numbers of one step, rounded to float32 only here, as PyTorch rounds its Python scalars.
struct RuleScalars {
  float minus_lr = 0;     // with everything that PyTorch folds into the step size
  float keep = 0;         // of the first running average: momentum, rho, alpha, beta1
  float take = 0;         // 1 - keep, or 1 - dampening
  float keep_second = 0;  // of Adam's second moment: beta2
  float take_second = 0;  // 1 - beta2
  float eps = 0;
  float momentum = 0;
  float bias2_sqrt = 1;     // sqrt(1 - beta2^t)
  float weight_factor = 1;  // AdamW's decoupled decay: 1 - lr * weight_decay
  float alpha = 0;          // FTRL's learning rate
  float beta = 0;           // FTRL's
  float l1 = 0;             // FTRL's
  float l2 = 0;             // FTRL's
};

struct GradientSum {
  const float* const* gradients = nullptr;  // [count] of float32 [n], any alignment
  uint64_t count = 0;
  float inverse_weight = 1;
  float norm_scale = 1;
  float clip = 0;  // +infinity: off
};

struct UpdatePass {
  uint64_t n = 0;
  const float* weights_in = nullptr;              // [n]
  float* weights_out = nullptr;                   // [n]; may be weights_in
  float* slots[3] = {nullptr, nullptr, nullptr};  // [n] each
  GradientSum sum;
  float weight_decay = 0;  // into the gradient
  UpdateRule rule = UpdateRule::kSgd;
  RuleScalars scalars;
};

struct OptimizerKernels {
  const char* isa;
  void (*update)(const UpdatePass& pass);
  // Of the summed gradients times sum.inverse_weight; element i goes to lane i % 16, the 16 float64
  // lanes are added in order.
  double (*sum_of_squares)(uint64_t n, const GradientSum& sum);
  // out /* [n], none of the gradients */ = their sum alone, in the order in which `update` adds.
  void (*sum)(uint64_t n, const GradientSum& sum, float* out);
};

namespace kernels_avx2 {
extern const OptimizerKernels kKernels;
}
namespace kernels_avx512 {
extern const OptimizerKernels kKernels;  // needs AVX-512 F, VL and DQ
}

}  // namespace parley

#endif  // PARLEY_PS_TABLE_OPTIMIZER_KERNELS_H_
