#include "models/cpu/cpu_tensor.h"

#include <algorithm>
#include <utility>

namespace parley {
namespace {

// in [rows, blocks, spatial, block] -> out [rows, channels, spatial]. The inner loop walks one
// channel, so that writes are contiguous and the reads of a block stay in the L1 cache.
void ToPlain(const float* in, uint64_t rows, uint64_t channels, uint64_t spatial, uint64_t block,
             float* out) {
  for (uint64_t n = 0; n < rows; ++n) {
    for (uint64_t c0 = 0; c0 < channels; c0 += block) {
      const uint64_t lanes = std::min(block, channels - c0);
      for (uint64_t lane = 0; lane < lanes; ++lane) {
        float* row = out + lane * spatial;
        for (uint64_t s = 0; s < spatial; ++s) row[s] = in[s * block + lane];
      }
      in += spatial * block;
      out += lanes * spatial;
    }
  }
}

void FromPlain(const float* in, uint64_t rows, uint64_t channels, uint64_t spatial, uint64_t block,
               float* out) {
  for (uint64_t n = 0; n < rows; ++n) {
    for (uint64_t c0 = 0; c0 < channels; c0 += block) {
      const uint64_t lanes = std::min(block, channels - c0);
      if (lanes < block) std::fill_n(out, spatial * block, 0.0f);
      for (uint64_t s = 0; s < spatial; ++s) {
        for (uint64_t lane = 0; lane < lanes; ++lane) {
          out[s * block + lane] = in[lane * spatial + s];
        }
      }
      in += lanes * spatial;
      out += spatial * block;
    }
  }
}

}  // namespace

void CpuTensor::ChangeBlock(uint32_t block, GrowingBuffer* spare) {
  if (block == block_) return;
  if (block_ != 1 && block != 1) ChangeBlock(1, spare);
  const float* in = data();
  const uint32_t old_block = std::exchange(block_, block);
  spare->Reserve(physical_elements() * sizeof(float));
  if (block == 1) {
    ToPlain(in, rows_, sample_.channels, spatial(), old_block, spare->floats());
  } else {
    FromPlain(in, rows_, sample_.channels, spatial(), block, spare->floats());
  }
  std::swap(memory_, *spare);
  borrowed_ = nullptr;
}

void CpuTensor::CopyRow(uint64_t row, float* out) {
  const uint64_t row_size = physical_elements() / rows_;
  ToPlain(data() + row * row_size, 1, sample_.channels, spatial(), block_, out);
}

}  // namespace parley
