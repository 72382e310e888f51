#include "ps/config/suggest.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace parley {

size_t EditDistance(absl::string_view a, absl::string_view b) {
  // Three rows of the classic table: a swap looks two rows back.
  std::vector<size_t> two_back(b.size() + 1), previous(b.size() + 1), current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, substituted});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], two_back[j - 2] + 1);
      }
    }
    std::swap(two_back, previous);
    std::swap(previous, current);
  }
  return previous[b.size()];
}

std::string NearestName(absl::string_view typed, const std::vector<std::string>& names) {
  // A third of the letters may be wrong; beyond that a suggestion misleads more than it helps.
  size_t best = std::max<size_t>(1, typed.size() / 3) + 1;
  std::string nearest;
  for (const std::string& name : names) {
    size_t distance = EditDistance(typed, name);
    // "batch" for "global_batch": part of a name is as good as one letter off.
    const bool part = typed.size() >= 3 && absl::StrContains(name, typed);
    if (part) distance = std::min<size_t>(distance, 1);
    if (distance < best) best = distance, nearest = name;
  }
  return nearest;
}

std::string DidYouMean(absl::string_view typed, const std::vector<std::string>& names) {
  const std::string nearest = NearestName(typed, names);
  return nearest.empty() ? "" : absl::StrCat(", did you mean '", nearest, "'?");
}

}  // namespace parley
