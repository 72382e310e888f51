#include "ps/wire/codec.h"
#include "ps/wire/payload.h"

#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

// Changes to the Protobuf bytes need a matching length and checksum to get past the envelope.
std::string Envelope(const std::string& bytes) {
  pb::FrameHeader header;
  std::string part = EncodeHeader(header);  // the header is empty: 16 bytes of envelope
  const auto put = [&part](size_t at, uint32_t value) {
    for (int i = 0; i < 4; ++i) part[at + i] = static_cast<char>(value >> (8 * i));
  };
  put(8, static_cast<uint32_t>(bytes.size()));
  // CRC-32 written out bit by bit: the reflected polynomial 0xEDB88320.
  uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0xEDB88320u : 0);
  }
  put(12, ~crc);
  return part + bytes;
}

pb::FrameHeader PushHeader() {
  pb::FrameHeader header;
  header.set_protocol(1);
  header.set_kind(pb::PUSH);
  header.set_job(0x1122334455667788);
  header.set_sender(77);
  header.set_request_id(5);
  header.set_tick(9);
  header.set_weight(64);
  for (const uint64_t count : {3, 0, 2}) {
    pb::Part* part = header.add_part();
    part->set_partition(static_cast<uint32_t>(10 + count));
    part->set_count(count);
    part->set_sequence(8);
  }
  return header;
}

std::vector<Buffer> PushPayload() {
  return {Buffer::Copy(std::string(12, 'a')), Buffer::Copy(std::string(8, 'b'))};
}

void ExpectRefused(const std::string& first_part, std::vector<Buffer> payload,
                   const std::vector<std::string>& words) {
  const absl::StatusOr<Frame> frame = DecodeFrame(first_part, std::move(payload));
  ASSERT_FALSE(frame.ok());
  EXPECT_EQ(frame.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& word : words) {
    EXPECT_THAT(std::string(frame.status().message()), HasSubstr(word));
  }
}

TEST(CodecTest, RoundTripKeepsTheHeaderAndSharesThePayload) {
  const std::vector<Buffer> payload = PushPayload();
  const absl::StatusOr<Frame> frame = DecodeFrame(EncodeHeader(PushHeader()), payload);
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_TRUE(MessageDifferencer::Equals(frame->header, PushHeader()));
  ASSERT_EQ(frame->payload.size(), 2u);
  EXPECT_EQ(frame->payload[0].data(), payload[0].data());
  EXPECT_EQ(frame->payload_bytes(), 20u);
}

TEST(CodecTest, EnvelopeIsAsDocumented) {
  pb::FrameHeader header;
  header.set_kind(pb::HEARTBEAT);
  const std::string bytes = header.SerializeAsString();
  EXPECT_EQ(EncodeHeader(header), Envelope(bytes));
  EXPECT_EQ(EncodeHeader(header).substr(0, 8), std::string("PRLY\x01\0\0\0", 8));
}

TEST(CodecTest, RefusesBadEnvelopes) {
  const std::string good = EncodeHeader(PushHeader());
  ExpectRefused("", PushPayload(), {"0 bytes", "16"});
  ExpectRefused(good.substr(0, 15), PushPayload(), {"15 bytes", "16"});

  std::string bad = good;
  bad[0] = 'G';
  ExpectRefused(bad, PushPayload(), {"magic", "PRLY"});

  bad = good;
  bad[4] = 2;
  ExpectRefused(bad, PushPayload(), {"version 2", "version 1"});

  bad = good;
  bad[6] = 3;
  ExpectRefused(bad, PushPayload(), {"reserved is 3", "allowed is 0"});

  ExpectRefused(good + "x", PushPayload(),
                {"length", absl::StrCat(good.size() - 16), absl::StrCat(good.size() - 15)});
  ExpectRefused(good.substr(0, good.size() - 1), PushPayload(), {"length"});

  bad = good;
  bad.back() ^= 1;
  ExpectRefused(bad, PushPayload(), {"crc32"});
  bad = good;
  bad[13] ^= 1;
  ExpectRefused(bad, PushPayload(), {"crc32"});
}

