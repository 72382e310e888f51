#include "worker/data/gz_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

}  // namespace

absl::StatusOr<GzFile> GzFile::Open(const std::string& path) {
  errno = 0;
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    return absl::NotFoundError(
        absl::StrFormat("%s: cannot be opened: %s", path, std::strerror(errno)));
  }
  gzbuffer(file, 256 << 10);
  return GzFile(path, file);
}

absl::Status GzFile::Read(uint8_t* out, size_t size, size_t* got) {
  *got = 0;
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
          path_, offset_ + std::max(n, 0)));
    }
    if (n < 0) {
      return absl::DataLossError(absl::StrFormat("%s: is corrupt after %d bytes of content: %s",
                                                 path_, offset_, Reason(code, why)));
    }
    if (n == 0) break;
    *got += static_cast<size_t>(n);
    offset_ += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status GzFile::ReadExactly(uint8_t* out, size_t size, const std::string& part) {
  size_t got = 0;
  absl::Status status = Read(out, size, &got);
  if (!status.ok() || got == size) return status;
  return absl::DataLossError(
      absl::StrFormat("%s: is truncated: it ends after %d bytes, inside %s", path_, offset_, part));
}

absl::Status GzFile::ExpectEnd() {
  const uint64_t announced = offset_;
  uint8_t extra = 0;
  size_t got = 0;
  absl::Status status = Read(&extra, 1, &got);
  if (!status.ok() || got == 0) return status;
  return absl::DataLossError(
      absl::StrFormat("%s: has bytes after the %d that its header announces", path_, announced));
}

// zlib puts the path in front of its message; ours stands there already.
std::string GzFile::Reason(int code, const char* why) const {
  if (code == Z_ERRNO) return std::strerror(errno);
  std::string reason = why == nullptr ? "" : why;
  const std::string prefix = path_ + ": ";
  if (reason.rfind(prefix, 0) == 0) reason = reason.substr(prefix.size());
  return reason;
}

absl::StatusOr<bool> GzLines::Next(std::string_view* line) {
  ++number_;
  const char* newline = nullptr;
  size_t searched = 0;
  for (;;) {
    const char* unread = buffer_.data() + begin_;
    newline =
        static_cast<const char*>(std::memchr(unread + searched, '\n', end_ - begin_ - searched));
    if (newline != nullptr || at_end_) break;
    searched = end_ - begin_;
    if (searched == buffer_.size()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "has more than %d bytes, allowed is a line of up to that", kMaxLineBytes));
    }
    std::memmove(buffer_.data(), unread, searched);
    begin_ = 0, end_ = searched;
    size_t got = 0;
    const size_t room = buffer_.size() - end_;
    absl::Status status = file_.Read(reinterpret_cast<uint8_t*>(buffer_.data()) + end_, room, &got);
    if (!status.ok()) return status;
    at_end_ = got < room;
    end_ += got;
  }
  if (newline == nullptr && begin_ == end_) return false;
  const char* first = buffer_.data() + begin_;
  const char* last = newline != nullptr ? newline : buffer_.data() + end_;
  begin_ = static_cast<size_t>(last - buffer_.data()) + (newline != nullptr ? 1 : 0);
  if (last > first && last[-1] == '\r') --last;
  *line = std::string_view(first, static_cast<size_t>(last - first));
  return true;
}

}  // namespace parley
