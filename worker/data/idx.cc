#include "worker/data/idx.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr uint32_t kUnsignedByte = 0x08;
constexpr size_t kChunk = size_t{1} << 20;
constexpr uint64_t kMaxBytes = uint64_t{1} << 36;

// A file read front to back through zlib, which passes plain files through unchanged.
class GzFile {
 public:
  static absl::StatusOr<GzFile> Open(const std::string& path) {
    errno = 0;
    gzFile file = gzopen(path.c_str(), "rb");
    if (file == nullptr) {
      return absl::NotFoundError(
          absl::StrFormat("%s: cannot be opened: %s", path, std::strerror(errno)));
    }
    gzbuffer(file, 256 << 10);
    return GzFile(path, file);
  }

  // Reads exactly `size` bytes; `part` says what they are, for the error.
  absl::Status ReadExactly(uint8_t* out, size_t size, const std::string& part) {
    size_t got = 0;
    absl::Status status = ReadSome(out, size, &got);
    if (!status.ok()) return status;
    offset_ += got;
    if (got == size) return absl::OkStatus();
    return absl::DataLossError(absl::StrFormat(
        "%s: is truncated: it ends after %d bytes, inside %s", path_, offset_, part));
  }

  absl::Status ExpectEnd() {
    uint8_t extra = 0;
    size_t got = 0;
    absl::Status status = ReadSome(&extra, 1, &got);
    if (!status.ok()) return status;
    if (got == 0) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrFormat("%s: has bytes after the %d that its header announces", path_, offset_));
  }

 private:
  struct Closer {
    void operator()(gzFile file) const { gzclose_r(file); }
  };

  GzFile(const std::string& path, gzFile file) : path_(path), file_(file) {}

  absl::Status ReadSome(uint8_t* out, size_t size, size_t* got) {
    while (*got < size) {
      const size_t step = std::min(size - *got, kChunk);
      const int n = gzread(file_.get(), out + *got, static_cast<unsigned>(step));
      int code = Z_OK;
      const char* why = gzerror(file_.get(), &code);
      // Z_BUF_ERROR is zlib's word for a gzip stream that stops in the middle; it comes with the
      // last bytes that could still be had.
      if (code == Z_BUF_ERROR) {
        return absl::DataLossError(absl::StrFormat(
            "%s: is truncated: the gzip stream ends before its trailer, after %d bytes of content",
            path_, offset_ + *got + std::max(n, 0)));
      }
      if (n < 0) {
        return absl::DataLossError(absl::StrFormat("%s: is corrupt after %d bytes of content: %s",
                                                   path_, offset_ + *got, Reason(code, why)));
      }
      if (n == 0) break;
      *got += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

  // zlib puts the path in front of its message; ours stands there already.
  std::string Reason(int code, const char* why) const {
    if (code == Z_ERRNO) return std::strerror(errno);
    std::string reason = why == nullptr ? "" : why;
    const std::string prefix = path_ + ": ";
    if (reason.rfind(prefix, 0) == 0) reason = reason.substr(prefix.size());
    return reason;
  }

  std::string path_;
  std::unique_ptr<std::remove_pointer_t<gzFile>, Closer> file_;
  uint64_t offset_ = 0;
};

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
    const size_t step = std::min<uint64_t>(kChunk, total - at);
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
