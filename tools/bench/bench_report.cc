#include "tools/bench/bench_report.h"

#include <sys/utsname.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "scheduler/report/json_line.h"

namespace parley {
namespace {

// Cut for people; all digits are in the files that processes hand over.
double Rounded(double value) {
  return std::strtod(absl::StrFormat("%.5g", value).c_str(), nullptr);
}

std::string ValuesJson(const std::vector<double>& values) {
  return absl::StrCat("[",
                      absl::StrJoin(values, ", ",
                                    [](std::string* out, double value) {
                                      out->append(JsonNumber(Rounded(value)));
                                    }),
                      "]");
}

JsonLine SeriesJson(const Series& series) {
  JsonLine line;
  line.Text("name", series.name)
      .Text("unit", series.unit)
      .Number("median", Rounded(series.median()))
      .Number("min", Rounded(series.min()))
      .Number("max", Rounded(series.max()))
      .Raw("values", ValuesJson(series.values));
  return line;
}

std::string PairsJson(const Pairs& pairs) {
  JsonLine line;
  for (const auto& [name, value] : pairs) line.Text(name, value);
  return line.str();
}

std::string ResultJson(const BenchResult& result) {
  JsonLine line = SeriesJson(result.series);
  line.Text("id", result.id).Text("path", result.path).Raw("settings", PairsJson(result.settings));
  if (result.limit.values.empty()) return line.str();
  return line.Text("limit", result.limit.name)
      .Number("limit_median", Rounded(result.limit.median()))
      .Number("ratio", Rounded(result.ratio()))
      .str();
}

std::string TargetJson(const BenchTarget& target) {
  return JsonLine()
      .Text("what", target.what)
      .Number("got", Rounded(target.got))
      .Text("sense", target.at_most ? "at most" : "at least")
      .Number("want", target.want)
      .Flag("pass", target.pass())
      .str();
}

// Without a number, which a target that was not measured has none of.
std::string MissingJson(const BenchTarget& target) {
  return JsonLine()
      .Text("what", target.what)
      .Text("sense", target.at_most ? "at most" : "at least")
      .Number("want", target.want)
      .str();
}

template <typename T, typename ToJson>
std::string ListJson(const std::vector<T>& list, ToJson to_json) {
  if (list.empty()) return "[]";
  return absl::StrCat(
      "[\n    ",
      absl::StrJoin(list, ",\n    ",
                    [&](std::string* out, const T& one) { out->append(to_json(one)); }),
      "\n  ]");
}

// The part after "name : " of the first line of a file that begins with `name`; the whole first
// line if `name` is empty.
std::string LineOf(const char* path, absl::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (name.empty()) return line;
    if (line.compare(0, name.size(), name.data(), name.size()) != 0) continue;
    return std::string(absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
  }
  return "unknown";
}

// What a command prints first; it is git that knows what has been checked out.
std::string FirstLineOf(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "unknown";
  char line[256] = "";
  const bool read = std::fgets(line, sizeof(line), pipe) != nullptr;
  pclose(pipe);
  return read ? std::string(absl::StripAsciiWhitespace(line)) : "unknown";
}

}  // namespace

double BenchResult::ratio() const {
  const double ours = series.median(), best = limit.median();
  if (ours <= 0 || best <= 0) return 0;
  return series.unit == "us" ? best / ours : ours / best;
}

const BenchResult* BenchReport::Find(const std::string& id, const std::string& series) const {
  for (const BenchResult& result : results) {
    if (result.id == id && result.series.name == series) return &result;
  }
  return nullptr;
}

const Series* BenchReport::FindLimit(const std::string& name) const {
  for (auto it = limits.rbegin(); it != limits.rend(); ++it) {
    if (it->name == name) return &*it;
  }
  return nullptr;
}

std::string BenchReport::Table() const {
  std::string text;
  if (!results.empty()) {
    absl::StrAppendFormat(&text, "\n%-30s %-16s %10s %-8s %21s   %s\n", "", "", "median", "",
                          "least to most", "share of the limit");
  }
  std::string last;
  for (const BenchResult& result : results) {
    const Series& series = result.series;
    absl::StrAppendFormat(&text, "%-30s %-16s %10.3f %-8s %21s", result.id == last ? "" : result.id,
                          series.name, series.median(), series.unit,
                          absl::StrFormat("%.3f to %.3f", series.min(), series.max()));
    last = result.id;
    if (!result.limit.values.empty()) {
      absl::StrAppendFormat(&text, "   %.2f of %s (%.3f)", result.ratio(), result.limit.name,
                            result.limit.median());
    }
    text += "\n";
  }
  if (!targets.empty()) text += "\n";
  for (const BenchTarget& target : targets) {
    const char* const sense = target.at_most ? "<=" : ">=";
    if (target.measured) {
      absl::StrAppendFormat(&text, "%-8s %-74s %.2f, wanted %s %.2f\n",
                            target.pass() ? "PASS" : "short of", target.what, target.got, sense,
                            target.want);
    } else {
      absl::StrAppendFormat(&text, "%-8s %-74s not measured, wanted %s %.2f\n", "-", target.what,
                            sense, target.want);
    }
  }
  return text;
}

std::string BenchReport::Json() const {
  std::vector<BenchTarget> measured;
  std::vector<BenchTarget> missing;
  for (const BenchTarget& target : targets)
    (target.measured ? measured : missing).push_back(target);
  return absl::StrCat(
      "{\n  \"benchmark\": \"bench\",\n  \"conditions\": ", PairsJson(conditions),
      ",\n  \"limits\": ", ListJson(limits, [](const Series& s) { return SeriesJson(s).str(); }),
      ",\n  \"results\": ", ListJson(results, ResultJson),
      ",\n  \"targets\": ", ListJson(measured, TargetJson),
      ",\n  \"targets_not_measured\": ", ListJson(missing, MissingJson), "\n}\n");
}

Pairs MachineConditions(const std::string& bin) {
  Pairs conditions;
  utsname system{};
  uname(&system);
  int major = 0, minor = 0, patch = 0;
  zmq_version(&major, &minor, &patch);
  conditions.emplace_back("cpu", LineOf("/proc/cpuinfo", "model name"));
  conditions.emplace_back("cores", absl::StrCat(sysconf(_SC_NPROCESSORS_ONLN)));
  conditions.emplace_back("kernel", system.release);
  conditions.emplace_back("memory", LineOf("/proc/meminfo", "MemTotal"));
  conditions.emplace_back("huge_pages", LineOf("/sys/kernel/mm/transparent_hugepage/enabled", ""));
  conditions.emplace_back("huge_pages_shared",
                          LineOf("/sys/kernel/mm/transparent_hugepage/shmem_enabled", ""));
  conditions.emplace_back("load_at_start", LineOf("/proc/loadavg", ""));
  conditions.emplace_back("libzmq", absl::StrFormat("%d.%d.%d", major, minor, patch));
  conditions.emplace_back("compiler", absl::StrCat("g++ ", __VERSION__));
  conditions.emplace_back("checkout", FirstLineOf(absl::StrCat("git -C '", bin,
                                                               "' describe --always --dirty "
                                                               "--exclude '*' 2>/dev/null")));
  conditions.emplace_back("date",
                          absl::FormatTime("%Y-%m-%d %H:%M UTC", absl::Now(), absl::UTCTimeZone()));
  return conditions;
}

}  // namespace parley
