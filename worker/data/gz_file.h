// GzFile: a file read front to back, plain or gzip by content (zlib passes plain files through
// unchanged).
//
// Errors name the file and how far it could be read: kNotFound (cannot be opened), kDataLoss
// (corrupt or truncated). Not thread-safe.
#ifndef PARLEY_WORKER_DATA_GZ_FILE_H_
#define PARLEY_WORKER_DATA_GZ_FILE_H_

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace parley {

class GzFile {
 public:
  static absl::StatusOr<GzFile> Open(const std::string& path);

  // Reads until `size` bytes or the end of the file; `*got` says how many there were.
  absl::Status Read(uint8_t* out, size_t size, size_t* got);

  // Reads exactly `size` bytes; `part` says what they are, for the error.
  absl::Status ReadExactly(uint8_t* out, size_t size, const std::string& part);

  absl::Status ExpectEnd();

 private:
  struct Closer {
    void operator()(gzFile file) const { gzclose_r(file); }
  };
  GzFile(const std::string& path, gzFile file) : path_(path), file_(file) {}
  std::string Reason(int code, const char* why) const;

  std::string path_;
  std::unique_ptr<std::remove_pointer_t<gzFile>, Closer> file_;
  uint64_t offset_ = 0;
};

// Lines of a text file, without their ends ("\n" or "\r\n"); the last may lack its own.
class GzLines {
 public:
  static constexpr size_t kMaxLineBytes = size_t{1} << 20;

  explicit GzLines(GzFile file) : file_(std::move(file)), buffer_(kMaxLineBytes) {}

  // The next line, valid until the next call, or false at the end. kInvalidArgument: a line of
  // more than kMaxLineBytes.
  absl::StatusOr<bool> Next(std::string_view* line);

  uint64_t number() const { return number_; }  // of the line read last, from 1

 private:
  GzFile file_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // unread bytes of buffer_
  bool at_end_ = false;
  uint64_t number_ = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_GZ_FILE_H_
