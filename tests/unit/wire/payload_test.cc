#include "ps/wire/payload.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace parley {
namespace {

pb::Part* AddPart(pb::FrameHeader* header, uint64_t count) {
  pb::Part* part = header->add_part();
  part->set_partition(static_cast<uint32_t>(header->part_size()));
  part->set_count(count);
  return part;
}

void AddKeys(pb::Part* part, uint32_t keys) {
  part->set_keys(keys);
  part->set_key_bytes(keys * 8);
}

Buffer Bytes(size_t size, char fill) { return Buffer::Copy(std::string(size, fill)); }

TEST(PayloadTest, OneBufferMayHoldTheRunsOfSeveralParts) {
  Frame frame;
  frame.header.set_kind(pb::PUSH);
  AddPart(&frame.header, 2);
  AddPart(&frame.header, 0);
  AddPart(&frame.header, 1);
  AddPart(&frame.header, 1);
  frame.payload = {Buffer::Copy("aaaabbbbcccc"), Buffer::Copy("dddd")};
  ASSERT_TRUE(CheckPayload(frame.header, frame.payload).ok());
  const std::vector<PartPayload> runs = SplitPayload(frame);
  ASSERT_EQ(runs.size(), 4u);
  EXPECT_EQ(runs[0].values.view(), "aaaabbbb");
  EXPECT_EQ(runs[0].values.data(), frame.payload[0].data());  // a reference, not a copy
  EXPECT_TRUE(runs[1].values.empty());
  EXPECT_EQ(runs[2].values.view(), "cccc");
  EXPECT_EQ(runs[3].values.view(), "dddd");
}

TEST(PayloadTest, KeysComeBeforeValues) {
  Frame frame;
  frame.header.set_kind(pb::PUSH);
  AddKeys(AddPart(&frame.header, 2), 2);
  pb::Part* by_digest = AddPart(&frame.header, 1);
  by_digest->set_keys(1);
  by_digest->set_key_digest(std::string(16, 'd'));
  frame.payload = {Bytes(16, 'k'), Bytes(8, 'v'), Bytes(4, 'w')};
  ASSERT_TRUE(CheckPayload(frame.header, frame.payload).ok());
  const std::vector<PartPayload> runs = SplitPayload(frame);
  EXPECT_EQ(runs[0].keys.view(), std::string(16, 'k'));
  EXPECT_EQ(runs[0].values.view(), std::string(8, 'v'));
  EXPECT_TRUE(runs[1].keys.empty());
  EXPECT_EQ(runs[1].values.view(), "wwww");
}

TEST(PayloadTest, EncodedValuesHaveTheSizeTheyState) {
  pb::FrameHeader header;
  header.set_kind(pb::PUSH);
  AddPart(&header, 100)->set_value_bytes(7);
  EXPECT_TRUE(CheckPayload(header, {Bytes(7, 'e')}).ok());
  EXPECT_FALSE(CheckPayload(header, {Bytes(400, 'e')}).ok());
}

TEST(PayloadTest, ARunMayNotStraddleBuffers) {
  pb::FrameHeader header;
  header.set_kind(pb::PUSH);
  AddPart(&header, 2);
  AddPart(&header, 2);
  EXPECT_TRUE(CheckPayload(header, {Bytes(16, 'a')}).ok());
  EXPECT_FALSE(CheckPayload(header, {Bytes(12, 'a'), Bytes(4, 'a')}).ok());
}

TEST(PayloadTest, RefusesLies) {
  pb::FrameHeader header;
  header.set_kind(pb::PUSH);
  pb::Part* part = AddPart(&header, 1);
  AddKeys(part, 2);
  part->set_key_bytes(8);
  EXPECT_FALSE(CheckPayload(header, {Bytes(12, 'a')}).ok());
  part->set_key_bytes(16);
  EXPECT_TRUE(CheckPayload(header, {Bytes(20, 'a')}).ok());
  EXPECT_FALSE(CheckPayload(header, {Bytes(24, 'a')}).ok());            // more than the parts need
  EXPECT_FALSE(CheckPayload(header, {Bytes(20, 'a'), Buffer()}).ok());  // a buffer of nothing
  part->set_key_digest("short");
  EXPECT_FALSE(CheckPayload(header, {Bytes(20, 'a')}).ok());
  part->clear_key_digest();
  part->set_value_bytes(~uint64_t{0} - 15);  // with 16 bytes of keys it wraps round to 0
  EXPECT_FALSE(CheckPayload(header, {}).ok());
  EXPECT_FALSE(CheckPayload(header, {Bytes(16, 'a')}).ok());
}

}  // namespace
}  // namespace parley
