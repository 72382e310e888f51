// Every registered payload codec: bytes of strangers, and its promises about values.
//
//   u8  codec       modulo the number of names
//   u8  how         bit 0: the rest is values for Encode, else bytes for Decode; bit 1: with zstd
//   u16 block, u16 share     settings, folded into their ranges
//   u16 n           elements, for Decode
#include <cmath>
#include <string>
#include <vector>

#include "ps/codec/codec_isa.h"
#include "ps/codec/payload_codec.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley {
namespace {

std::unique_ptr<PayloadCodec> TakeCodec(FuzzInput* input, uint8_t* how) {
  static const std::vector<std::string>* const names =
      new std::vector<std::string>(PayloadCodec::Names());
  const std::string& name = (*names)[input->Take<uint8_t>() % names->size()];
  *how = input->Take<uint8_t>();
  pb::Compression config;
  config.set_block(16 + input->Take<uint16_t>() % 65521);
  config.set_top_k((1 + input->Take<uint16_t>()) / 65536.0f);
  config.set_zstd_level(*how & 2 ? 1 : 0);
  auto codec = PayloadCodec::Create(name, config);
  Check(codec.ok(), "settings in their ranges are good");
  return *std::move(codec);
}

// Floats that end where their memory ends.
struct Floats {
  explicit Floats(size_t n) : n(n), values(new float[n]()) {}
  bool operator==(const Floats& other) const {
    return n == other.n && std::memcmp(values.get(), other.values.get(), n * sizeof(float)) == 0;
  }
  size_t n;
  std::unique_ptr<float[]> values;
};

void DecodeAnything(const PayloadCodec& codec, FuzzInput* input) {
  const size_t n = input->Take<uint16_t>();
  const ExactBytes bytes(input->TakeRest());
  Floats out(n);
  const absl::Status status = codec.Decode(bytes.view(), n, out.values.get());
  Check(status.ok() || status.code() == absl::StatusCode::kInvalidArgument, "refusals are named");
  if (!status.ok()) return;
  Check(bytes.view().size() <= codec.MaxEncodedBytes(n), "nothing longer than the longest");
  Floats narrow(n);
  ForceCodecKernelIsa("avx2");
  Check(codec.Decode(bytes.view(), n, narrow.values.get()).ok(), "again");
  ForceCodecKernelIsa("");
  Check(out == narrow, "instruction sets give the same values");
}

std::string Encode(const PayloadCodec& codec, const ExactBytes& values, size_t n,
                   Floats* residual) {
  const uint64_t room = codec.MaxEncodedBytes(n);
  std::unique_ptr<std::byte[]> out(new std::byte[room]);
  const uint64_t size = codec.Encode(reinterpret_cast<const float*>(values.view().data()), n,
                                     residual->values.get(), out.get());
  Check(size <= room && (size >= 1 || n == 0), "sizes are as promised");
  Check(size == room || !codec.fixed_size(), "a fixed size is one");
  return std::string(reinterpret_cast<const char*>(out.get()), size);
}

void EncodeAnything(const PayloadCodec& codec, FuzzInput* input) {
  const size_t n = input->left() / sizeof(float);
  const ExactBytes values(input->TakeBytes(n * sizeof(float)));
  Floats residual(n), narrow_residual(n), decoded(n), before(n);
  // Twice, so that the second starts with what the first left.
  for (int step = 0; step < 2; ++step) {
    std::memcpy(before.values.get(), residual.values.get(), n * sizeof(float));
    const std::string bytes = Encode(codec, values, n, &residual);
    ForceCodecKernelIsa("avx2");
    const std::string narrow = Encode(codec, values, n, &narrow_residual);
    ForceCodecKernelIsa("");
    Check(narrow == bytes && narrow_residual == residual, "instruction sets give the same bytes");
    Check(codec.Decode(ExactBytes(bytes).view(), n, decoded.values.get()).ok(),
          "what is encoded can be decoded");
    if (!codec.keeps_residual()) continue;
    for (size_t i = 0; i < n; ++i) {
      Check(std::isfinite(residual.values[i]), "residuals are finite");
      float value;
      std::memcpy(&value, values.view().data() + i * sizeof(float), sizeof(value));
      const float sent = value + before.values[i];
      if (!std::isfinite(sent) || !std::isfinite(decoded.values[i])) continue;
      const double error = static_cast<double>(decoded.values[i]) + residual.values[i] - sent;
      // The residual is one rounded difference of floats.
      const double bound =
          1e-6 * (std::abs(decoded.values[i]) + std::abs(static_cast<double>(sent))) + 1e-44;
      Check(std::abs(error) <= bound, "nothing is lost");
    }
  }
}

void Run(FuzzInput input) {
  uint8_t how;
  const std::unique_ptr<PayloadCodec> codec = TakeCodec(&input, &how);
  if (codec == nullptr) return;  // "none"
  if (how & 1) {
    EncodeAnything(*codec, &input);
  } else {
    DecodeAnything(*codec, &input);
  }
}

}  // namespace
}  // namespace parley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::Run(parley::FuzzInput(data, size));
  return 0;
}
