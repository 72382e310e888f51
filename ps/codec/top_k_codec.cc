// top_k: per piece an exponent, then offsets, then values.
//
// Selection is exact without a sort or a full histogram. A threshold guessed from a sample of the
// piece picks candidates in the pass that adds the residual; the true threshold is found among them
// digit by digit (a radix select over the bits of the magnitude). A bad guess costs time only.
#include <algorithm>
#include <cmath>

#include "ps/codec/builtin_codecs.h"
#include "ps/codec/codec_bytes.h"
#include "ps/codec/codec_isa.h"

namespace parley {
namespace {

constexpr uint64_t kPiece = 65536;
constexpr uint64_t kHead = sizeof(int16_t);
// For the guess a run of so many (a cache line) is looked at in every so many; smaller pieces are
// not worth it.
constexpr uint64_t kRun = 16, kStride = 256;
constexpr uint64_t kSmallPiece = 4096;
// The largest kept value becomes 2^14 up to 2^15, so that binary16 holds it and all that is larger
// than 2^-28 of it at full precision. Float32 has 2^e and 2^-e in this range.
constexpr int kTopExponent = 14, kMinExponent = -126, kMaxExponent = 113;
// With the largest exponent, 2^15 would come out as infinity: the number below it is sent.
constexpr float kLargestAtMax = 32752;
// 0.4 as a float is a little more than 0.4, and two fifths of 5 are not to be 3.
constexpr double kRounding = 1 - 0x1p-20;

// The `rank`-th largest (from 1) of the digits counted; `above`: how many are larger than it.
uint32_t FindDigit(const uint32_t* counts, uint32_t digits, uint64_t rank, uint64_t* above) {
  *above = 0;
  uint32_t digit = digits - 1;
  while (*above + counts[digit] < rank) *above += counts[digit--];
  return digit;
}

// The digits of a magnitude: 11 bits (the exponent and three more), 10 and 10.
constexpr uint32_t kDigits = 2048, kLowDigits = 1024;
uint32_t HighDigit(uint32_t magnitude) { return magnitude >> 20; }
uint32_t MiddleDigit(uint32_t magnitude) { return magnitude >> 10 & 1023; }
uint32_t LowDigit(uint32_t magnitude) { return magnitude & 1023; }

float At(const float* values, uint64_t i) {
  return ReadAs<float>(reinterpret_cast<const uint8_t*>(values + i));
}

// A magnitude that a little more than `kept` of the n elements should reach; 0 if every element is
// to be a candidate.
uint32_t GuessThreshold(const float* values, const float* residual, uint64_t n, uint64_t kept) {
  if (n < kSmallPiece) return 0;
  const uint64_t samples = n / kStride * kRun;
  const double expected = static_cast<double>(kept * kRun) / kStride;
  // Four standard deviations to the safe side, and then down to the digit's lower edge.
  const auto rank = static_cast<uint64_t>(expected + 4 * std::sqrt(expected) + 4);
  if (rank >= samples / 2) return 0;
  uint32_t counts[kDigits] = {};
  for (uint64_t run = 0; run + kStride <= n; run += kStride) {
    for (uint64_t i = run; i < run + kRun; ++i) {
      ++counts[HighDigit(MagnitudeBits(At(values, i) + At(residual, i)))];
    }
  }
  uint64_t above;
  return FindDigit(counts, kDigits, rank, &above) << 20;
}

struct Threshold {
  uint32_t magnitude;  // of the least that is kept
  uint64_t ties;       // how many of exactly this magnitude are kept
};

// Among x[indices[0..count)]; 1 <= kept <= count. No branch depends on the values: a processor that
// guesses half of them wrong takes several times as long.
Threshold FindThreshold(const float* x, const uint16_t* indices, uint64_t count, uint64_t kept) {
  uint32_t counts[kDigits] = {};
  for (uint64_t i = 0; i < count; ++i) ++counts[HighDigit(MagnitudeBits(At(x, indices[i])))];
  uint64_t above, rank = kept;
  const uint32_t high = FindDigit(counts, kDigits, rank, &above);
  rank -= above;

  uint32_t same[kPiece];  // the magnitudes with that digit
  uint64_t found = 0;
  for (uint64_t i = 0; i < count; ++i) {
    same[found] = MagnitudeBits(At(x, indices[i]));
    found += HighDigit(same[found]) == high;
  }
  std::fill_n(counts, kLowDigits, 0);
  for (uint64_t i = 0; i < found; ++i) ++counts[MiddleDigit(same[i])];
  const uint32_t middle = FindDigit(counts, kLowDigits, rank, &above);
  rank -= above;

  std::fill_n(counts, kLowDigits, 0);
  for (uint64_t i = 0; i < found; ++i) counts[LowDigit(same[i])] += MiddleDigit(same[i]) == middle;
  const uint32_t low = FindDigit(counts, kLowDigits, rank, &above);
  return {high << 20 | middle << 10 | low, rank - above};
}

float PowerOfTwo(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  return ReadAs<float>(reinterpret_cast<const uint8_t*>(&bits));
}

class TopKCodec : public PayloadCodec {
 public:
  explicit TopKCodec(double share) : share_(share) {}

