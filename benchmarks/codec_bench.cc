// How fast are the payload codecs, beside a memcpy of the same floats?
//
// Gaussian values, as a gradient has them, encoded partition by partition (256 KiB, the default)
// out of 1 MiB, which stays in cache, and of 64 MiB, which does not; residuals are carried on from
// call to call. GB/s count the floats, not the bytes that come out; median of 7 rounds, each of
// which also measures the memcpy that the ratio refers to. One thread. Prints one JSON object;
// about 20 s.
//
//   codec_bench [NAME...]   only these codecs
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ps/base/buffer.h"
#include "ps/codec/codec_isa.h"
#include "ps/codec/payload_codec.h"

namespace parley {
namespace {

constexpr int kRounds = 7;
constexpr double kSecondsPerRound = 0.03;
constexpr uint64_t kPartition = 65536;  // elements

// Mean 0, deviation 0.01: sums of uniform numbers are near enough to a Gaussian.
void FillGaussian(float* values, uint64_t n) {
  uint32_t state = 1;
  for (uint64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int k = 0; k < 6; ++k) {
      state = 1664525 * state + 1013904223;
      sum += (state >> 8) * 0x1p-24 - 0.5;
    }
    values[i] = static_cast<float>(0.01 * std::sqrt(2.0) * sum);
  }
}

struct Arrays {
  explicit Arrays(uint64_t n)
      : n(n),
        values(Buffer::Allocate(n * sizeof(float))),
        residual(Buffer::Allocate(n * sizeof(float))),
        out(Buffer::Allocate(n * sizeof(float))),
        encoded(Buffer::Allocate(n * sizeof(float) + n / 64)) {
    FillGaussian(values.mutable_floats(), n);
    std::memset(residual.mutable_data(), 0, residual.size());
    std::memset(out.mutable_data(), 0, out.size());
    std::memset(encoded.mutable_data(), 0, encoded.size());
  }
  uint64_t n;
  Buffer values, residual, out, encoded;
};

// Bytes of floats per second of one call, over as many calls as fit a round.
template <typename Call>
double Rate(uint64_t n, Call call) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double seconds = 0;
  int calls = 0;
  do {
    call();
    ++calls;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds < kSecondsPerRound);
  return static_cast<double>(n * sizeof(float)) * calls / seconds;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Rates {
  std::vector<double> encode, decode, copy;
};

// Returns the bytes that came out.
uint64_t Measure(const PayloadCodec& codec, Arrays& arrays, Rates* rates) {
  std::vector<uint64_t> sizes;
  const uint64_t room = codec.MaxEncodedBytes(kPartition);
  const auto encode = [&] {
    sizes.clear();
    for (uint64_t i = 0; i < arrays.n; i += kPartition) {
      sizes.push_back(codec.Encode(
          arrays.values.floats() + i, kPartition, arrays.residual.mutable_floats() + i,
          reinterpret_cast<std::byte*>(arrays.encoded.mutable_data()) + i / kPartition * room));
    }
  };
  const auto decode = [&] {
    for (uint64_t i = 0; i < arrays.n; i += kPartition) {
      const char* from =
          reinterpret_cast<const char*>(arrays.encoded.data()) + i / kPartition * room;
      const auto status = codec.Decode(std::string_view(from, sizes[i / kPartition]), kPartition,
                                       arrays.out.mutable_floats() + i);
      if (!status.ok()) std::abort();
    }
  };
  const auto copy = [&] {
    std::memcpy(arrays.out.mutable_data(), arrays.values.data(), arrays.n * sizeof(float));
    asm volatile("" : : "r"(arrays.out.data()) : "memory");
  };
  encode(), decode(), copy();
  for (int round = 0; round < kRounds; ++round) {
    rates->copy.push_back(Rate(arrays.n, copy));
    rates->encode.push_back(Rate(arrays.n, encode));
    rates->decode.push_back(Rate(arrays.n, decode));
  }
  uint64_t bytes = 0;
  for (const uint64_t size : sizes) bytes += size;
  return bytes;
}

void PrintPoint(const std::string& name, int zstd_level, const char* isa, Arrays& arrays,
                bool* first) {
  pb::Compression config;
  config.set_zstd_level(zstd_level);
  const auto codec = PayloadCodec::Create(name, config);
  if (!codec.ok() || *codec == nullptr) return;
  std::memset(arrays.residual.mutable_data(), 0, arrays.residual.size());
  Rates rates;
  const uint64_t bytes = Measure(**codec, arrays, &rates);
  const double copy = Median(rates.copy), encode = Median(rates.encode),
               decode = Median(rates.decode);
  std::printf(
      "%s\n    {\"codec\": \"%s\", \"isa\": \"%s\", \"float_bytes\": %llu, \"share\": %.4f, "
      "\"encode_gb_per_s\": %.2f, \"decode_gb_per_s\": %.2f, \"memcpy_gb_per_s\": %.2f, "
      "\"encode_to_memcpy\": %.3f, \"decode_to_memcpy\": %.3f}",
      *first ? "" : ",", (*codec)->name().c_str(), isa,
      static_cast<unsigned long long>(arrays.n * sizeof(float)),
      static_cast<double>(bytes) / static_cast<double>(arrays.n * sizeof(float)), encode * 1e-9,
      decode * 1e-9, copy * 1e-9, encode / copy, decode / copy);
  std::fflush(stdout);
  *first = false;
}

void Run(std::vector<std::string> names) {
  if (names.empty()) names = PayloadCodec::Names();
  std::printf(
      "{\n  \"benchmark\": \"codec\",\n  \"default_isa\": \"%s\",\n  \"rounds\": %d,\n"
      "  \"partition_elements\": %llu,\n  \"points\": [",
      ActiveCodecKernels().isa, kRounds, static_cast<unsigned long long>(kPartition));
  bool first = true;
  for (const uint64_t bytes : {uint64_t{1} << 20, uint64_t{64} << 20}) {
    Arrays arrays(bytes / sizeof(float));
    for (const std::string& name : names) {
      for (const char* isa : {"avx2", "avx512"}) {
        if (ForceCodecKernelIsa(isa)) PrintPoint(name, 0, isa, arrays, &first);
      }
      ForceCodecKernelIsa("");
      if (bytes == uint64_t{1} << 20) {
        PrintPoint(name, 1, ActiveCodecKernels().isa, arrays, &first);
      }
    }
  }
  std::printf("\n  ]\n}\n");
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { parley::Run({argv + 1, argv + argc}); }
