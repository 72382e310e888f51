#include "worker/data/idx.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "worker/data/gz_file.h"

namespace parley {
namespace {

constexpr uint32_t kUnsignedByte = 0x08;
constexpr size_t kIdxChunk = size_t{1} << 20;
constexpr uint64_t kMaxBytes = uint64_t{1} << 36;

uint32_t BigEndian32(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

absl::Status CheckMagic(const std::string& path, const uint8_t* magic, uint32_t dimensions) {
  const uint32_t expected = kUnsignedByte << 8 | dimensions;
  const uint32_t found = BigEndian32(magic);
  if (found == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: the magic number is 0x%08x, expected is 0x%08x: an IDX file of unsigned "
                      "bytes with %d dimension%s",
                      path, found, expected, dimensions, dimensions == 1 ? "" : "s"));
}

}  // namespace

absl::StatusOr<IdxArray> ReadIdx(const std::string& path, uint32_t dimensions, uint64_t limit) {
  absl::StatusOr<GzFile> file = GzFile::Open(path);
  if (!file.ok()) return file.status();

  std::vector<uint8_t> header(4 + 4 * size_t{dimensions});
  absl::Status status = file->ReadExactly(header.data(), 4, "the magic number");
  if (status.ok()) status = CheckMagic(path, header.data(), dimensions);
  if (status.ok()) {
    status = file->ReadExactly(header.data() + 4, header.size() - 4, "the header");
  }
  if (!status.ok()) return status;

  IdxArray array;
  uint64_t row_bytes = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    const uint32_t extent = BigEndian32(header.data() + 4 + 4 * size_t{d});
    array.shape.push_back(extent);
    if (d > 0) row_bytes *= extent;
    // Checked at every factor: row_bytes <= 2^36 and extent < 2^32, no overflow in between.
    if (extent == 0 || row_bytes > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: extent %d of dimension %d makes it empty or larger than %d bytes",
                          path, extent, d, kMaxBytes));
    }
  }
  array.kept = limit == 0 ? array.shape[0] : std::min<uint64_t>(limit, array.shape[0]);
  if (array.kept > kMaxBytes / row_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d entries of %d bytes are over %d bytes", path, array.kept, row_bytes, kMaxBytes));
  }
  const uint64_t total = array.kept * row_bytes;
  const std::string part = absl::StrFormat("the %d x %d bytes of values that its header announces",
                                           array.shape[0], row_bytes);
  while (array.bytes.size() < total) {
    const size_t at = array.bytes.size();
    const size_t step = std::min<uint64_t>(kIdxChunk, total - at);
    array.bytes.resize(at + step);
    status = file->ReadExactly(array.bytes.data() + at, step, part);
    if (!status.ok()) return status;
  }
  // Reading on to the end also makes zlib check the trailer's checksum.
  if (array.kept == array.shape[0]) status = file->ExpectEnd();
  if (!status.ok()) return status;
  array.bytes.shrink_to_fit();
  return array;
}

}  // namespace parley
