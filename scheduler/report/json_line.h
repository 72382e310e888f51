// Writes one JSON object on one line. Not thread-safe.
//
//   JsonLine line;
//   line.Text("type", "epoch").Number("loss", 0.25).Count("epoch", 1);
//   line.str() == R"({"type": "epoch", "loss": 0.25, "epoch": 1})"
#ifndef PARLEY_SCHEDULER_REPORT_JSON_LINE_H_
#define PARLEY_SCHEDULER_REPORT_JSON_LINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace parley {

// `text` in quotes. Control characters, quotes and backslashes are escaped; bytes that are not
// UTF-8 become U+FFFD, since a log line of a peer may hold anything.
std::string JsonText(absl::string_view text);

// The shortest form that reads back to the same double; "null" if it is not finite, since JSON has
// no such numbers.
std::string JsonNumber(double value);

class JsonLine {
 public:
  JsonLine& Text(absl::string_view key, absl::string_view value);
  JsonLine& Number(absl::string_view key, double value);
  JsonLine& Count(absl::string_view key, uint64_t value);
  JsonLine& Flag(absl::string_view key, bool value);
  JsonLine& Raw(absl::string_view key, absl::string_view json);  // JSON as it is

  std::string str() const;       // on one line
  std::string Indented() const;  // one field a line

 private:
  std::vector<std::string> fields_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_JSON_LINE_H_
