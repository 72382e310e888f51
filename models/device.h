// Device: the operations that layers are made of, on memory that the device owns.
//
// Activations are Tensors. Their element order is the device's secret: a CPU with oneDNN keeps them
// in channel blocks between convolutions, a GPU has the channels last. Shapes are always given as
// [rows, channels, height, width]; "plain order" means that one, row-major. Parameters and their
// gradients are plain float32 arrays, [out, in ...] and [out], of the caller's; operations are
// given what LoadParameters, PrepareGradients and LoadLabels make of them, which is the same memory
// or the device's.
//
// Operations are enqueued: they may return before they are done and run in the order of the calls.
// What StoreGradients, Download and NllForward write to the caller's memory is there once Await of
// a later Mark, or Sync, has returned, and memory of the caller's that is read must not change
// until then. A failure inside an operation is reported by the next Await or Sync; operations after
// it have no effect.
//
// Shapes: the caller calls Prepare on an output before the operation and the operation takes its
// sizes from its tensors. Shapes that do not fit each other are a bug of the caller, not an error.
// An operation may change the element order of its inputs, never their values.
//
// Deterministic: the same calls give the same bits on the same machine with the same options.
// Thread-safety: none; one call at a time, from any thread.
#ifndef PARLEY_MODELS_DEVICE_H_
#define PARLEY_MODELS_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "models/shape.h"

namespace parley {

// Activations or their gradients, float32 [rows, channels, height, width]. Made by a Device and of
// use to that device alone.
class Tensor {
 public:
  virtual ~Tensor() = default;
  SampleShape sample() const { return sample_; }
  uint64_t rows() const { return rows_; }
  uint64_t elements() const { return rows_ * sample_.size(); }

 protected:
  SampleShape sample_;
  uint64_t rows_ = 0;
};

// What a forward operation leaves for its backward operation: where a maximum was, what dropout
// kept.
class Workspace {
 public:
  virtual ~Workspace() = default;
};

// Square kernel, stride 1, zeros around.
struct Conv2dGeometry {
  uint32_t kernel = 3;
  uint32_t padding = 0;
};

// Element j of row r (plain order) is kept iff UniformAt(seed, stream, (first_row + r) * features +
// j) >= p: the pattern belongs to the global batch, however it is split.
struct DropoutPattern {
  float p = 0;  // in [0, 1)
  uint64_t seed = 0;
  uint64_t stream = 0;
  uint64_t first_row = 0;
};

// A batch's keys, as operations on rows of a table see them. Borrowed.
struct Lookup {
  static constexpr uint32_t kNone = ~uint32_t{0};

  uint64_t samples = 0, keys = 0;  // keys: rows of the table, each once
  uint32_t fields = 0, dim = 0;
  bool sum = false;                 // over the fields; else side by side
  const uint32_t* index = nullptr;  // [samples, fields] into the keys; kNone: zeros, no gradient
  const float* factors = nullptr;   // [samples, fields]: a row is multiplied by it; null: all 1
  // Where each key occurs: places[starts[k]] .. places[starts[k + 1] - 1], ascending, each
  // sample * fields + field.
  const uint32_t* starts = nullptr;  // [keys + 1]
  const uint32_t* places = nullptr;  // [starts[keys]]
};

// Whose memory parameters and gradients are in.
enum class MemoryKind : uint8_t { kHost, kDevice };

// A point in the order of what was enqueued.
enum class Mark : uint64_t {};

class Device {
 public:
  virtual ~Device() = default;

  // For people: "cpu (oneDNN 2.6, 1 thread)".
  virtual std::string description() const = 0;

  // True: operations take their time after their call has returned, so that it pays to enqueue
  // much and to wait late. False: they are done when they return.
  virtual bool asynchronous() const = 0;

  // Waits for everything enqueued. Returns the first failure since it was last asked for.
  virtual absl::Status Sync() = 0;

  // Starts what has been enqueued; nothing to a device that does so at once.
  virtual void Flush() = 0;

  // What has been enqueued so far, copies to the caller's memory included.
  virtual Mark MarkHere() = 0;
  virtual bool Reached(Mark mark) = 0;
  virtual absl::Status Await(Mark mark) = 0;  // as Sync

  // A step begins. Upload and the Load calls fill memory beside operations that are still running;
  // they wait for those that were enqueued before the last BeginStep and for no others. So the
  // tensor or workspace that they fill must not have been used since.
  virtual void BeginStep() = 0;

  // Empty objects. They must outlive what is enqueued with them, and not the device.
  virtual std::unique_ptr<Tensor> NewTensor() = 0;
  virtual std::unique_ptr<Workspace> NewWorkspace() = 0;

  // Gives `tensor` a shape; its values become undefined. Memory is kept and reused, since fresh
  // pages are slow. kResourceExhausted if there is not enough.
  virtual absl::Status Prepare(Tensor* tensor, SampleShape sample, uint64_t rows) = 0;

