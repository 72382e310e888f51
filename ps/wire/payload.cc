#include "ps/wire/payload.h"

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr uint64_t kMaxCount = kMaxPayloadBytes / sizeof(float);
constexpr uint64_t kKeyBytes = sizeof(uint64_t);
constexpr size_t kDigestBytes = 16;

absl::Status CheckPart(const pb::Part& part, int index) {
  if (part.count() > kMaxCount) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: part %d has count %d, allowed is 0..%d", index, part.count(), kMaxCount));
  }
  if (ValueBytes(part) > kMaxPayloadBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: part %d has %d bytes of values, "
                        "allowed is 0..%d",
                        index, part.value_bytes(), kMaxPayloadBytes));
  }
  if (part.key_bytes() != 0 && part.key_bytes() != part.keys() * kKeyBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: part %d has %d bytes of keys, allowed is %d for %d keys, or 0",
                        index, part.key_bytes(), part.keys() * kKeyBytes, part.keys()));
  }
  if (part.has_key_digest() && part.key_digest().size() != kDigestBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: part %d has a key digest of %d bytes, allowed is %d", index,
                        part.key_digest().size(), kDigestBytes));
  }
  return absl::OkStatus();
}

// Hands out runs of bytes from the buffers, one after the other.
class Cursor {
 public:
  explicit Cursor(const std::vector<Buffer>& payload) : payload_(payload) {}

  // Moves over a run; false if it straddles buffers or there is none left.
  bool Take(uint64_t bytes, size_t* buffer, size_t* offset) {
    if (index_ < payload_.size() && offset_ == payload_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
    if (index_ >= payload_.size() || payload_[index_].size() - offset_ < bytes) return false;
    *buffer = index_;
    *offset = offset_;
    offset_ += bytes;
    return true;
  }
  bool AtEnd() const {
    return index_ >= payload_.size() ||
           (index_ + 1 == payload_.size() && offset_ == payload_[index_].size());
  }
  size_t index() const { return index_; }
  size_t left() const { return index_ < payload_.size() ? payload_[index_].size() - offset_ : 0; }

 private:
  const std::vector<Buffer>& payload_;
  size_t index_ = 0, offset_ = 0;
};

}  // namespace

absl::Status CheckPayload(const pb::FrameHeader& header, const std::vector<Buffer>& payload) {
  for (size_t i = 0; i < payload.size(); ++i) {
    if (payload[i].empty() || payload[i].size() > kMaxPayloadBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("frame: payload buffer %d has %d bytes, allowed is 1..%d", i,
                          payload[i].size(), kMaxPayloadBytes));
    }
  }
  uint64_t wanted = 0;
  for (int i = 0; i < header.part_size(); ++i) {
    absl::Status status = CheckPart(header.part(i), i);
    if (!status.ok()) return status;
    wanted += header.part(i).key_bytes() + ValueBytes(header.part(i));
  }
  const bool may_lack =
      header.kind() != pb::PUSH && header.kind() != pb::PUSH_PULL && header.kind() != pb::REPLY;
  if (payload.empty() && (wanted == 0 || may_lack)) return absl::OkStatus();

  Cursor cursor(payload);
  size_t buffer = 0, offset = 0;
  for (int i = 0; i < header.part_size(); ++i) {
    for (uint64_t bytes : {header.part(i).key_bytes(), ValueBytes(header.part(i))}) {
      if (bytes == 0 || cursor.Take(bytes, &buffer, &offset)) continue;
      return absl::InvalidArgumentError(absl::StrFormat(
          "frame: part %d of a %s needs %d bytes in one of %d payload buffers, buffer %d has %d "
          "left",
          i, pb::Kind_Name(header.kind()), bytes, payload.size(), cursor.index(), cursor.left()));
    }
  }
  if (!cursor.AtEnd()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: %d payload buffers hold more than the %d bytes that the parts of a "
                        "%s need",
                        payload.size(), wanted, pb::Kind_Name(header.kind())));
  }
  return absl::OkStatus();
}

std::vector<PartPayload> SplitPayload(const Frame& frame) {
  std::vector<PartPayload> parts(static_cast<size_t>(frame.header.part_size()));
  if (frame.payload.empty()) return parts;
  Cursor cursor(frame.payload);
  size_t buffer = 0, offset = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const pb::Part& part = frame.header.part(static_cast<int>(i));
    if (part.key_bytes() > 0 && cursor.Take(part.key_bytes(), &buffer, &offset)) {
      parts[i].keys = frame.payload[buffer].Slice(offset, part.key_bytes());
    }
    if (ValueBytes(part) > 0 && cursor.Take(ValueBytes(part), &buffer, &offset)) {
      parts[i].values = frame.payload[buffer].Slice(offset, ValueBytes(part));
    }
  }
  return parts;
}

}  // namespace parley
