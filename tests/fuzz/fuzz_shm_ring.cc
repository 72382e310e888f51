// The ring in shared memory, read by one who trusts neither its bytes nor its positions.
//
//   u8 how        bit 0: a writer of ours fills the ring first; bit 1: the ring's bytes change
//                 between two records, as a hostile writer's would
//   u8 rounds     how often the reader looks
//   u64[rounds]   what the writer says is written
//   the ring's bytes, repeated to its size; with a writer: the bodies' sizes, u16 each
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "ps/net/shm/ring.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley::shm {
namespace {

void ReadRecord(const Record& record, const char* ring, size_t size) {
  const char* begin = reinterpret_cast<const char*>(record.body.data());
  Check(record.body.empty() || (begin >= ring && begin + record.body.size() <= ring + size),
        "a body lies in the ring");
  ReadAll(record.body.data(), record.body.size());
  Check(static_cast<uint16_t>(record.kind) <= kLastRecordKind, "only kinds that there are");
  for (size_t at = 0; at + 8 <= record.body.size(); at += 8) GetU64(record.body, at);
  if (record.kind == RecordKind::kReference) {
    const absl::StatusOr<Reference> reference = ParseReference(record.body);
    Check(!reference.ok() || record.body.size() == kReferenceBytes, "a reference has its size");
  }
}

// Whatever ring and positions say: inside the ring, and to an end.
void ReadAnything(FuzzInput input, bool changing) {
  std::vector<uint64_t> written;
  const int rounds = input.Take<uint8_t>() % 16;
  for (int i = 0; i < rounds; ++i) written.push_back(input.Take<uint64_t>());
  const std::string_view bytes = input.TakeRest();
  std::string filled(kMinRingBytes, '\0');
  for (size_t i = 0; i < filled.size() && !bytes.empty(); ++i) filled[i] = bytes[i % bytes.size()];
  ExactBytes ring(filled);
  RingReader reader({reinterpret_cast<const std::byte*>(ring.data()), filled.size()});
  for (const uint64_t position : written) {
    uint64_t last = reader.position();
    for (;;) {
      const absl::StatusOr<std::optional<Record>> record = reader.Next(position);
      if (!record.ok()) return;
      if (!record->has_value()) break;
      ReadRecord(**record, ring.data(), filled.size());
      Check(reader.position() > last, "every record takes the reader on");
      Check(reader.position() - last <= filled.size(), "but not further than the ring is long");
      last = reader.position();
      if (changing) {
        for (size_t i = 0; i < filled.size(); ++i) ring.data()[i] ^= static_cast<char>(last + i);
      }
    }
  }
}

// What a writer of ours has written arrives as it was, however full the ring and wherever it wraps.
void WriteAndRead(FuzzInput input) {
  ExactBytes ring(std::string(kMinRingBytes, '\0'));
  RingWriter writer({reinterpret_cast<std::byte*>(ring.data()), kMinRingBytes});
  RingReader reader({reinterpret_cast<const std::byte*>(ring.data()), kMinRingBytes});
  std::vector<size_t> pending;
  uint8_t next = 0, expected = 0;
  const auto drain = [&](size_t leave) {
    while (pending.size() > leave) {
      const auto record = reader.Next(writer.position());
      Check(record.ok() && record->has_value(), "what is written can be read");
      if ((*record)->kind == RecordKind::kPad) continue;
      Check((*record)->body.size() == pending.front(), "in order and whole");
      for (const std::byte byte : (*record)->body) {
        Check(byte == static_cast<std::byte>(expected), "with its bytes");
      }
      ++expected;
      pending.erase(pending.begin());
    }
  };
  while (input.left() > 0) {
    const size_t size = input.Take<uint16_t>() % (writer.max_body() + 1);
    std::byte* body = writer.Begin(size, reader.position());
    if (body == nullptr) {
      drain(0);
      body = writer.Begin(size, reader.position());
      Check(body != nullptr, "an empty ring has room for a record");
    }
    std::fill_n(body, size, static_cast<std::byte>(next++));
    writer.End(RecordKind::kMoreBytes, 0);
    pending.push_back(size);
    if (size % 3 == 0) drain(pending.size() / 2);
  }
  drain(0);
}

}  // namespace
}  // namespace parley::shm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::FuzzInput input(data, size);
  const auto how = input.Take<uint8_t>();
  if (how & 1) {
    parley::shm::WriteAndRead(input);
  } else {
    parley::shm::ReadAnything(input, (how & 2) != 0);
  }
  return 0;
}
