// The codecs that are always there; internal to ps/codec. PayloadCodec::Create is the door.
//
// Formats are in proto/PROTOCOL.md; all integers and floats are little-endian. Settings are checked
// by Create.
#ifndef PARLEY_PS_CODEC_BUILTIN_CODECS_H_
#define PARLEY_PS_CODEC_BUILTIN_CODECS_H_

#include <cstdint>
#include <memory>

#include "ps/codec/payload_codec.h"

namespace parley {

// IEEE binary16 and bfloat16. What is finite stays finite: beyond the format's range its largest
// number is sent. A relative error of 2^-11 and 2^-8 at most otherwise.
std::unique_ptr<PayloadCodec> MakeFp16Codec();
std::unique_ptr<PayloadCodec> MakeBf16Codec();

// Symmetric linear quantisation to [-127, 127] with one float32 scale a block, the largest
// magnitude / 127; -128 is NaN. Error feedback.
std::unique_ptr<PayloadCodec> MakeInt8Codec(uint32_t block);

// The sign of each element; each block's positive and negative elements arrive as their mean (Seide
// et al., Interspeech 2014, with blocks instead of columns). Error feedback.
std::unique_ptr<PayloadCodec> MakeOneBitCodec(uint32_t block);

// The elements of the largest magnitude, of equal ones those of the lowest index, in pieces of
// 65536; a piece of n keeps n * share, rounded up, and at least one. Values as binary16 times a
// power of two of the piece. Error feedback (Aji and Heafield, "Sparse communication for
// distributed gradient descent", EMNLP 2017).
std::unique_ptr<PayloadCodec> MakeTopKCodec(double share);

// What `inner` makes, or float32 if it is null, compressed by zstd.
std::unique_ptr<PayloadCodec> MakeZstdCodec(std::unique_ptr<PayloadCodec> inner, int level);

}  // namespace parley

#endif  // PARLEY_PS_CODEC_BUILTIN_CODECS_H_