TEST(CodecTest, RefusesAHeaderOverTheLimit) {
  const std::string huge(kEnvelopeBytes + kMaxHeaderBytes + 1, '\0');
  std::string bad = EncodeHeader(PushHeader()).substr(0, 8) + huge.substr(8);
  ExpectRefused(bad, {}, {"67108865", "67108864"});
}

TEST(CodecTest, RefusesWhatIsNoHeader) {
  ExpectRefused(Envelope("\xff\xff\xff"), {}, {"Protobuf"});
  ExpectRefused(Envelope(std::string("\x0a\x05z", 3)), {}, {"Protobuf"});
  // Field 2 (kind) = 99; field 2 absent; field 2 = 0.
  ExpectRefused(Envelope("\x10\x63"), {}, {"kind is 99"});
  ExpectRefused(Envelope(""), {}, {"kind"});
  ExpectRefused(Envelope(std::string("\x10\x00", 2)), {}, {"kind"});
}

TEST(CodecTest, RefusesWeightsThatAreNoWeights) {
  for (const double weight :
       {-1.0, -1e-300, std::nan(""), std::numeric_limits<double>::infinity()}) {
    pb::FrameHeader header = PushHeader();
    header.set_weight(weight);
    ExpectRefused(EncodeHeader(header), PushPayload(), {"weight", ">= 0"});
  }
}

TEST(CodecTest, RefusesTooManyPartsAndFieldsBeforeParsingThem) {
  pb::FrameHeader header;
  header.set_kind(pb::PULL);
  for (size_t i = 0; i < kMaxParts; ++i) header.add_part();
  EXPECT_TRUE(DecodeFrame(EncodeHeader(header), {}).ok());
  header.add_part();
  ExpectRefused(EncodeHeader(header), {}, {"parts", "65536"});

  // A part's field that nobody knows, over and over: 16 bytes of memory for every 3 sent.
  std::string junk;
  for (int i = 0; i < 100; ++i) junk += "\x98\x06\x01";
  std::string bytes = "\x10\x1f\x62";
  bytes += std::string("\xac\x02", 2) + junk;
  ExpectRefused(Envelope(bytes), {}, {"part 0", "256"});
  bytes = "\x10\x1f";
  for (int i = 0; i < 300; ++i) bytes += "\x98\x06\x01";
  ExpectRefused(Envelope(bytes), {}, {"fields", "256"});
}

TEST(CodecTest, KeepsUnknownFieldsOfLaterReleases) {
  EXPECT_TRUE(DecodeFrame(Envelope("\x10\x1f\x98\x06\x01"), {}).ok());
}

TEST(CodecTest, RefusesPayloadThatDoesNotMatchTheParts) {
  const std::string push = EncodeHeader(PushHeader());
  ExpectRefused(push, {Buffer::Copy(std::string(12, 'a'))},
                {"part 2", "needs 8 bytes", "1 payload buffers"});
  ExpectRefused(push, {}, {"part 0", "PUSH", "0 payload buffers"});
  std::vector<Buffer> swapped = PushPayload();
  std::swap(swapped[0], swapped[1]);
  ExpectRefused(push, swapped, {"part 0", "needs 12 bytes", "buffer 0 has 8 left"});
  std::vector<Buffer> extra = PushPayload();
  extra.push_back(Buffer::Copy("abcd"));
  ExpectRefused(push, extra, {"3 payload buffers"});
  extra.back() = Buffer();
  ExpectRefused(push, extra, {"payload buffer 2 has 0 bytes"});
  std::vector<Buffer> ragged = PushPayload();
  ragged[1] = ragged[1].Slice(0, 7);
  ExpectRefused(push, ragged, {"part 2", "needs 8 bytes", "has 7 left"});
}

