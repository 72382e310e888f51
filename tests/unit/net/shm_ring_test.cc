// The ring of records, one side beside the other: against a deque, at its ends, and between
// threads.
#include <atomic>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/philox.h"
#include "ps/net/shm/ring.h"

namespace parley::shm {
namespace {

using ::testing::HasSubstr;

struct Model {
  RecordKind kind;
  uint16_t flags;
  std::string body;
};

// Memory as a segment has it: aligned, and zero.
class Memory {
 public:
  explicit Memory(size_t size) : words_(size / sizeof(uint64_t)), size_(size) {}
  absl::Span<std::byte> span() { return {reinterpret_cast<std::byte*>(words_.data()), size_}; }

 private:
  std::vector<uint64_t> words_;
  const size_t size_;
};

uint32_t Draw(uint64_t step, uint32_t below) { return Philox(7, 0, step)[0] % below; }

bool Write(RingWriter* writer, const Model& record, uint64_t read) {
  std::byte* const body = writer->Begin(record.body.size(), read);
  if (body == nullptr) return false;
  std::memcpy(body, record.body.data(), record.body.size());
  writer->End(record.kind, record.flags);
  return true;
}

std::string Text(absl::Span<const std::byte> body) {
  return {reinterpret_cast<const char*>(body.data()), body.size()};
}

Model RandomRecord(uint64_t step, size_t max_body) {
  const auto words = Philox(11, 1, step);
  return {static_cast<RecordKind>(1 + words[0] % kLastRecordKind),
          static_cast<uint16_t>(words[1] & 0xffff),
          std::string(words[2] % (words[3] % 4 == 0 ? max_body + 1 : 40),
                      static_cast<char>('a' + step % 26))};
}

TEST(ShmRing, IsADequeOfBoundedSizeWhateverTheInterleaving) {
  constexpr size_t kBytes = kMinRingBytes;
  Memory memory(kBytes);
  RingWriter writer(memory.span());
  RingReader reader(memory.span());
  std::deque<Model> model;
  uint64_t shown = 0, full = 0, empty = 0;
  for (uint64_t step = 0; step < 200'000; ++step) {
    if (Draw(step, 2) == 0) {
      const Model record = RandomRecord(step, writer.max_body());
      if (Write(&writer, record, reader.position())) {
        model.push_back(record);
      } else {
        ++full;
        ASSERT_FALSE(model.empty());
      }
      if (Draw(step, 3) == 0) shown = writer.position();  // published now and then
      ASSERT_LE(writer.position() - reader.position(), kBytes);
      continue;
    }
    const absl::StatusOr<std::optional<Record>> record = reader.Next(shown);
    ASSERT_TRUE(record.ok()) << record.status();
    if (!record->has_value()) {
      ++empty;
      shown = writer.position();
      continue;
    }
    ASSERT_FALSE(model.empty());
    ASSERT_EQ((*record)->kind, model.front().kind);
    ASSERT_EQ((*record)->flags, model.front().flags);
    ASSERT_EQ(Text((*record)->body), model.front().body);
    model.pop_front();
  }
  EXPECT_GT(full, 1000);  // or the drawing is at fault
  EXPECT_GT(empty, 1000);
}

TEST(ShmRing, AnEmptyRingTakesTheLargestBodyWhereverItStands) {
  Memory memory(kMinRingBytes);
  RingWriter writer(memory.span());
  RingReader reader(memory.span());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(
        Write(&writer, {RecordKind::kBytes, 0, std::string(i % 30, 'x')}, reader.position()));
    ASSERT_TRUE(Write(&writer, {RecordKind::kBytes, 0, std::string(writer.max_body(), 'y')},
                      reader.position()));
    ASSERT_EQ(Text((**reader.Next(writer.position())).body), std::string(i % 30, 'x'));
    ASSERT_EQ(Text((**reader.Next(writer.position())).body).size(), writer.max_body());
  }
}

TEST(ShmRing, OneThreadWritesWhileAnotherReads) {
  constexpr uint64_t kRecords = 200'000;
  Memory memory(kMinRingBytes);
  std::atomic<uint64_t> written{0}, read{0};
  std::thread producer([&] {
    RingWriter writer(memory.span());
    for (uint64_t i = 0; i < kRecords;) {
      const Model record = RandomRecord(i, writer.max_body());
      if (!Write(&writer, record, read.load(std::memory_order_acquire))) {
        std::this_thread::yield();
        continue;
      }
      written.store(writer.position(), std::memory_order_release);
      ++i;
    }
  });
  RingReader reader(memory.span());
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < kRecords && wrong == 0;) {
    const absl::StatusOr<std::optional<Record>> record =
        reader.Next(written.load(std::memory_order_acquire));
    if (record.ok() && !record->has_value()) {
      std::this_thread::yield();
      continue;
    }
    const Model expected = RandomRecord(i, kMinRingBytes / 4);
    wrong +=
        !record.ok() || (*record)->kind != expected.kind || Text((*record)->body) != expected.body;
    read.store(reader.position(), std::memory_order_release);
    ++i;
  }
  read.store(~uint64_t{0} / 2, std::memory_order_release);  // lets a producer go that is behind
  producer.join();
  EXPECT_EQ(wrong, 0);
}

// What a reader says of one header, placed at `at` of a ring written up to `written`.
absl::Status Says(uint64_t size, uint64_t kind, uint64_t written, uint64_t at = 0) {
  Memory memory(kMinRingBytes);
  PutU64(size | kind << 32, memory.span().data() + at);
  RingReader reader(memory.span(), at);
  return reader.Next(written).status();
}

TEST(ShmRing, ALyingWriterIsRefused) {
  EXPECT_TRUE(Says(8, 1, 16).ok());
  EXPECT_THAT(std::string(Says(9, 1, 16).message()), HasSubstr("size is 9, allowed is 0..8"));
  EXPECT_FALSE(Says(0xffffffff, 1, 16).ok());
  EXPECT_FALSE(Says(8, kLastRecordKind + 1, 16).ok());
  EXPECT_FALSE(Says(8, 1, 12).ok()) << "no multiple of eight";
  EXPECT_FALSE(Says(8, 1, kMinRingBytes + 8).ok()) << "more than the ring holds";
  EXPECT_FALSE(Says(8, 1, 8, 16).ok()) << "behind the reader";
  EXPECT_FALSE(Says(8, 0, 16).ok()) << "a pad that does not reach the end";
  EXPECT_FALSE(Says(8, 1, kMinRingBytes + 8, kMinRingBytes - 8).ok()) << "a body past the end";
}

TEST(ShmRing, ReferencesAreWholeOrRefused) {
  std::byte body[kReferenceBytes];
  PutReference({7, 1, 2, 3}, body);
  const absl::StatusOr<Reference> reference = ParseReference(body);
  ASSERT_TRUE(reference.ok());
  EXPECT_EQ(reference->arena, 7);
  EXPECT_EQ(reference->offset, 1);
  EXPECT_EQ(reference->size, 2);
  EXPECT_EQ(reference->token, 3);
  EXPECT_FALSE(ParseReference({body, kReferenceBytes - 8}).ok());
  PutU64(uint64_t{1} << 32, body);
  EXPECT_FALSE(ParseReference(body).ok());
}

}  // namespace
}  // namespace parley::shm
