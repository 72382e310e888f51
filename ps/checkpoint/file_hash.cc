#include "ps/checkpoint/file_hash.h"

#include <zlib.h>

#include <cassert>

#include "absl/strings/escaping.h"

namespace parley {
namespace {

constexpr size_t kBytes = 32;

}  // namespace

FileHash::FileHash() {
  // Picks the fastest code for this processor; cheap after the first time, from any thread.
  [[maybe_unused]] const int ready = sodium_init();
  assert(ready >= 0);
  crypto_generichash_init(&state_, nullptr, 0, kBytes);
}

void FileHash::Add(absl::Span<const std::byte> bytes) {
  crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(bytes.data()),
                            bytes.size());
}

void FileHash::Add(absl::string_view bytes) {
  Add(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()));
}

std::string FileHash::Hex() {
  unsigned char hash[kBytes];
  crypto_generichash_final(&state_, hash, kBytes);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash), sizeof(hash)));
}

uint32_t Crc32(absl::Span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

}  // namespace parley