TEST(CodecTest, OnlyPushAndReplyMustCarryWhatTheyCount) {
  pb::FrameHeader header = PushHeader();
  header.set_kind(pb::REPLY);
  ExpectRefused(EncodeHeader(header), {}, {"REPLY"});
  header.set_kind(pb::PULL);
  EXPECT_TRUE(DecodeFrame(EncodeHeader(header), {}).ok());
  ExpectRefused(EncodeHeader(header), {Buffer::Copy(std::string(12, 'a'))}, {"part 2", "PULL"});
}

TEST(CodecTest, RefusesHugeCountsAndBuffers) {
  pb::FrameHeader header = PushHeader();
  // 4 * count overflows 64 bits to exactly the 12 bytes that are there.
  header.mutable_part(0)->set_count((uint64_t{1} << 62) + 3);
  ExpectRefused(EncodeHeader(header), PushPayload(), {"count", "268435456"});

  char byte = 0;  // never read: only the size is looked at
  header = PushHeader();
  ExpectRefused(EncodeHeader(header), {Buffer::Wrap(&byte, kMaxPayloadBytes + 4, [] {})},
                {"1073741828", "1073741824"});
}

// What codec.h promises of every frame that comes out.
void ExpectInvariants(const Frame& frame) {
  ASSERT_TRUE(pb::Kind_IsValid(frame.header.kind()));
  ASSERT_NE(frame.header.kind(), pb::KIND_UNKNOWN);
  ASSERT_TRUE(std::isfinite(frame.header.weight()) && frame.header.weight() >= 0);
  ASSERT_LE(static_cast<size_t>(frame.header.part_size()), kMaxParts);
  if (frame.payload.empty() && frame.header.kind() != pb::PUSH &&
      frame.header.kind() != pb::REPLY) {
    return;
  }
  const std::vector<PartPayload> runs = SplitPayload(frame);
  ASSERT_EQ(runs.size(), static_cast<size_t>(frame.header.part_size()));
  size_t bytes = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const pb::Part& part = frame.header.part(static_cast<int>(i));
    ASSERT_EQ(runs[i].keys.size(), part.key_bytes());
    ASSERT_EQ(runs[i].values.size(), ValueBytes(part));
    bytes += runs[i].keys.size() + runs[i].values.size();
  }
  ASSERT_EQ(bytes, frame.payload_bytes());
}

std::string Mutate(std::string bytes, std::mt19937_64& random) {
  const int edits = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < edits; ++i) {
    const size_t at = bytes.empty() ? 0 : random() % bytes.size();
    switch (random() % 5) {
      case 0:
        if (!bytes.empty()) bytes[at] = static_cast<char>(random());
        break;
      case 1:
        if (!bytes.empty()) bytes[at] ^= static_cast<char>(1 << random() % 8);
        break;
      case 2:
        bytes.insert(at, 1 + random() % 3, static_cast<char>(random()));
        break;
      case 3:
        bytes.erase(at, 1 + random() % 3);
        break;
      case 4:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

TEST(CodecTest, RandomMutationsNeverBreakTheInvariants) {
  std::mt19937_64 random(20240607);
  const std::string bytes = PushHeader().SerializeAsString(), whole = EncodeHeader(PushHeader());
  int taken = 0;
  for (int i = 0; i < 100000; ++i) {
    // Half the time the checksum is made right again, so that the mutation reaches the parser.
    const std::string part = i % 2 == 0 ? Mutate(whole, random) : Envelope(Mutate(bytes, random));
    std::vector<Buffer> payload = PushPayload();
    if (random() % 4 == 0) payload.resize(random() % 3);
    const absl::StatusOr<Frame> frame = DecodeFrame(part, std::move(payload));
    if (!frame.ok()) {
      ASSERT_EQ(frame.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++taken;
    ASSERT_NO_FATAL_FAILURE(ExpectInvariants(*frame)) << frame->header.ShortDebugString();
  }
  // Both ways out must have been tried in earnest.
  EXPECT_GT(taken, 1000);
  EXPECT_LT(taken, 50000);
}

}  // namespace
}  // namespace parley
