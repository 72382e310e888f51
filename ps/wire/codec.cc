#include "ps/wire/codec.h"

#include <zlib.h>

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "ps/wire/payload.h"

namespace parley {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// A header costs memory by its fields, not by its bytes: two bytes of Protobuf make an empty Part
// of some sixty, or an unknown field of sixteen. Bounding fields before parsing bounds the memory.
constexpr int kMaxPartBytes =
    256;  // ten fields of at most 11 bytes and one of 18; the rest is for later ones
constexpr int kMaxOtherFields = 256;  // FrameHeader has 15, each once

void PutU16(uint16_t value, std::string* out) {
  out->push_back(static_cast<char>(value & 0xff));
  out->push_back(static_cast<char>(value >> 8));
}

void PutU32(uint32_t value, std::string* out) {
  PutU16(static_cast<uint16_t>(value & 0xffff), out);
  PutU16(static_cast<uint16_t>(value >> 16), out);
}

uint32_t GetLittleEndian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

uint32_t Crc32(std::string_view bytes) {
  return static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size())));
}

absl::Status CheckEnvelope(std::string_view first_part) {
  if (first_part.size() < kEnvelopeBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: the first part has %d bytes, the envelope alone takes %d",
                        first_part.size(), kEnvelopeBytes));
  }
  if (first_part.substr(0, 4) != kEnvelopeMagic) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: magic is %08x, expected %08x (\"PRLY\"): the sender is no Parley node",
        GetLittleEndian(first_part.substr(0, 4)), GetLittleEndian(kEnvelopeMagic)));
  }
  const uint32_t version = GetLittleEndian(first_part.substr(4, 2));
  if (version != kEnvelopeVersion) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: the sender speaks envelope version %d, this node speaks version %d; run the same "
        "release everywhere",
        version, kEnvelopeVersion));
  }
  const uint32_t reserved = GetLittleEndian(first_part.substr(6, 2));
  if (reserved != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: reserved is %d, allowed is 0", reserved));
  }
  const std::string_view header = first_part.substr(kEnvelopeBytes);
  if (header.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: the header has %d bytes, allowed is 0..%d", header.size(), kMaxHeaderBytes));
  }
  const uint32_t length = GetLittleEndian(first_part.substr(8, 4));
  if (length != header.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: length says %d bytes of header, the part has %d", length, header.size()));
  }
  const uint32_t said = GetLittleEndian(first_part.substr(12, 4)), is = Crc32(header);
  if (said != is) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: crc32 is %08x, the header's bytes have %08x: damaged on the way", said, is));
  }
  return absl::OkStatus();
}

// Refuses a header that would cost far more memory than it has bytes, before that memory is spent.
absl::Status CheckFieldCounts(std::string_view bytes) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  size_t parts = 0;
  int others = 0;
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) == pb::FrameHeader::kPartFieldNumber) {
      const int begin = in.CurrentPosition();
      if (!WireFormatLite::SkipField(&in, tag)) break;  // the parser says so, too
      if (in.CurrentPosition() - begin > kMaxPartBytes) {
        return absl::InvalidArgumentError(
            absl::StrFormat("frame: part %d has %d bytes, allowed is 0..%d", parts,
                            in.CurrentPosition() - begin, kMaxPartBytes));
      }
      if (++parts > kMaxParts) {
        return absl::InvalidArgumentError(
            absl::StrFormat("frame: over %d parts, allowed is 0..%d", kMaxParts, kMaxParts));
      }
      continue;
    }
    if (!WireFormatLite::SkipField(&in, tag)) break;
    if (++others > kMaxOtherFields) {
      return absl::InvalidArgumentError(
          absl::StrFormat("frame: over %d fields besides the parts, allowed is 0..%d",
                          kMaxOtherFields, kMaxOtherFields));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckKind(const pb::FrameHeader& header) {
  // Protobuf keeps enum values it does not know among the unknown fields and leaves `kind` unset.
  const auto& unknown = header.unknown_fields();
  for (int i = 0; i < unknown.field_count(); ++i) {
    const auto& field = unknown.field(i);
    if (field.number() == pb::FrameHeader::kKindFieldNumber &&
        field.type() == google::protobuf::UnknownField::TYPE_VARINT) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "frame: kind is %d, which proto/wire.proto does not know", field.varint()));
    }
  }
  if (header.kind() == pb::KIND_UNKNOWN) {
    return absl::InvalidArgumentError("frame: kind is missing or 0, allowed are those of pb::Kind");
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeHeader(const pb::FrameHeader& header) {
  const std::string bytes = header.SerializeAsString();
  std::string part;
  part.reserve(kEnvelopeBytes + bytes.size());
  part.append(kEnvelopeMagic);
  PutU16(kEnvelopeVersion, &part);
  PutU16(0, &part);
  PutU32(static_cast<uint32_t>(bytes.size()), &part);
  PutU32(Crc32(bytes), &part);
  part.append(bytes);
  return part;
}

absl::StatusOr<Frame> DecodeFrame(std::string_view first_part, std::vector<Buffer> payload) {
  if (absl::Status status = CheckEnvelope(first_part); !status.ok()) return status;
  const std::string_view bytes = first_part.substr(kEnvelopeBytes);
  if (absl::Status status = CheckFieldCounts(bytes); !status.ok()) return status;
  Frame frame;
  if (!frame.header.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: the header's %d bytes are no Protobuf FrameHeader", bytes.size()));
  }
  if (absl::Status status = CheckKind(frame.header); !status.ok()) return status;
  if (!std::isfinite(frame.header.weight()) || frame.header.weight() < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame: weight is %g, allowed are finite numbers >= 0", frame.header.weight()));
  }
  if (absl::Status status = CheckPayload(frame.header, payload); !status.ok()) return status;
  frame.payload = std::move(payload);
  return frame;
}

}  // namespace parley
