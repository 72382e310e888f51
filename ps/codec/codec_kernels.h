// The inner loops of the codecs, compiled once per instruction set; internal to ps/codec.
//
// Plain data in, plain data out, and nothing but <cstdint>, for the reason that
// ps/table/optimizer_kernels.h gives. Pure, thread-safe. Every instruction set gives the same bits:
// all work in groups of 16 elements, and sums keep one lane for each of the 16. No pointer needs to
// be aligned; what is read and what is written must not overlap.
#ifndef PARLEY_PS_CODEC_CODEC_KERNELS_H_
#define PARLEY_PS_CODEC_CODEC_KERNELS_H_

#include <cstdint>

namespace parley {

struct CodecKernels {
  const char* isa;

  // Round to nearest, ties to even. What is finite stays finite (the largest of the format), NaN
  // and infinities stay what they are. bytes[2 * n].
  void (*fp16_encode)(const float* values, uint64_t n, uint8_t* bytes);
  void (*fp16_decode)(const uint8_t* bytes, uint64_t n, float* out);
  void (*bf16_encode)(const float* values, uint64_t n, uint8_t* bytes);
  void (*bf16_decode)(const uint8_t* bytes, uint64_t n, float* out);

  // One block: codes[n] of values + residual in units of the scale that is returned; -128 for what
  // is not finite. Leaves the rest in residual[n], 0 for what is not finite.
  float (*int8_encode)(const float* values, float* residual, uint64_t n, uint8_t* codes);
  void (*int8_decode)(const uint8_t* codes, uint64_t n, float scale, float* out);

  // One block: bits[(n + 7) / 8], lowest first, 1 = negative; reconstruction[0] for 0 bits, [1] for
  // 1 bits. Both are NaN if anything in the block is not finite; then residual[n] keeps all that
  // is.
  void (*one_bit_encode)(const float* values, float* residual, uint64_t n, float* reconstruction,
                         uint8_t* bits);
  void (*one_bit_decode)(const uint8_t* bits, uint64_t n, const float* reconstruction, float* out);

  // residual += values; then the indices, ascending, of the elements whose magnitude, as the bits
  // of a float without the sign, is at least `threshold`. n <= 65536; returns how many.
  uint64_t (*add_and_collect)(const float* values, float* residual, uint64_t n, uint32_t threshold,
                              uint16_t* indices);
};

namespace codec_kernels_avx2 {
extern const CodecKernels kKernels;
}
namespace codec_kernels_avx512 {
extern const CodecKernels kKernels;  // needs AVX-512 F, VL, DQ and BW
}

}  // namespace parley

#endif  // PARLEY_PS_CODEC_CODEC_KERNELS_H_
