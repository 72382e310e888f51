// Memory and layout of the CPU device's tensors. Internal to models/cpu.
#ifndef PARLEY_MODELS_CPU_CPU_TENSOR_H_
#define PARLEY_MODELS_CPU_CPU_TENSOR_H_

#include <cstddef>
#include <cstdint>

#include "models/device.h"
#include "ps/base/buffer.h"

namespace parley {

// Memory that grows and never shrinks. Throws std::bad_alloc.
class GrowingBuffer {
 public:
  // Contents are kept only if no growth was needed.
  void Reserve(size_t bytes) {
    if (bytes > buffer_.size()) {
      buffer_ = Buffer();  // give the old pages back first
      buffer_ = Buffer::Allocate(bytes);
    }
  }
  float* floats() { return buffer_.mutable_floats(); }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(buffer_.mutable_data()); }

 private:
  Buffer buffer_;
};

// Elements lie as [rows, ceil(channels / block), height, width, block], lanes beyond the last
// channel being zero. block 1 is plain order, block == channels is "channels last", 8 and 16 are
// what oneDNN's vector convolutions ask for.
class CpuTensor final : public Tensor {
 public:
  void SetShape(SampleShape sample, uint64_t rows, uint32_t block) {
    sample_ = sample;
    rows_ = rows;
    block_ = block;
    borrowed_ = nullptr;
    memory_.Reserve(physical_elements() * sizeof(float));
  }
  // Reads `data` in place until the next SetShape.
  void Borrow(const float* data, SampleShape sample, uint64_t rows) {
    sample_ = sample;
    rows_ = rows;
    block_ = 1;
    borrowed_ = data;
  }
  // REQUIRES: plain order.
  void Reinterpret(SampleShape sample) { sample_ = sample; }

  // Reorders the elements in place; nothing if `block` is what it has. `spare` is scratch.
  void ChangeBlock(uint32_t block, GrowingBuffer* spare);

  // Writes row `row` to `out` [channels, height, width] in plain order.
  void CopyRow(uint64_t row, float* out);

  uint32_t block() const { return block_; }
  uint32_t channel_blocks() const { return (sample_.channels + block_ - 1) / block_; }
  uint64_t spatial() const { return uint64_t{sample_.height} * sample_.width; }
  uint64_t physical_elements() const { return rows_ * channel_blocks() * spatial() * block_; }

  const float* data() { return borrowed_ != nullptr ? borrowed_ : memory_.floats(); }
  // REQUIRES: not borrowed.
  float* mutable_data() { return memory_.floats(); }

 private:
  uint32_t block_ = 1;
  const float* borrowed_ = nullptr;
  GrowingBuffer memory_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_CPU_CPU_TENSOR_H_
