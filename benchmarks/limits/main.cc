// parley-limits: what this machine can do at best; `parley bench` starts it beside what it
// measures.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "benchmarks/limits/key_pool.h"
#include "benchmarks/limits/limits.h"
#include "ps/config/flags.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-limits";
constexpr size_t kMiB = size_t{1} << 20;

using Results = absl::StatusOr<std::vector<Series>>;

struct Flags {
  std::string only, out, distribution = "uniform";
  uint32_t rounds = 5, milliseconds = 200, keys = 100'000, rows = 10'000'000, dim = 16;
  uint32_t bytes = 0, in_flight = 1;
};

Results One(Series series) { return std::vector<Series>{std::move(series)}; }
Results One(absl::StatusOr<Series> series) {
  if (!series.ok()) return series.status();
  return One(*std::move(series));
}

// At the size that is asked for, or at 1 MiB and 64 MiB.
std::vector<size_t> Sizes(const Flags& flags) {
  return flags.bytes > 0 ? std::vector<size_t>{flags.bytes} : std::vector<size_t>{kMiB, 64 * kMiB};
}

Results Memcpy(const Flags& flags, LimitOptions options) {
  std::vector<Series> all;
  for (size_t bytes : Sizes(flags)) {
    for (int threads : {1, 2}) {
      all.push_back(MeasureMemcpy(absl::StrCat("memcpy.", SizeName(bytes), ".", threads, "t"),
                                  bytes, threads, options));
    }
  }
  return all;
}

Results TwoPass(const Flags& flags, LimitOptions options) {
  std::vector<Series> all;
  for (size_t bytes : Sizes(flags)) {
    // One vector over and over, and as many as are in flight; of a large one there is one.
    std::vector<int> sets = {1};
    const int in_flight = flags.bytes > 0 ? static_cast<int>(flags.in_flight) : 8;
    if (in_flight > 1 && bytes * in_flight <= 64 * kMiB) sets.push_back(in_flight);
    for (int set : sets) {
      for (int threads : {1, 2}) {
        all.push_back(
            MeasureTwoPass(absl::StrCat("two_pass.", SizeName(bytes),
                                        set > 1 ? absl::StrCat("x", set) : "", ".", threads, "t"),
                           bytes, set, threads, options));
      }
    }
  }
  return all;
}

Results BareTable(const Flags& flags, LimitOptions options) {
  BareTableOptions table{.rows = flags.rows, .keys = flags.keys, .dim = flags.dim};
  absl::StatusOr<double> zipf = KeyPool::ParseDistribution(flags.distribution);
  if (!zipf.ok()) return zipf.status();
  table.zipf = *zipf;
  return MeasureBareTable("bare_table", table, options);
}

struct Limit {
  const char* name;
  Results (*measure)(const Flags&, LimitOptions);
};
const Limit kLimits[] = {
    {"memcpy", Memcpy},
    {"two_pass", TwoPass},
    {"futex", [](const Flags&, LimitOptions o) { return One(MeasureFutexPingPong("futex", o)); }},
    {"tcp",
     [](const Flags&, LimitOptions o) { return One(MeasureTcpStream("tcp.1MiB", kMiB, o)); }},
    {"zmq_stream",
     [](const Flags&, LimitOptions o) {
       return One(MeasureZmqStream("zmq_stream.1MiB", kMiB, o));
     }},
    {"zmq_rate",
     [](const Flags&, LimitOptions o) { return One(MeasureZmqRate("zmq_rate.64B", 64, o)); }},
    {"bare_table", BareTable},
};

absl::StatusOr<std::vector<std::string>> Chosen(const std::string& only) {
  std::vector<std::string> names;
  for (const Limit& limit : kLimits) names.push_back(limit.name);
  if (only.empty()) return names;
  std::vector<std::string> chosen = absl::StrSplit(only, ',');
  for (const std::string& name : chosen) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--only: unknown limit '", name,
                                                     "'; allowed: ", absl::StrJoin(names, ", ")));
    }
  }
  return chosen;
}

absl::Status Measure(const Flags& flags, const std::vector<std::string>& chosen) {
  const LimitOptions options{.rounds = flags.rounds, .seconds = flags.milliseconds * 1e-3};
  for (const Limit& limit : kLimits) {
    if (std::find(chosen.begin(), chosen.end(), limit.name) == chosen.end()) continue;
    const Results results = limit.measure(flags, options);
    if (!results.ok()) return results.status();
    for (const Series& series : *results) {
      std::printf("%-24s %10.3f %-8s (%.3f to %.3f)\n", series.name.c_str(), series.median(),
                  series.unit.c_str(), series.min(), series.max());
      std::fflush(stdout);
      if (flags.out.empty()) continue;
      if (absl::Status status = AppendSeries(flags.out, series); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set(kProgram, "Measures what this machine can do at best: memory, wake-ups, sockets.");
  set.Text("only", &flags.only, "NAMES",
           "memcpy, two_pass, futex, tcp, zmq_stream, zmq_rate, bare_table; commas between; else "
           "all")
      .Number("rounds", &flags.rounds, 1, 1000, "values of each")
      .Number("milliseconds", &flags.milliseconds, 1, 60'000, "of a round")
      .OptionalNumber("bytes", &flags.bytes, 4096, 1u << 30,
                      "memcpy, two_pass: size of a vector; else 1 MiB and 64 MiB")
      .Number("in-flight", &flags.in_flight, 1, 64, "two_pass: vectors that take turns")
      .Number("rows", &flags.rows, 1, 200'000'000, "bare_table: rows of the table")
      .Number("keys", &flags.keys, 1, 1'000'000, "bare_table: keys of a request")
      .Number("dim", &flags.dim, 1, 4096, "bare_table: floats of a row")
      .Text("distribution", &flags.distribution, "NAME", "bare_table: uniform or zipf:S")
      .Text("out", &flags.out, "FILE", "append the values here, for parley bench");
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  const absl::StatusOr<std::vector<std::string>> chosen = Chosen(flags.only);
  if (!chosen.ok()) {
    std::fprintf(stderr, "%s: %s\n", kProgram, std::string(chosen.status().message()).c_str());
    return 2;
  }
  const absl::Status status = Measure(flags, *chosen);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", kProgram, std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
