// FileHash: BLAKE2b-256 of bytes that come in pieces; what says that a file is the one that was
// written. Not thread-safe; any number may live side by side.
#ifndef PARLEY_PS_CHECKPOINT_FILE_HASH_H_
#define PARLEY_PS_CHECKPOINT_FILE_HASH_H_

#include <sodium.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace parley {

class FileHash {
 public:
  FileHash();
  FileHash(const FileHash&) = delete;
  FileHash& operator=(const FileHash&) = delete;

  void Add(absl::Span<const std::byte> bytes);
  void Add(absl::string_view bytes);
  // Lower-case hexadecimal. REQUIRES: the last call.
  std::string Hex();

 private:
  crypto_generichash_state state_;
};

// CRC-32 (ISO-HDLC, as zlib's) of one array: quick, for whoever reads a part of a file that was
// checked whole before.
uint32_t Crc32(absl::Span<const std::byte> bytes);

}  // namespace parley

#endif  // PARLEY_PS_CHECKPOINT_FILE_HASH_H_
