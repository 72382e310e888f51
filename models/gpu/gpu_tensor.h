// Tensors, workspaces and forms of weights of the GPU device. Internal to models/gpu.
#ifndef PARLEY_MODELS_GPU_GPU_TENSOR_H_
#define PARLEY_MODELS_GPU_GPU_TENSOR_H_

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "models/device.h"
#include "models/gpu/gpu_engine.h"
#include "models/gpu/layer_kernels.h"
#include "ps/gpu/gpu_memory.h"

namespace parley {

class GpuTensor final : public Tensor {
 public:
  enum class Order : uint8_t { kPlain, kLast };

  // Undefined values in this shape and order. False: noted.
  bool SetShape(GpuEngine* engine, SampleShape sample, uint64_t rows, Order order);
  void Reinterpret(SampleShape sample) { sample_ = sample; }

  // The values, to be read; to be overwritten (which ends what ToBf16 made).
  const float* data() const { return memory_.floats(); }
  float* mutable_data() {
    has_halves_ = false;
    return memory_.floats();
  }
  Order order() const { return order_; }
  // Reorders where the order matters. Values stay.
  void ChangeOrder(GpuEngine* engine, Order order);
  ElementOrder element_order() const;  // of what lies here

  // The values rounded, kept until they change.
  const uint16_t* Halves(GpuEngine* engine);
  // What a product reads.
  const void* Factor(GpuEngine* engine) {
    return engine->math() == GemmMath::kBf16 ? static_cast<const void*>(Halves(engine)) : data();
  }

 private:
  bool SameInBoth() const { return sample_.channels == 1 || sample_.height * sample_.width == 1; }

  Order order_ = Order::kPlain;
  DeviceMemory memory_, halves_;
  bool has_halves_ = false;
};

class GpuWorkspace final : public Workspace {
 public:
  DeviceMemory memory;
  Lookup lookup;  // its pointers are the device's
};

// Weights in the form that products read them in, made once a step.
class WeightForms {
 public:
  // Other weights come to lie there: within a step, too, if memory was freed and taken again.
  void Forget(const float* weights, uint64_t n);
  // [out, in], rounded.
  const uint16_t* Halves(GpuEngine* engine, const float* weights, uint64_t n);
  // A convolution's, as rows of the unfolded input, rounded for BF16.
  const void* Rows(GpuEngine* engine, const float* weights, uint64_t out, uint32_t channels,
                   uint32_t taps);

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};
  struct Form {
    uint64_t step = kNever;
    DeviceMemory memory;
  };
  // Its memory, and whether it has to be made.
  Form* Find(GpuEngine* engine, const float* weights, size_t bytes, bool* stale);
  absl::flat_hash_map<const float*, Form> forms_;
};

inline GpuTensor* OnGpu(Tensor* tensor) { return static_cast<GpuTensor*>(tensor); }
inline GpuWorkspace* OnGpu(Workspace* workspace) { return static_cast<GpuWorkspace*>(workspace); }

// sums [n] of x [rows, n].
void SumRowsOnGpu(GpuEngine* engine, const float* x, uint64_t rows, uint32_t n, float* sums);

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_GPU_TENSOR_H_
