// DigestBytes: 64 bits that stand for a run of bytes, to find out whether two copies are the same.
//
// Four lanes of eight bytes, each a chain of additions, rotations and odd multiplications as in
// XXH64 (Collet): a step is a bijection of its lane and of its word, so that a change of one word
// alone always shows. About 4 bytes a cycle. Not cryptographic: it finds accidents, not enemies.
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
