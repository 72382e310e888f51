// curves.svg: loss and accuracy per epoch as a picture, without any library. Pure, thread-safe.
#ifndef PARLEY_SCHEDULER_REPORT_CURVES_SVG_H_
#define PARLEY_SCHEDULER_REPORT_CURVES_SVG_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/report/run_observer.h"

namespace parley {

// Two panels side by side, train and test in each. Works with no epoch and with one; values that
// are not finite are left out. `title` may hold any characters.
std::string CurvesSvg(const std::string& title, absl::Span<const EpochMetrics> epochs);

// Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high] with about `count`
// steps; ascending, at least two. REQUIRES: finite, low <= high.
std::vector<double> NiceTicks(double low, double high, int count);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_CURVES_SVG_H_
