// The worked example of proto/PROTOCOL.md, read from that page: what people copy must be true.
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "ps/wire/codec.h"

namespace parley {
namespace {

// The bytes of the fenced block after "<!-- example: NAME -->": hex up to the '|' of each line.
std::string ExampleBytes(const std::string& name) {
  std::ifstream page("proto/PROTOCOL.md");  // tests run in the root of the source tree
  EXPECT_TRUE(page.is_open());
  std::string line, bytes;
  while (std::getline(page, line) && line != absl::StrCat("<!-- example: ", name, " -->")) {
  }
  std::getline(page, line);
  EXPECT_EQ(line, "```") << "no block of the name " << name;
  while (std::getline(page, line) && line != "```") {
    std::istringstream hex(line.substr(0, line.find('|')));
    std::string byte;
    while (hex >> byte) {
      EXPECT_EQ(byte.size(), 2u) << line;
      bytes.push_back(static_cast<char>(std::stoi(byte, nullptr, 16)));
    }
  }
  return bytes;
}

TEST(ProtocolExampleTest, DecodesToWhatThePageSays) {
  const absl::StatusOr<Frame> frame =
      DecodeFrame(ExampleBytes("header"), {Buffer::Copy(ExampleBytes("payload"))});
  ASSERT_TRUE(frame.ok()) << frame.status();
  const pb::FrameHeader& header = frame->header;
  EXPECT_EQ(header.protocol(), 1u);
  EXPECT_EQ(header.kind(), pb::PUSH);
  EXPECT_EQ(header.job(), 0x1122334455667788u);
  EXPECT_EQ(header.sender(), 0x0a0b0c0d0e0f1011u);
  EXPECT_EQ(header.incarnation(), 1u);
  EXPECT_EQ(header.request_id(), 300u);
  EXPECT_TRUE(header.has_table());
  EXPECT_EQ(header.table(), 0u);
  EXPECT_EQ(header.epoch(), 1u);
  EXPECT_EQ(header.tick(), 7u);
  EXPECT_EQ(header.rank(), 1u);
  EXPECT_EQ(header.weight(), 64.0);
  ASSERT_EQ(header.part_size(), 1);
  EXPECT_EQ(header.part(0).partition(), 3u);
  EXPECT_EQ(header.part(0).count(), 2u);
  EXPECT_EQ(header.part(0).sequence(), 8u);
  EXPECT_EQ(header.part(0).acked_below(), 6u);
  EXPECT_TRUE(header.unknown_fields().empty());
  ASSERT_EQ(frame->payload.size(), 1u);
  EXPECT_EQ(frame->payload[0].floats()[0], 0.5f);
  EXPECT_EQ(frame->payload[0].floats()[1], -1.25f);
}

TEST(ProtocolExampleTest, EncodesToTheSameBytes) {
  const std::string bytes = ExampleBytes("header");
  const absl::StatusOr<Frame> frame = DecodeFrame(bytes, {Buffer::Copy(ExampleBytes("payload"))});
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(EncodeHeader(frame->header), bytes);
}

}  // namespace
}  // namespace parley
