// The example of docs/codecs.md: that it is the one compiled here, and that it works.
#include <cmath>
#include <fstream>
#include <sstream>

#include "tests/unit/codec/codec_testing.h"

namespace parley {
namespace {

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(ExampleCodecTest, TheGuideShowsWhatIsCompiled) {
  const std::string code = ReadFile("tests/unit/codec/example_codec.cc");
  ASSERT_GT(code.size(), 1000u);
  EXPECT_NE(ReadFile("docs/codecs.md").find("```cpp\n" + code + "```"), std::string::npos);
}

TEST(ExampleCodecTest, IsCreatedByNameAndGoesUnderZstd) {
  EXPECT_THAT(PayloadCodec::Names(), testing::Contains("exponent"));
  for (const int level : {0, 1}) {
    const auto codec = MakeCodec("exponent", 64, 0.1f, level);
    EXPECT_EQ(codec->name(), level ? "exponent+zstd" : "exponent");
    Generator generator;
    const size_t n = 500;
    std::vector<float> residual(n);
    std::vector<double> sent(n), arrived(n);
    for (int step = 0; step < 50; ++step) {
      const std::vector<float> values = generator.Vector(n);
      const std::vector<float> decoded = Decode(*codec, Encode(*codec, values, &residual), n);
      for (size_t i = 0; i < n; ++i) {
        sent[i] += values[i];
        arrived[i] += decoded[i];
      }
    }
    for (size_t i = 0; i < n; ++i) ASSERT_NEAR(arrived[i] + residual[i], sent[i], 1e-3);
  }
}

TEST(ExampleCodecTest, ANameThatIsTakenIsReplaced) {
  EXPECT_TRUE(PayloadCodec::Register("ours", [](const pb::Compression&) {
    return absl::StatusOr<std::unique_ptr<PayloadCodec>>(absl::UnimplementedError("first"));
  }));
  EXPECT_TRUE(PayloadCodec::Register(
      "ours", [](const pb::Compression& config) { return PayloadCodec::Create("fp16", config); }));
  EXPECT_EQ(MakeCodec("ours")->name(), "fp16");
}

}  // namespace
}  // namespace parley
