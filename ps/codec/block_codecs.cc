// int8 and one_bit: blocks one after the other, each with its numbers first and its codes after.
#include <algorithm>
#include <cmath>

#include "ps/codec/builtin_codecs.h"
#include "ps/codec/codec_bytes.h"
#include "ps/codec/codec_isa.h"

namespace parley {
namespace {

class Int8Codec : public PayloadCodec {
 public:
  explicit Int8Codec(uint64_t block) : block_(block) {}

  std::string name() const override { return "int8"; }
  bool keeps_residual() const override { return true; }
  bool fixed_size() const override { return true; }
  uint64_t MaxEncodedBytes(uint64_t n) const override {
    return n + kHead * ((n + block_ - 1) / block_);
  }

  uint64_t Encode(const float* values, uint64_t n, float* residual, std::byte* out) const override {
    const CodecKernels& kernels = ActiveCodecKernels();
    uint8_t* to = AsBytes(out);
    for (uint64_t i = 0; i < n; i += block_) {
      const uint64_t size = std::min(block_, n - i);
      WriteAs<float>(to, kernels.int8_encode(values + i, residual + i, size, to + kHead));
      to += kHead + size;
    }
    return MaxEncodedBytes(n);
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (auto status = CheckSize("int8", n, bytes.size(), MaxEncodedBytes(n)); !status.ok()) {
      return status;
    }
    const CodecKernels& kernels = ActiveCodecKernels();
    const uint8_t* from = AsBytes(bytes);
    for (uint64_t i = 0; i < n; i += block_) {
      const uint64_t size = std::min(block_, n - i);
      const float scale = ReadAs<float>(from);
      if (!(scale >= 0 && std::isfinite(scale))) {
        return absl::InvalidArgumentError(absl::StrCat("int8: scale of block ", i / block_, " is ",
                                                       scale, "; allowed: finite and >= 0"));
      }
      kernels.int8_decode(from + kHead, size, scale, out + i);
      from += kHead + size;
    }
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kHead = sizeof(float);
  const uint64_t block_;
};

class OneBitCodec : public PayloadCodec {
 public:
  explicit OneBitCodec(uint64_t block) : block_(block) {}

  std::string name() const override { return "one_bit"; }
  bool keeps_residual() const override { return true; }
  bool fixed_size() const override { return true; }
  uint64_t MaxEncodedBytes(uint64_t n) const override {
    const uint64_t rest = n % block_;
    return n / block_ * BlockBytes(block_) + (rest == 0 ? 0 : BlockBytes(rest));
  }

  uint64_t Encode(const float* values, uint64_t n, float* residual, std::byte* out) const override {
    const CodecKernels& kernels = ActiveCodecKernels();
    uint8_t* to = AsBytes(out);
    for (uint64_t i = 0; i < n; i += block_) {
      const uint64_t size = std::min(block_, n - i);
      float reconstruction[2];
      kernels.one_bit_encode(values + i, residual + i, size, reconstruction, to + kHead);
      std::memcpy(to, reconstruction, kHead);
      to += BlockBytes(size);
    }
    return MaxEncodedBytes(n);
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (auto status = CheckSize("one_bit", n, bytes.size(), MaxEncodedBytes(n)); !status.ok()) {
      return status;
    }
    const CodecKernels& kernels = ActiveCodecKernels();
    const uint8_t* from = AsBytes(bytes);
    for (uint64_t i = 0; i < n; i += block_) {
      const uint64_t size = std::min(block_, n - i);
      float reconstruction[2];
      std::memcpy(reconstruction, from, kHead);
      if (auto status = CheckBlock(reconstruction, from + kHead, size, i / block_); !status.ok()) {
        return status;
      }
      kernels.one_bit_decode(from + kHead, size, reconstruction, out + i);
      from += BlockBytes(size);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kHead = 2 * sizeof(float);

  static uint64_t BlockBytes(uint64_t n) { return kHead + (n + 7) / 8; }

  // One encoding per meaning, so that a resend of a push can be told from another push.
  static absl::Status CheckBlock(const float* reconstruction, const uint8_t* bits, uint64_t n,
                                 uint64_t index) {
    const float positive = reconstruction[0], negative = reconstruction[1];
    const bool numbers =
        positive >= 0 && std::isfinite(positive) && negative <= 0 && std::isfinite(negative);
    if (!numbers && !(std::isnan(positive) && std::isnan(negative))) {
      return absl::InvalidArgumentError(
          absl::StrCat("one_bit: block ", index, " has the values ", positive, " and ", negative,
                       "; allowed: finite, >= 0 and <= 0, or both NaN"));
    }
    if (n % 8 != 0 && bits[n / 8] >> (n % 8) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "one_bit: block ", index, " has bits past its ", n, " elements; allowed: zeros"));
    }
    return absl::OkStatus();
  }

  const uint64_t block_;
};

}  // namespace

std::unique_ptr<PayloadCodec> MakeInt8Codec(uint32_t block) {
  return std::make_unique<Int8Codec>(block);
}

std::unique_ptr<PayloadCodec> MakeOneBitCodec(uint32_t block) {
  return std::make_unique<OneBitCodec>(block);
}

}  // namespace parley
