#include "ps/server/snapshot_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ps/wire/payload.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

PartitionSnapshot Snapshot(const std::vector<size_t>& sizes) {
  PartitionSnapshot snapshot;
  snapshot.index = 17;
  snapshot.digest = 99;
  snapshot.server_state = "state";
  uint8_t next = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::string bytes(sizes[i], '\0');
    for (char& byte : bytes) byte = static_cast<char>(next = next * 5 + 3);
    snapshot.values.Add("array" + std::to_string(i), "U8", {sizes[i]}, Buffer::Copy(bytes));
  }
  return snapshot;
}

// All messages of a snapshot, each one a frame that the codec of frames takes.
std::vector<Frame> Messages(PartitionSnapshot snapshot) {
  SnapshotReader reader(std::move(snapshot));
  std::vector<Frame> messages;
  while (!reader.done()) {
    Frame& frame = messages.emplace_back();
    frame.header.set_kind(pb::SYNC);
    reader.Next(3, 5, &frame);
    EXPECT_TRUE(CheckPayload(frame.header, frame.payload).ok());
    EXPECT_LE(frame.payload_bytes(), SnapshotReader::kMaxMessageBytes);
    EXPECT_EQ(frame.header.part(0).partition(), 3u);
    EXPECT_EQ(frame.header.part(0).sequence(), 5u);
  }
  return messages;
}

pb::PartitionState BodyOf(const Frame& frame) {
  pb::PartitionState body;
  EXPECT_TRUE(body.ParseFromString(frame.header.body()));
  return body;
}

TEST(SnapshotStreamTest, WhatIsCutIsPutTogetherAgain) {
  const size_t mib = size_t{1} << 20;
  for (const std::vector<size_t>& sizes : std::vector<std::vector<size_t>>{
           {}, {0}, {1}, {5, 0, 3}, {9 * mib, 2, 0, 8 * mib}, {3, 37 * mib}}) {
    const PartitionSnapshot wanted = Snapshot(sizes);
    const std::vector<Frame> messages = Messages(Snapshot(sizes));
    ASSERT_FALSE(messages.empty());
    BufferPool pool;
    SnapshotAssembly assembly;
    ASSERT_TRUE(assembly.Begin(BodyOf(messages[0])).ok());
    for (const Frame& frame : messages) {
      EXPECT_EQ(BodyOf(frame).offset(), assembly.received());
      ASSERT_TRUE(assembly.Add(frame.payload, &pool).ok());
    }
    ASSERT_TRUE(assembly.complete());
    const PartitionSnapshot got = assembly.Take();
    EXPECT_EQ(got.index, 17u);
    EXPECT_EQ(got.digest, 99u);
    EXPECT_EQ(got.server_state, "state");
    ASSERT_EQ(got.values.bytes.size(), sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_EQ(got.values.header.array(static_cast<int>(i)).name(),
                wanted.values.header.array(static_cast<int>(i)).name());
      EXPECT_TRUE(got.values.bytes[i].view() == wanted.values.bytes[i].view()) << i;
    }
  }
}

TEST(SnapshotStreamTest, ManySmallArraysTakeSeveralMessages) {
  const std::vector<Frame> messages = Messages(Snapshot(std::vector<size_t>(1500, 1)));
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].header.part_size(), SnapshotReader::kMaxMessageParts);
}

TEST(SnapshotStreamTest, SizesThatCannotBeAreRefused) {
  const pb::PartitionState good = BodyOf(Messages(Snapshot({4, 4}))[0]);
  SnapshotAssembly assembly;
  pb::PartitionState bad = good;
  bad.set_total_bytes(9);
  EXPECT_THAT(std::string(assembly.Begin(bad).message()), HasSubstr("its arrays have 8"));
  bad = good;
  bad.mutable_values()->mutable_array(0)->set_shape(0, SnapshotAssembly::kMaxBytes);
  bad.set_total_bytes(SnapshotAssembly::kMaxBytes + 4);
  EXPECT_THAT(std::string(assembly.Begin(bad).message()), HasSubstr("which are allowed"));
  bad = good;
  bad.mutable_values()->mutable_array(0)->set_dtype("F99");
  EXPECT_FALSE(assembly.Begin(bad).ok());
  bad = good;
  for (int i = 0; i < SnapshotAssembly::kMaxArrays; ++i) {
    *bad.mutable_values()->add_array() = good.values().array(0);
  }
  EXPECT_THAT(std::string(assembly.Begin(bad).message()), HasSubstr("allowed is 65536"));
  ASSERT_TRUE(assembly.Begin(good).ok());
  BufferPool pool;
  EXPECT_THAT(std::string(assembly.Add({Buffer::Copy("123456789")}, &pool).message()),
              HasSubstr("than the 8 bytes"));
}

// Hands out nothing, and remembers the most that it was asked for at once.
class Asked : public MemorySource {
 public:
  std::byte* Allocate(size_t capacity) override {
    most = std::max(most, capacity);
    return nullptr;
  }
  void Free(std::byte*, size_t) override {}
  size_t most = 0;
};

TEST(SnapshotStreamTest, MemoryIsTakenForWhatHasComeNotForWhatIsAnnounced) {
  const size_t mib = size_t{1} << 20;
  pb::PartitionState first = BodyOf(Messages(Snapshot({mib}))[0]);
  first.mutable_values()->mutable_array(0)->set_shape(0, 1024 * mib);
  first.set_total_bytes(1024 * mib);
  auto asked = std::make_shared<Asked>();
  BufferPool pool(0, asked);
  SnapshotAssembly assembly;
  ASSERT_TRUE(assembly.Begin(first).ok());
  const Buffer piece = Buffer::Copy(std::string(8 * mib, 'x'));
  for (int i = 1; i <= 8; ++i) {
    ASSERT_TRUE(assembly.Add({piece}, &pool).ok());
    EXPECT_LE(asked->most, std::max(size_t{2}, size_t{2} * i) * 8 * mib) << "after piece " << i;
  }
}

}  // namespace
}  // namespace parley
