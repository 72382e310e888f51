#include "ps/table/state_digest.h"

#include <bit>
#include <cstring>

#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

// Odd, and with about as many ones as zeros: the fractions of the square roots of 2 and 3.
constexpr uint64_t kIn = 0x6A09E667F3BCC909;
constexpr uint64_t kOut = 0xBB67AE8584CAA73B;

uint64_t Load(const char* at, size_t size = 8) {
  uint64_t word = 0;
  std::memcpy(&word, at, size);
  return word;
}

uint64_t Mixed(uint64_t lane, uint64_t word) { return std::rotl(lane + word * kIn, 31) * kOut; }

}  // namespace

uint64_t DigestBytes(const void* bytes, size_t size, uint64_t before) {
  const char* at = static_cast<const char*>(bytes);
  const char* const end = at + size;
  // The size: zeros at the end are not nothing.
  uint64_t digest = KeyHash(KeyHash(before ^ kOut) + size);
  if (size >= 32) {
    uint64_t a = digest, b = digest + kIn, c = digest ^ kOut, d = digest - kOut;
    for (; end - at >= 32; at += 32) {
      a = Mixed(a, Load(at));
      b = Mixed(b, Load(at + 8));
      c = Mixed(c, Load(at + 16));
      d = Mixed(d, Load(at + 24));
    }
    digest = Mixed(Mixed(Mixed(a, b), c), d);
  }
  for (; end - at >= 8; at += 8) digest = Mixed(digest, Load(at));
  if (at != end) digest = Mixed(digest, Load(at, static_cast<size_t>(end - at)));
  return KeyHash(digest);
}

}  // namespace parley