  std::string name() const override { return "top_k"; }
  bool keeps_residual() const override { return true; }
  bool fixed_size() const override { return true; }
  uint64_t MaxEncodedBytes(uint64_t n) const override {
    const uint64_t rest = n % kPiece;
    return n / kPiece * PieceBytes(kPiece) + (rest == 0 ? 0 : PieceBytes(rest));
  }

  uint64_t Encode(const float* values, uint64_t n, float* residual, std::byte* out) const override {
    uint8_t* to = AsBytes(out);
    for (uint64_t i = 0; i < n; i += kPiece) {
      const uint64_t size = std::min(kPiece, n - i);
      EncodePiece(values + i, residual + i, size, to);
      to += PieceBytes(size);
    }
    return MaxEncodedBytes(n);
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (auto status = CheckSize("top_k", n, bytes.size(), MaxEncodedBytes(n)); !status.ok()) {
      return status;
    }
    const uint8_t* from = AsBytes(bytes);
    for (uint64_t i = 0; i < n; i += kPiece) {
      const uint64_t size = std::min(kPiece, n - i);
      if (auto status = DecodePiece(from, size, i / kPiece, out + i); !status.ok()) return status;
      from += PieceBytes(size);
    }
    return absl::OkStatus();
  }

 private:
  // Values pass through a buffer of so many on their way to binary16.
  static constexpr uint64_t kBatch = 256;

  uint64_t Kept(uint64_t n) const {
    const double kept = std::ceil(static_cast<double>(n) * share_ * kRounding);
    return std::clamp<uint64_t>(static_cast<uint64_t>(kept), 1, n);
  }
  uint64_t PieceBytes(uint64_t n) const {
    return kHead + Kept(n) * (sizeof(uint16_t) + sizeof(uint16_t));
  }

  // Leaves values + residual in `residual` and the indices of what is kept, ascending, in
  // `indices`.
  void Select(const float* values, float* residual, uint64_t n, uint16_t* indices) const {
    const uint64_t kept = Kept(n);
    const uint32_t guess = GuessThreshold(values, residual, n, kept);
    uint64_t count = ActiveCodecKernels().add_and_collect(values, residual, n, guess, indices);
    if (count < kept) {
      for (count = 0; count < n; ++count) indices[count] = static_cast<uint16_t>(count);
    }
    Threshold threshold = FindThreshold(residual, indices, count, kept);
    uint64_t written = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t magnitude = MagnitudeBits(At(residual, indices[i]));
      const bool tie = (magnitude == threshold.magnitude) & (threshold.ties > 0);
      // Whoever is not kept is overwritten by the next.
      indices[written] = indices[i];
      written += (magnitude > threshold.magnitude) | tie;
      threshold.ties -= tie;
    }
    if (threshold.magnitude < kInfinityBits) return;
    // More is not finite than can be sent: that is told, the rest need not haunt later pushes.
    for (uint64_t i = 0, k = 0; i < n; ++i) {
      if (k < kept && indices[k] == i) {
        ++k;
      } else if (MagnitudeBits(At(residual, i)) >= kInfinityBits) {
        WriteAs<float>(reinterpret_cast<uint8_t*>(residual + i), 0);
      }
    }
  }

