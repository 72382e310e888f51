// What is taken out of a peer's reach, and how much of it.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ps/base/payload_copy.h"
#include "ps/net/shm/private_parts.h"

namespace parley::shm {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// `count` parts whose keys are all the same bytes, lent.
Frame KeysOf(const Buffer& bytes, int count) {
  Frame frame;
  for (int i = 0; i < count; ++i) {
    pb::Part* part = frame.header.add_part();
    part->set_keys(bytes.size() / 8);
    part->set_key_bytes(bytes.size());
    frame.payload.push_back(bytes);
  }
  return frame;
}

TEST(PrivateParts, AreCopied) {
  BufferPool pool;
  const Buffer bytes = Buffer::Copy(std::string(kMiB, 'k'));
  Frame frame = KeysOf(bytes, 3);
  ASSERT_TRUE(CopyDecidingParts({true, false, true}, &pool, &frame).ok());
  EXPECT_NE(frame.payload[0].data(), bytes.data());
  EXPECT_EQ(frame.payload[1].data(), bytes.data()) << "not lent";
  EXPECT_NE(frame.payload[2].data(), bytes.data());
  EXPECT_EQ(frame.payload[2].view(), bytes.view());
}

TEST(PrivateParts, ASmallFrameCannotHaveALotCopied) {
  BufferPool pool;
  const Buffer bytes = Buffer::Copy(std::string(kMiB, 'k'));
  Frame most = KeysOf(bytes, 1024), more = KeysOf(bytes, 1025);
  const std::vector<bool> none(1024, false), all(1025, true);
  EXPECT_TRUE(CopyDecidingParts(none, &pool, &most).ok());
  const uint64_t before = CountPayloadCopies().bytes;
  EXPECT_EQ(CopyDecidingParts(all, &pool, &more).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CountPayloadCopies().bytes, before);
}

}  // namespace
}  // namespace parley::shm
