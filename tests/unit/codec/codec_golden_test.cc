// The formats, byte by byte, against numpy (tests/golden/make_codecs.py), on every instruction set.
#include <zlib.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "tests/unit/codec/codec_testing.h"

namespace parley {
namespace {

std::string Crc(const void* data, size_t size) {
  return absl::StrFormat("%08x",
                         crc32(0, static_cast<const Bytef*>(data), static_cast<uInt>(size)));
}
std::string Crc(const std::vector<float>& values) {
  return Crc(values.data(), values.size() * sizeof(float));
}

// Returns how many steps were compared.
int CompareWithGoldenFile() {
  std::ifstream file("tests/golden/codecs.txt");
  EXPECT_TRUE(file.good());
  std::unique_ptr<PayloadCodec> codec;
  std::string line, name;
  size_t n = 0;
  bool special = false;
  int step = 0, compared = 0;
  Generator generator;
  std::vector<float> residual;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string word, kind, payload_crc, residual_crc, decoded_crc, hex;
    words >> word;
    if (word == "case") {
      uint32_t block;
      float share;
      words >> name >> word >> n >> block >> share >> kind;
      codec = MakeCodec(word, block, share);
      special = kind == "special";
      generator = Generator();
      residual.assign(n, 0);
      step = 0;
    } else if (word == "step") {
      size_t bytes;
      words >> bytes >> payload_crc >> residual_crc >> decoded_crc >> hex;
      std::vector<float> values = generator.Vector(n);
      if (special && step == 1) {
        values[3] = std::numeric_limits<float>::quiet_NaN();
        values[20] = std::numeric_limits<float>::infinity();
        values[33] = -std::numeric_limits<float>::infinity();
      }
      const std::string payload = Encode(*codec, values, &residual);
      const std::string where = absl::StrFormat("%s step %d", name, step++);
      EXPECT_EQ(payload.size(), bytes) << where;
      if (!hex.empty()) {
        EXPECT_EQ(absl::BytesToHexString(payload), hex) << where;
      }
      EXPECT_EQ(Crc(payload.data(), payload.size()), payload_crc) << where;
      EXPECT_EQ(Crc(residual), residual_crc) << where;
      EXPECT_EQ(Crc(Decode(*codec, payload, n)), decoded_crc) << where;
      ++compared;
    }
  }
  return compared;
}

TEST(CodecGoldenTest, BytesResidualsAndValuesAreNumpys) {
  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceCodecKernelIsa(isa)) continue;
    SCOPED_TRACE(isa);
    EXPECT_EQ(CompareWithGoldenFile(), 5 * 5 * 3);
  }
  ForceCodecKernelIsa("");
}

}  // namespace
}  // namespace parley