  // Of the power of two that the largest finite value is divided by.
  static int Exponent(const float* x, const uint16_t* indices, uint64_t kept) {
    uint32_t largest = 0;
    for (uint64_t i = 0; i < kept; ++i) {
      const uint32_t magnitude = MagnitudeBits(At(x, indices[i]));
      if (magnitude < kInfinityBits) largest = std::max(largest, magnitude);
    }
    return std::max(static_cast<int>(largest >> 23) - 127 - kTopExponent, kMinExponent);
  }

  void EncodePiece(const float* values, float* residual, uint64_t n, uint8_t* out) const {
    const uint64_t kept = Kept(n);
    uint16_t indices[kPiece];
    Select(values, residual, n, indices);
    const int exponent = Exponent(residual, indices, kept);
    WriteAs<int16_t>(out, static_cast<int16_t>(exponent));
    std::memcpy(out + kHead, indices, kept * sizeof(uint16_t));

    const CodecKernels& kernels = ActiveCodecKernels();
    uint8_t* halves = out + kHead + kept * sizeof(uint16_t);
    const float down = PowerOfTwo(-exponent), up = PowerOfTwo(exponent);
    for (uint64_t begin = 0; begin < kept; begin += kBatch) {
      const uint64_t size = std::min(kBatch, kept - begin);
      float batch[kBatch];
      for (uint64_t i = 0; i < size; ++i) {
        const float x = At(residual, indices[begin + i]) * down;
        const bool clamp = exponent == kMaxExponent && std::isfinite(x);
        batch[i] = clamp ? std::clamp(x, -kLargestAtMax, kLargestAtMax) : x;
      }
      kernels.fp16_encode(batch, size, halves + 2 * begin);
      kernels.fp16_decode(halves + 2 * begin, size, batch);
      for (uint64_t i = 0; i < size; ++i) {
        const uint16_t index = indices[begin + i];
        const float x = At(residual, index);
        const float rest = MagnitudeBits(x) < kInfinityBits ? x - batch[i] * up : 0;
        WriteAs<float>(reinterpret_cast<uint8_t*>(residual + index), rest);
      }
    }
  }

  absl::Status DecodePiece(const uint8_t* from, uint64_t n, uint64_t piece, float* out) const {
    const uint64_t kept = Kept(n);
    const int exponent = ReadAs<int16_t>(from);
    if (exponent < kMinExponent || exponent > kMaxExponent) {
      return absl::InvalidArgumentError(absl::StrCat("top_k: exponent of piece ", piece, " is ",
                                                     exponent, "; allowed: ", kMinExponent, "..",
                                                     kMaxExponent));
    }
    std::memset(static_cast<void*>(out), 0, n * sizeof(float));
    const uint8_t* offsets = from + kHead;
    const uint8_t* halves = offsets + kept * sizeof(uint16_t);
    const float up = PowerOfTwo(exponent);
    int64_t last = -1;
    for (uint64_t begin = 0; begin < kept; begin += kBatch) {
      const uint64_t size = std::min(kBatch, kept - begin);
      float batch[kBatch];
      ActiveCodecKernels().fp16_decode(halves + 2 * begin, size, batch);
      for (uint64_t i = 0; i < size; ++i) {
        const int64_t offset = ReadAs<uint16_t>(offsets + 2 * (begin + i));
        if (offset <= last || offset >= static_cast<int64_t>(n)) {
          return absl::InvalidArgumentError(
              absl::StrCat("top_k: offset ", offset, " after ", last, " in piece ", piece, " of ",
                           n, " elements; allowed: ascending, less than that"));
        }
        WriteAs<float>(reinterpret_cast<uint8_t*>(out + offset), batch[i] * up);
        last = offset;
      }
    }
    return absl::OkStatus();
  }

  const double share_;
};

}  // namespace

std::unique_ptr<PayloadCodec> MakeTopKCodec(double share) {
  return std::make_unique<TopKCodec>(share);
}

}  // namespace parley
