// The nearest of a list of names to one that was mistyped. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_SUGGEST_H_
#define PARLEY_PS_CONFIG_SUGGEST_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace parley {

// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment) that turn
// `a` into `b`.
size_t EditDistance(absl::string_view a, absl::string_view b);

// The name that `typed` was most likely meant to be; empty if none is near enough to be worth
// saying.
std::string NearestName(absl::string_view typed, const std::vector<std::string>& names);

// ", did you mean 'x'?" or "", to be appended to an error.
std::string DidYouMean(absl::string_view typed, const std::vector<std::string>& names);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_SUGGEST_H_
