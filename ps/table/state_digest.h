// DigestBytes: 64 bits that stand for a run of bytes, to find out whether two copies are the same.
//
// Eight lanes of eight bytes, each a chain of additions, rotations and odd multiplications. A step
// is a bijection of its lane and of its word, and so is all that follows: a change of one word
// alone always shows. Some 4 bytes a cycle. Not cryptographic: it finds accidents, not enemies.
// Pure function, thread-safe.
#ifndef PARLEY_PS_TABLE_STATE_DIGEST_H_
#define PARLEY_PS_TABLE_STATE_DIGEST_H_

#include <cstddef>
#include <cstdint>

namespace parley {

// `bytes` may be unaligned. `before`: the digest of what comes before, or anything else that the
// digest is to depend on.
uint64_t DigestBytes(const void* bytes, size_t size, uint64_t before);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_STATE_DIGEST_H_
