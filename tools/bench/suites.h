// What `parley bench SUITE` measures: for each plan first the limits that it is compared with, then
// a cluster. Not thread-safe.
#ifndef PARLEY_TOOLS_BENCH_SUITES_H_
#define PARLEY_TOOLS_BENCH_SUITES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tools/bench/bench_host.h"
#include "tools/bench/bench_plan.h"
#include "tools/bench/bench_report.h"

namespace parley {

struct SuiteOptions {
  BenchPlan plan;                      // as the flags say; `load` is the suite's
  std::string experiment;              // epoch
  std::vector<std::string> overrides;  // epoch
};

// Names: dense, sparse, latency, rate, epoch, limits, all.
const std::vector<std::string>& SuiteNames();

// Adds to the report. Errors as BenchHost's; what was measured before stays in the report.
// REQUIRES: a known name.
absl::Status RunSuite(const std::string& name, const SuiteOptions& options, BenchHost* host,
                      BenchReport* report);

// The clusters of a suite, resolved; empty for epoch and limits.
std::vector<BenchPlan> SuitePlans(const std::string& name, const BenchPlan& plan);

// "dense 1MiB x8 shm": tells the plans of one report apart.
std::string PlanId(const BenchPlan& plan);

// The name of the limit that a series of this plan is compared with.
std::string LimitOf(const BenchPlan& plan, const std::string& series);

// What the project wants of the loads that the report has results of; not measured where it lacks
// the case that a target is about.
std::vector<BenchTarget> CheckTargets(const BenchReport& report);

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_SUITES_H_
