// What `parley bench` has found out, as a table for people and as JSON for plot.py.
//
// Not thread-safe.
#ifndef PARLEY_TOOLS_BENCH_BENCH_REPORT_H_
#define PARLEY_TOOLS_BENCH_BENCH_REPORT_H_

#include <string>
#include <utility>
#include <vector>

#include "benchmarks/limits/series.h"

namespace parley {

using Pairs = std::vector<std::pair<std::string, std::string>>;

// One measurement of a cluster, beside the limit that it is compared with.
struct BenchResult {
  std::string id;    // "dense 1MiB x8 shm"
  Pairs settings;    // of the plan
  std::string path;  // how payloads really travelled
  Series series;
  Series limit;  // of the same run; without values if there is none to compare with
  // Measured over limit, medians; 0 without a limit. For times it is the share of ours that the
  // limit would take, so that more is better everywhere.
  double ratio() const;
};

// What the project wants of one ratio of medians.
struct BenchTarget {
  std::string what;
  double got = 0, want = 0;
  bool at_most = false;  // got <= want; else got >= want
  bool measured = true;  // else `got` says nothing
  bool pass() const { return measured && (at_most ? got <= want : got >= want); }
};

struct BenchReport {
  Pairs conditions;
  std::vector<Series> limits;
  std::vector<BenchResult> results;
  std::vector<BenchTarget> targets;

  const BenchResult* Find(const std::string& id, const std::string& series) const;
  // Of the last measurement of that name; null if there is none.
  const Series* FindLimit(const std::string& name) const;

  std::string Table() const;
  std::string Json() const;
};

// The machine and what runs on it: CPU, cores, kernel, huge pages, load, versions, checkout, date.
// `bin` is where the programs are; its repository is the checkout.
Pairs MachineConditions(const std::string& bin);

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_BENCH_REPORT_H_