  // Parameters [n] for the operations of this step, to be given to them as they are returned.
  // `memory` holds them where the device does not read them in place.
  virtual const float* LoadParameters(const float* parameters, MemoryKind kind, uint64_t n,
                                      Workspace* memory) = 0;
  // Where operations shall write gradients [n], which StoreGradients of the same arguments then
  // brings home.
  virtual float* PrepareGradients(float* gradients, MemoryKind kind, uint64_t n,
                                  Workspace* memory) = 0;
  virtual void StoreGradients(const float* made, MemoryKind kind, uint64_t n, float* gradients) = 0;
  // Copies parameters [n] of the device's memory to the caller's, and waits for it.
  virtual absl::Status FetchParameters(const float* parameters, uint64_t n, float* out) = 0;
  virtual const int32_t* LoadLabels(const int32_t* labels, uint64_t rows, Workspace* memory) = 0;

  // x: host, plain order. The device may read `x` in place for as long as `tensor` is used.
  virtual void Upload(const float* x, SampleShape sample, uint64_t rows, Tensor* tensor) = 0;
  virtual void Download(Tensor* tensor, float* out /* plain order */) = 0;

  // The same values in plain order under another shape of equal size, in place.
  virtual void View(Tensor* tensor, SampleShape sample) = 0;

  // y [n, out] = x [n, in] W^T + b, then max(0, y) if `relu`. W [out, in]. Any sample shape counts
  // as flat.
  virtual void LinearForward(Tensor* x, const float* weight, const float* bias, bool relu,
                             Tensor* y) = 0;
  virtual void LinearBackwardData(Tensor* dy, const float* weight, Tensor* dx) = 0;
  // Overwrites dweight [out, in] and dbias [out] with sums over the rows.
  virtual void LinearBackwardWeights(Tensor* x, Tensor* dy, float* dweight, float* dbias) = 0;

  // y [n, out, oh, ow] = x [n, in, h, w] * W + b, cross-correlation as in PyTorch, then max(0, y)
  // if `relu`. W [out, in, kernel, kernel], oh = h + 2 padding - kernel + 1.
  virtual void Conv2dForward(Tensor* x, Conv2dGeometry geometry, const float* weight,
                             const float* bias, bool relu, Tensor* y) = 0;
  virtual void Conv2dBackwardData(Tensor* dy, Conv2dGeometry geometry, const float* weight,
                                  Tensor* dx) = 0;
  virtual void Conv2dBackwardWeights(Tensor* x, Tensor* dy, Conv2dGeometry geometry, float* dweight,
                                     float* dbias) = 0;

  // Windows of kernel x kernel side by side, the remainder cut off; the first of equal maxima wins.
  // With `relu_gradient` the backward operation also passes through the ReLU that made x: windows
  // whose maximum is <= 0 get no gradient. That is cheaper here than on the larger x.
  virtual void MaxPoolForward(Tensor* x, uint32_t kernel, bool relu_gradient, Tensor* y,
                              Workspace* argmax) = 0;
  virtual void MaxPoolBackward(Tensor* dy, uint32_t kernel, Workspace* argmax, Tensor* dx) = 0;

  virtual void ReluForward(Tensor* x, Tensor* y) = 0;
  // dx = dy where y > 0, else 0. dx may be dy.
  virtual void ReluBackward(Tensor* y, Tensor* dy, Tensor* dx) = 0;

  // y = x / (1 - p) where kept, else 0.
  virtual void DropoutForward(Tensor* x, const DropoutPattern& pattern, Tensor* y,
                              Workspace* kept) = 0;
  virtual void DropoutBackward(Tensor* dy, float p, Workspace* kept, Tensor* dx) = 0;

  // y [n, classes]: log-probabilities of the scores x.
  virtual void LogSoftmaxForward(Tensor* x, Tensor* y) = 0;
  // loss_sum = -sum of y [i, labels[i]]; correct = rows whose (first) largest y is the label's.
  // REQUIRES: labels in [0, classes).
  virtual void NllForward(Tensor* y, const int32_t* labels, double* loss_sum,
                          uint64_t* correct) = 0;
  // Gradient of loss_sum by the scores: exp(y) - onehot(labels).
  virtual void NllLogSoftmaxBackward(Tensor* y, const int32_t* labels, Tensor* dx) = 0;

  // The lookup of the operations that follow with `memory`.
  virtual void LoadLookup(const Lookup& lookup, Workspace* memory) = 0;
  // values [keys, dim] -> x [samples, fields * dim] or, summed in the order of the fields,
  // [samples, dim].
  virtual void LookupForward(const float* values, Workspace* lookup, Tensor* x) = 0;
  // Overwrites gradients [keys, dim]; a row's is added up by sample, then by field.
  virtual void LookupBackward(Tensor* dx, Workspace* lookup, float* gradients) = 0;
};

}  // namespace parley

#endif  // PARLEY_MODELS_DEVICE_H_
