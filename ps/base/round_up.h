#pragma once

#include <cstddef>

namespace parley {

// The smallest multiple of `unit` that is not less than `size`; `unit` > 0, and it must not
// overflow.
constexpr size_t RoundUp(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace parley
