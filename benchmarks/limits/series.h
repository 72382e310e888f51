// Series: what one measurement gave, round by round, and the file in which measuring processes hand
// it over.
//
// A file has a line for each series, "series NAME UNIT value value ..." separated by tabs, and
// lines "note NAME TEXT" for what is no number. Lines are appended, so several measurements may
// share a file. Not thread-safe.
#ifndef PARLEY_BENCHMARKS_LIMITS_SERIES_H_
#define PARLEY_BENCHMARKS_LIMITS_SERIES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace parley {

struct Series {
  std::string name;            // "dense.push"; no tabs
  std::string unit;            // "GB/s", "us", "M/s"
  std::vector<double> values;  // one a round

  // 0 if there are no values. Of an even number the mean of the middle two.
  double median() const;
  double min() const;
  double max() const;
};

struct SeriesFile {
  std::vector<Series> series;
  std::map<std::string, std::string> notes;  // a later one of the same name replaces the former

  // Null if there is none of that name.
  const Series* Find(const std::string& name) const;
};

// Errors name the file and the system's reason.
absl::Status AppendSeries(const std::string& path, const Series& series);
absl::Status AppendNote(const std::string& path, const std::string& name, const std::string& text);

// kInvalidArgument names the file, the line and what is wrong with it.
absl::StatusOr<SeriesFile> ReadSeriesFile(const std::string& path);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_LIMITS_SERIES_H_
