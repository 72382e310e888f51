#include "ps/codec/codec_isa.h"

namespace parley {
namespace {

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

const CodecKernels* Widest() {
  return HasAvx512() ? &codec_kernels_avx512::kKernels : &codec_kernels_avx2::kKernels;
}

const CodecKernels*& Active() {
  static const CodecKernels* active = Widest();
  return active;
}

}  // namespace

const CodecKernels& ActiveCodecKernels() { return *Active(); }

bool ForceCodecKernelIsa(absl::string_view isa) {
  if (isa.empty()) {
    Active() = Widest();
  } else if (isa == codec_kernels_avx2::kKernels.isa) {
    Active() = &codec_kernels_avx2::kKernels;
  } else if (isa == codec_kernels_avx512::kKernels.isa && HasAvx512()) {
    Active() = &codec_kernels_avx512::kKernels;
  } else {
    return false;
  }
  return true;
}

}  // namespace parley
