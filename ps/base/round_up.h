// RoundUp: sizes as multiples of a unit, for all that hands out memory.
#ifndef PARLEY_PS_BASE_ROUND_UP_H_
#define PARLEY_PS_BASE_ROUND_UP_H_

#include <cstddef>

namespace parley {

// The smallest multiple of `unit` that is not less than `size`. REQUIRES: unit > 0, and the result
// fits.
constexpr size_t RoundUp(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace parley

#endif  // PARLEY_PS_BASE_ROUND_UP_H_
