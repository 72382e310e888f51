// fp16 and bf16: two bytes an element, one after the other, nothing else.
#include "ps/codec/builtin_codecs.h"
#include "ps/codec/codec_bytes.h"
#include "ps/codec/codec_isa.h"

namespace parley {
namespace {

class HalfCodec : public PayloadCodec {
 public:
  using EncodeKernel = void (*CodecKernels::*)(const float*, uint64_t, uint8_t*);
  using DecodeKernel = void (*CodecKernels::*)(const uint8_t*, uint64_t, float*);

  HalfCodec(const char* name, EncodeKernel encode, DecodeKernel decode)
      : name_(name), encode_(encode), decode_(decode) {}

  std::string name() const override { return name_; }
  bool keeps_residual() const override { return false; }
  uint64_t MaxEncodedBytes(uint64_t n) const override { return 2 * n; }
  bool fixed_size() const override { return true; }

  uint64_t Encode(const float* values, uint64_t n, float*, std::byte* out) const override {
    (ActiveCodecKernels().*encode_)(values, n, AsBytes(out));
    return 2 * n;
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (auto status = CheckSize(name_, n, bytes.size(), 2 * n); !status.ok()) return status;
    (ActiveCodecKernels().*decode_)(AsBytes(bytes), n, out);
    return absl::OkStatus();
  }

 private:
  const char* const name_;
  const EncodeKernel encode_;
  const DecodeKernel decode_;
};

}  // namespace

std::unique_ptr<PayloadCodec> MakeFp16Codec() {
  return std::make_unique<HalfCodec>("fp16", &CodecKernels::fp16_encode,
                                     &CodecKernels::fp16_decode);
}

std::unique_ptr<PayloadCodec> MakeBf16Codec() {
  return std::make_unique<HalfCodec>("bf16", &CodecKernels::bf16_encode,
                                     &CodecKernels::bf16_decode);
}

}  // namespace parley
