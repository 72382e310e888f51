// Model: a chain of layers over a Device that turns parameters and a batch into a loss and
// gradients, stage by stage.
//
// A stage is one layer. The trainer calls Begin, then Forward(0) ... Forward(n-1), then
// Backward(n-1) ... Backward(0), and may wait before any Forward for that stage's parameters. On a
// device that is asynchronous these calls return before the work is done: AwaitGradients waits for
// those of one stage, Result for the loss. On others nothing is left to wait for. Gradients are
// sums over the batch, not means: the server divides by the samples of the whole step.
// Deterministic: same parameters, batch and seed give the same bits on the same device with the
// same thread count.
//
// Thread-safety: none; one call at a time, from any thread.
#ifndef PARLEY_MODELS_MODEL_H_
#define PARLEY_MODELS_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "models/shape.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/dense_layout.h"

namespace parley {

// Borrowed by Begin until the last Backward of the step.
struct BatchView {
  uint64_t rows = 0;
  const float* x = nullptr;         // [rows, channels, height, width]
  const int32_t* labels = nullptr;  // [rows], each in [0, classes)
  // [rows, channels, height, width]: if not null, Backward(0) writes the gradient of the loss by x
  // here. For what stands in front of the model and is trained elsewhere: an embedding.
  float* dx = nullptr;

  // With an embedding, x is null and the model's input is looked up: a sample's rows in the order
  // of its fields, or their sum.
  const Lookup* lookup = nullptr;
  const float* row_values = nullptr;  // [keys, dim]
  float* row_gradients = nullptr;     // [keys, dim]; null: not wanted
};

struct StepContext {
  bool train = true;  // false: dropout is off and no Backward follows
  uint64_t tick = 0;
  uint64_t first_row =
      0;  // position of the first row in the global batch: dropout depends on it, not on the worker
};

struct BatchResult {
  double loss_sum = 0;   // NLL summed over rows
  uint64_t correct = 0;  // rows whose largest log-probability is the label's
};

class Model {
 public:
  // `device` must outlive the model. kInvalidArgument names the layer, the field, its value and
  // what is allowed: shapes that do not fit, a missing or misplaced log_softmax, duplicate names,
  // an output that is not [classes].
  static absl::StatusOr<std::unique_ptr<Model>> Create(const pb::Model& config, SampleShape input,
                                                       uint32_t classes, uint64_t seed,
                                                       Device* device);
  virtual ~Model() = default;

  // The tensors in order, named "<layer>.weight" [out, in ...] and "<layer>.bias" [out], with
  // PyTorch's default initialisers: uniform in +-1/sqrt(fan_in).
  virtual const std::vector<pb::TensorSpec>& tensors() const = 0;

  virtual size_t stages() const = 0;
  virtual const std::string& stage_name(size_t stage) const = 0;
  // Indices of the tensors that a stage uses; empty for a layer without parameters.
  virtual Range stage_tensors(size_t stage) const = 0;

  // Where parameters are read and gradients are written: all tensors end to end, as DenseLayout
  // lays them. float32 [total elements], 64-byte aligned; they stay valid until bound anew. Every
  // Backward overwrites its gradients.
  // `kind`: whose memory it is.
  virtual void BindParameters(const float* parameters, MemoryKind kind = MemoryKind::kHost) = 0;
  virtual void BindGradients(float* gradients, MemoryKind kind = MemoryKind::kHost) = 0;

  // The batch of the Begin after next, to be copied to the device meanwhile. Its memory must not
  // change until the step that it belongs to is over; Begin must be given the same. Not for batches
  // with a lookup. REQUIRES: a step has begun and no other batch has been told since.
  virtual void Prefetch(const BatchView& batch) = 0;

  // REQUIRES: batch.rows >= 1.
  virtual absl::Status Begin(const BatchView& batch, const StepContext& context) = 0;
  virtual absl::Status Forward(size_t stage) = 0;
  virtual absl::StatusOr<BatchResult> Result() = 0;  // after the last Forward; waits for it
  virtual absl::Status Backward(size_t stage) = 0;

  // Whether more than one Backward should be enqueued before gradients are waited for.
  virtual bool asynchronous() const = 0;
  // After Backward(stage): its gradients, and what the batch wants of stage 0, are where they
  // belong.
  virtual bool GradientsReady(size_t stage) = 0;
  virtual absl::Status AwaitGradients(size_t stage) = 0;

  // Floating-point operations of forward plus backward, per sample; for explain and the roofline.
  // Without the gradient of x.
  virtual double flops_per_sample() const = 0;
};

}  // namespace parley

#endif  // PARLEY_MODELS_MODEL_H_
