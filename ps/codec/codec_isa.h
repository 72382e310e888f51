// Which of the codecs' kernels run on this machine; internal to ps/codec and its tests.
//
// Thread-safe, except that ForceCodecKernelIsa must not run beside an Encode or Decode.
#ifndef PARLEY_PS_CODEC_CODEC_ISA_H_
#define PARLEY_PS_CODEC_CODEC_ISA_H_

#include "absl/strings/string_view.h"
#include "ps/codec/codec_kernels.h"

namespace parley {

// The widest that the processor has, unless forced.
const CodecKernels& ActiveCodecKernels();

// For tests and benchmarks: "avx2", "avx512", or "" for the widest. False, and no change, if this
// machine has none of that name.
bool ForceCodecKernelIsa(absl::string_view isa);

}  // namespace parley

#endif  // PARLEY_PS_CODEC_CODEC_ISA_H_
