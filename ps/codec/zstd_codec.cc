// zstd around another codec: a byte that says how the rest is stored, and the rest.
#include <zstd.h>

#include <memory>
#include <vector>

#include "ps/codec/builtin_codecs.h"
#include "ps/codec/codec_bytes.h"

namespace parley {
namespace {

constexpr uint8_t kStored = 0, kCompressed = 1;

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// A context is megabytes that take longer to clear than a small payload to compress: one a thread.
ZSTD_CCtx* Compressor() {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  return context.get();
}
ZSTD_DCtx* Decompressor() {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  return context.get();
}

class ZstdCodec : public PayloadCodec {
 public:
  ZstdCodec(std::unique_ptr<PayloadCodec> inner, int level)
      : inner_(std::move(inner)), level_(level) {}

  std::string name() const override { return inner_ ? inner_->name() + "+zstd" : "zstd"; }
  bool keeps_residual() const override { return inner_ && inner_->keeps_residual(); }
  bool fixed_size() const override { return false; }
  uint64_t MaxEncodedBytes(uint64_t n) const override { return n == 0 ? 0 : 1 + InnerBytes(n); }

  uint64_t Encode(const float* values, uint64_t n, float* residual, std::byte* out) const override {
    if (n == 0) return 0;
    std::unique_ptr<std::byte[]> scratch;
    const void* plain = values;
    uint64_t size = InnerBytes(n);
    if (inner_) {
      scratch = std::make_unique_for_overwrite<std::byte[]>(size);
      size = inner_->Encode(values, n, residual, scratch.get());
      plain = scratch.get();
    }
    // Room for one byte less than stored: what does not get smaller is an error here, and stored.
    const size_t packed = ZSTD_compressCCtx(Compressor(), out + 1, size - 1, plain, size, level_);
    if (ZSTD_isError(packed)) {
      out[0] = std::byte{kStored};
      std::memcpy(out + 1, plain, size);
      return 1 + size;
    }
    out[0] = std::byte{kCompressed};
    return 1 + packed;
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (n == 0) return CheckSize(name(), n, bytes.size(), 0);
    if (bytes.empty() || bytes.size() > MaxEncodedBytes(n)) {
      return absl::InvalidArgumentError(absl::StrCat(name(), ": ", bytes.size(), " bytes for ", n,
                                                     " values; allowed: 1..", MaxEncodedBytes(n)));
    }
    const auto how = static_cast<uint8_t>(bytes[0]);
    bytes.remove_prefix(1);
    if (how == kStored) return DecodeInner(bytes, n, out);
    if (how != kCompressed) {
      return absl::InvalidArgumentError(
          absl::StrCat(name(), ": storage ", how, "; allowed: 0 (stored), 1 (zstd)"));
    }
    // What comes out is bounded by n, which is ours; what the frame says of its size is not asked.
    const uint64_t capacity = InnerBytes(n);
    std::unique_ptr<std::byte[]> scratch;
    void* plain = out;
    if (inner_) {
      scratch = std::make_unique_for_overwrite<std::byte[]>(capacity);
      plain = scratch.get();
    }
    const size_t size =
        ZSTD_decompressDCtx(Decompressor(), plain, capacity, bytes.data(), bytes.size());
    if (ZSTD_isError(size)) {
      return absl::InvalidArgumentError(absl::StrCat(name(), ": ", ZSTD_getErrorName(size), " in ",
                                                     bytes.size(), " bytes for ", n, " values"));
    }
    if (!inner_) return CheckSize(name(), n, size, capacity);
    return DecodeInner(std::string_view(static_cast<const char*>(plain), size), n, out);
  }

 private:
  uint64_t InnerBytes(uint64_t n) const {
    return inner_ ? inner_->MaxEncodedBytes(n) : n * sizeof(float);
  }

  absl::Status DecodeInner(std::string_view bytes, uint64_t n, float* out) const {
    if (inner_) return inner_->Decode(bytes, n, out);
    if (auto status = CheckSize(name(), n, bytes.size(), n * sizeof(float)); !status.ok()) {
      return status;
    }
    std::memcpy(static_cast<void*>(out), bytes.data(), bytes.size());
    return absl::OkStatus();
  }

  const std::unique_ptr<PayloadCodec> inner_;
  const int level_;
};

}  // namespace

std::unique_ptr<PayloadCodec> MakeZstdCodec(std::unique_ptr<PayloadCodec> inner, int level) {
  return std::make_unique<ZstdCodec>(std::move(inner), level);
}

}  // namespace parley
