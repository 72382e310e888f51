// Optimizer: a stateless rule that turns the gradients of a step into new weights; its slots live
// beside the weights.
//
// One fused pass over memory does it all: sum W gradients in the order given, scale, clip, decay,
// update weights and slots. The pass runs in tiles that stay in cache. AVX-512 or AVX2 code is
// chosen at run time; both give the same bits, because every element sees the same IEEE operations
// in the same order and contraction to FMA is off. Rules, names and defaults follow torch.optim
// (1.13); golden tests compare 100 steps with it.
//
// Thread-safety: const after construction; any number of threads may apply it to different memory.
#ifndef PARLEY_PS_TABLE_OPTIMIZER_H_
#define PARLEY_PS_TABLE_OPTIMIZER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/experiment.pb.h"
#include "ps/table/schedule.h"

namespace parley {

struct UpdatePass;  // optimizer_kernels.h

struct StepInfo {
  uint64_t step = 0;    // for the schedule: the tick of the gradients, from 0
  uint64_t update = 1;  // how often these weights have been updated, this one included (Adam's t)
  double inverse_weight = 1;  // the summed gradients are multiplied by this: 1 / samples
  double norm_scale = 1;      // from clipping by norm; NormScale()
};

class Optimizer {
 public:
  static constexpr int kMaxSlots = 3;

  virtual ~Optimizer() = default;

  // kInvalidArgument names the field, its value and what is allowed.
  static absl::StatusOr<std::unique_ptr<Optimizer>> Create(const pb::Optimizer& config);

  // Slots per weight: floats beside the weights, initialised to initial_slot_value().
  virtual int slots() const = 0;
  virtual float initial_slot_value(int slot) const = 0;

  // weights_out[i] from weights_in[i], slots[k][i] and the sum over gradients[w][i], for i in [0,
  // n). weights_out may be weights_in. Gradients may be unaligned; there may be none (then the
  // gradient is 0).
  virtual void Apply(uint64_t n, const float* weights_in, float* weights_out, float* const* slots,
                     absl::Span<const float* const> gradients, const StepInfo& info) const = 0;

  // What Apply does to each element, for a kernel elsewhere: the pass without places and gradients.
  virtual UpdatePass Numbers(const StepInfo& info) const = 0;

  // The learning rate of `step`.
  double LearningRate(uint64_t step) const { return learning_rates_.Of(step); }
  // 0 if clipping by norm is off.
  double clip_norm() const { return config_.clip_norm(); }
  // Sum of squares of the summed and scaled gradient (before any clipping), in float64 and in a
  // fixed order.
  static double SumOfSquares(uint64_t n, absl::Span<const float* const> gradients,
                             double inverse_weight);
  // out /* [n] */ = the sum of the gradients, with the additions of Apply and SumOfSquares in their
  // order: given this alone both do what they do given all. No gradients: zeros. `out` is none of
  // the gradients.
  static void Sum(uint64_t n, absl::Span<const float* const> gradients, float* out);
  // min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_.
  double NormScale(double sum_of_squares) const;

  const pb::Optimizer& config() const { return config_; }

 protected:
  explicit Optimizer(const pb::Optimizer& config);
  const pb::Optimizer config_;

 private:
  const LearningRates learning_rates_;
  const double clip_norm_;  // the decimal
};

// "avx512" or "avx2": what Apply uses on this machine.
const char* OptimizerKernelIsa();
// Forces a variant, for tests and benchmarks; false if this machine lacks it. "" goes back to the
// best. Not thread-safe.
bool ForceOptimizerKernelIsa(const char* isa);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_OPTIMIZER_H_
