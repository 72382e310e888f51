// Frames from strangers: DecodeFrame, and what its promise is relied on for, SplitPayload.
//
//   u8 how          bit 0: the first part is Protobuf bytes that get a good envelope, so that the
//                   fuzzer need not find a CRC
//   u8 buffers      of the payload, modulo 8
//   u16[buffers]    their sizes
//   payload bytes, then the first part
#include <zlib.h>

#include <cmath>
#include <string>
#include <vector>

#include "ps/wire/codec.h"
#include "ps/wire/payload.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley {
namespace {

std::string Envelope(std::string_view protobuf) {
  const auto size = static_cast<uint32_t>(protobuf.size());
  const auto crc = static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(protobuf.data()), static_cast<uInt>(size)));
  std::string part(kEnvelopeMagic);
  const uint16_t words[] = {kEnvelopeVersion, 0};
  part.append(reinterpret_cast<const char*>(words), 4);
  part.append(reinterpret_cast<const char*>(&size), 4);
  part.append(reinterpret_cast<const char*>(&crc), 4);
  return part.append(protobuf);
}

Buffer Exact(std::string_view bytes) {
  char* copy = new char[bytes.size()];
  if (!bytes.empty()) std::memcpy(copy, bytes.data(), bytes.size());
  return Buffer::Wrap(copy, bytes.size(), [copy] { delete[] copy; });
}

void Run(FuzzInput input) {
  const auto how = input.Take<uint8_t>();
  const int buffers = input.Take<uint8_t>() % 8;
  std::vector<uint16_t> sizes;
  for (int i = 0; i < buffers; ++i) sizes.push_back(input.Take<uint16_t>());
  std::vector<Buffer> payload;
  for (const uint16_t size : sizes) payload.push_back(Exact(input.TakeBytes(size)));
  const std::string_view rest = input.TakeRest();
  const ExactBytes first(how & 1 ? Envelope(rest) : std::string(rest));

  const absl::StatusOr<Frame> frame = DecodeFrame(first.view(), payload);
  if (!frame.ok()) {
    Check(!frame.status().message().empty(), "a refusal says why");
    return;
  }
  const pb::FrameHeader& header = frame->header;
  Check(header.kind() != pb::KIND_UNKNOWN, "a frame has a kind");
  Check(header.weight() >= 0 && std::isfinite(header.weight()),
        "a weight is finite and not negative");
  Check(static_cast<size_t>(header.part_size()) <= kMaxParts, "parts are bounded");
  Check(CheckPayload(header, frame->payload).ok(), "a decoded frame's payload fits its parts");
  const std::vector<PartPayload> parts = SplitPayload(*frame);
  Check(parts.size() == static_cast<size_t>(header.part_size()), "each part has its payload");
  for (int i = 0; i < header.part_size(); ++i) {
    const PartPayload& part = parts[static_cast<size_t>(i)];
    ReadAll(part.keys.data(), part.keys.size());
    ReadAll(part.values.data(), part.values.size());
    if (frame->payload.empty()) continue;
    Check(part.keys.size() == header.part(i).key_bytes(), "keys are as long as said");
    Check(part.values.size() == ValueBytes(header.part(i)), "values are as long as said");
  }

  const absl::StatusOr<Frame> again = DecodeFrame(EncodeHeader(header), frame->payload);
  Check(again.ok(), "what was decoded can be sent on");
  Check(again->header.SerializeAsString() == header.SerializeAsString(), "and arrives as it was");
}

}  // namespace
}  // namespace parley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::Run(parley::FuzzInput(data, size));
  return 0;
}
