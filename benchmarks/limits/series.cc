#include "benchmarks/limits/series.h"

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace parley {
namespace {

// Names and notes may hold anything; the file's own marks must not be among it.
std::string OneField(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\t", " "}, {"\n", " "}});
}

absl::Status AppendLine(const std::string& path, const std::string& line) {
  std::ofstream file(path, std::ios::app);
  file << line << '\n';
  file.close();
  if (file) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write results to '", path, "'"));
}

}  // namespace

double Series::median() const {
  if (values.empty()) return 0;
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

double Series::min() const {
  return values.empty() ? 0 : *std::min_element(values.begin(), values.end());
}

double Series::max() const {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

const Series* SeriesFile::Find(const std::string& name) const {
  for (const Series& one : series) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

absl::Status AppendSeries(const std::string& path, const Series& series) {
  std::string line = absl::StrCat("series\t", OneField(series.name), "\t", OneField(series.unit));
  // All digits: results of several files are added up before anything is rounded.
  for (double value : series.values) absl::StrAppendFormat(&line, "\t%.17g", value);
  return AppendLine(path, line);
}

absl::Status AppendNote(const std::string& path, const std::string& name, const std::string& text) {
  return AppendLine(path, absl::StrCat("note\t", OneField(name), "\t", OneField(text)));
}

absl::StatusOr<SeriesFile> ReadSeriesFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read results '", path, "'"));
  SeriesFile result;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const std::vector<std::string> fields = absl::StrSplit(line, '\t');
    const auto bad = [&](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s:%d: %s; allowed: 'series NAME UNIT VALUES' or 'note NAME TEXT', with tabs between",
          path, number, what));
    };
    if (fields.size() == 3 && fields[0] == "note") {
      result.notes[fields[1]] = fields[2];
      continue;
    }
    if (fields.size() < 3 || fields[0] != "series") return bad("is no result");
    Series series{fields[1], fields[2], {}};
    for (size_t i = 3; i < fields.size(); ++i) {
      if (!absl::SimpleAtod(fields[i], &series.values.emplace_back())) {
        return bad(absl::StrCat("'", fields[i], "' is no number"));
      }
    }
    result.series.push_back(std::move(series));
  }
  return result;
}

}  // namespace parley
