#include "ps/table/state_digest.h"

#include <array>
#include <bit>
#include <cstring>

#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

// Odd, and with about as many ones as zeros: the fractions of the square roots of 2 and 3.
constexpr uint64_t kIn = 0x6A09E667F3BCC909;
constexpr uint64_t kOut = 0xBB67AE8584CAA73B;
// So many multiplications are under way at a time.
constexpr size_t kLanes = 8;
constexpr size_t kStripe = kLanes * 8;

uint64_t Load(const char* at, size_t size = 8) {
  uint64_t word = 0;
  std::memcpy(&word, at, size);
  return word;
}

// Two multiplications, so that what one bit of a word does is never what a few bits of the next
// word undo.
uint64_t Mixed(uint64_t lane, uint64_t word) { return std::rotl(lane + word * kIn, 31) * kOut; }

}  // namespace

uint64_t DigestBytes(const void* bytes, size_t size, uint64_t before) {
  const char* at = static_cast<const char*>(bytes);
  const char* const end = at + size;
  // The size: zeros at the end are not nothing.
  uint64_t digest = KeyHash(KeyHash(before ^ kOut) + size);
  if (size >= kStripe) {
    std::array<uint64_t, kLanes> lanes;
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = digest + i * kIn;
    for (; static_cast<size_t>(end - at) >= kStripe; at += kStripe) {
      for (size_t i = 0; i < kLanes; ++i) lanes[i] = Mixed(lanes[i], Load(at + i * 8));
    }
    for (const uint64_t lane : lanes) digest = Mixed(digest, lane);
  }
  for (; end - at >= 8; at += 8) digest = Mixed(digest, Load(at));
  if (at != end) digest = Mixed(digest, Load(at, static_cast<size_t>(end - at)));
  return KeyHash(digest);
}

}  // namespace parley
