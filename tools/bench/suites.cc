#include "tools/bench/suites.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "benchmarks/limits/limits.h"

namespace parley {
namespace {

constexpr uint32_t kKiB = 1024, kMiB = kKiB * kKiB;

bool OverSockets(const BenchPlan& plan) {
  return plan.transport == "tcp" || plan.transport == "ipc";
}

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// What parley-limits has to measure for a plan.
std::vector<std::string> LimitArgs(const BenchPlan& plan) {
  std::vector<std::string> only;
  if (plan.load == "dense") {
    only = {"memcpy", "two_pass"};
    if (OverSockets(plan)) only = {"zmq_stream", "two_pass"};
  } else if (plan.load == "latency") {
    only = {"futex"};
  } else if (plan.load == "rate") {
    only = {"zmq_rate"};
  } else {
    only = {"bare_table"};
  }
  std::vector<std::string> args = {"--only=" + absl::StrJoin(only, ",")};
  if (plan.load == "dense") {
    args.push_back(absl::StrCat("--bytes=", std::max(plan.bytes, 4 * kKiB)));
    args.push_back(absl::StrCat("--in-flight=", plan.in_flight));
  }
  if (plan.load == "sparse") {
    args.push_back(absl::StrCat("--rows=", plan.table_keys));
    args.push_back(absl::StrCat("--keys=", plan.keys));
    args.push_back(absl::StrCat("--dim=", plan.dim));
    args.push_back("--distribution=" + plan.distribution);
  }
  // Before and after together at least as many as the cluster's.
  args.push_back(absl::StrCat("--rounds=", (plan.rounds + 1) / 2));
  return args;
}

// Measures limits and adds their values to those in `limits`.
absl::Status MeasureLimits(const std::vector<std::string>& args, BenchHost* host,
                           std::vector<Series>* limits) {
  absl::StatusOr<SeriesFile> measured = host->RunLimits(args);
  if (!measured.ok()) return measured.status();
  for (const Series& series : measured->series) {
    auto same = std::find_if(limits->begin(), limits->end(),
                             [&](const Series& one) { return one.name == series.name; });
    if (same == limits->end()) {
      limits->push_back(series);
    } else {
      same->values.insert(same->values.end(), series.values.begin(), series.values.end());
    }
  }
  return absl::OkStatus();
}

// Limits are measured before and after what is compared with them: a machine that is shared may
// change its speed in between, and then the ratio is to the mean of both.
absl::Status RunPlan(const BenchPlan& plan, BenchHost* host, BenchReport* report) {
  const std::string id = PlanId(plan);
  std::vector<Series> limits;
  Say(absl::StrFormat("%s: limits", id));
  if (absl::Status s = MeasureLimits(LimitArgs(plan), host, &limits); !s.ok()) return s;
  Say(absl::StrFormat("%s: %d servers, %d workers", id, plan.servers, plan.workers));
  absl::StatusOr<SeriesFile> measured = host->RunCluster(plan);
  if (!measured.ok()) {
    return absl::Status(measured.status().code(),
                        absl::StrCat(id, ": ", measured.status().message()));
  }
  Say(absl::StrFormat("%s: limits again", id));
  if (absl::Status s = MeasureLimits(LimitArgs(plan), host, &limits); !s.ok()) return s;
  report->limits.insert(report->limits.end(), limits.begin(), limits.end());
  for (const Series& series : measured->series) {
    BenchResult result{id, plan.Settings(), measured->notes["path"], series, {}};
    const Series* limit = report->FindLimit(LimitOf(plan, series.name));
    if (limit != nullptr && series.unit != "") result.limit = *limit;
    report->results.push_back(std::move(result));
  }
  return absl::OkStatus();
}

absl::Status RunEpochs(const SuiteOptions& options, BenchHost* host, BenchReport* report) {
  absl::StatusOr<std::vector<EpochMetrics>> epochs =
      host->RunExperiment(options.experiment, options.overrides);
  if (!epochs.ok()) return epochs.status();
  Series seconds{"epoch", "s", {}}, accuracy{"test_accuracy", "", {}};
  for (const EpochMetrics& epoch : *epochs) {
    seconds.values.push_back(epoch.train_seconds);
    if (epoch.evaluated) accuracy.values.push_back(epoch.test_accuracy);
  }
  const Pairs settings = {{"experiment", options.experiment},
                          {"set", absl::StrJoin(options.overrides, " ")}};
  report->results.push_back({"epoch", settings, "", seconds, {}});
  report->results.push_back({"epoch", settings, "", accuracy, {}});
  return absl::OkStatus();
}

// All that the targets and the plots need.
std::vector<BenchPlan> AllPlans(const BenchPlan& base) {
  std::vector<BenchPlan> plans;
  const auto add = [&](const char* load, const char* transport) -> BenchPlan& {
    plans.push_back(base);
    plans.back().load = load;
    plans.back().transport = transport;
    return plans.back();
  };
  for (const char* transport : {"shm", "tcp"}) {
    for (uint32_t bytes : {64 * kKiB, kMiB, 16 * kMiB, 64 * kMiB}) {
      add("dense", transport).bytes = bytes;
    }
    add("latency", transport);
    add("rate", transport);
    add("sparse", transport);
  }
  add("sparse", "shm").distribution = "zipf:1.05";
  for (uint32_t bytes : {kMiB, 64 * kMiB}) {
    BenchPlan& plan = add("dense", "shm");
    plan.bytes = bytes;
    plan.servers = plan.workers = 2;
  }
  return plans;
}

}  // namespace

const std::vector<std::string>& SuiteNames() {
  static const auto* const names =
      new std::vector<std::string>{"dense", "sparse", "latency", "rate", "epoch", "limits", "all"};
  return *names;
}

std::string PlanId(const BenchPlan& plan) {
  std::string id = plan.load;
  if (!plan.sparse()) absl::StrAppend(&id, " ", SizeName(plan.bytes));
  if (plan.load == "dense" && plan.in_flight > 1) absl::StrAppend(&id, " x", plan.in_flight);
  if (plan.load == "sparse") absl::StrAppend(&id, " ", plan.distribution);
  absl::StrAppend(&id, " ", plan.transport);
  if (plan.servers > 1 || plan.workers > 1) {
    absl::StrAppend(&id, " ", plan.servers, "+", plan.workers);
  }
  if (plan.codec != "none") absl::StrAppend(&id, " ", plan.codec);
  return id;
}

std::string LimitOf(const BenchPlan& plan, const std::string& series) {
  if (plan.load == "latency") return "futex";
  if (plan.load == "rate") return "zmq_rate.64B";
  if (plan.load == "sparse") return "bare_table." + series;
  if (OverSockets(plan)) return "zmq_stream.1MiB";
  const bool both = series == "push_then_pull" || series == "push_pull";
  return absl::StrCat(both ? "two_pass." : "memcpy.", SizeName(plan.bytes), ".1t");
}

std::vector<BenchPlan> SuitePlans(const std::string& name, const BenchPlan& plan) {
  std::vector<BenchPlan> plans;
  if (name == "all") {
    plans = AllPlans(plan);
  } else if (name == "dense" && plan.bytes == 0) {
    for (uint32_t bytes : {64 * kMiB, kMiB}) {
      plans.push_back(plan);
      plans.back().bytes = bytes;
    }
  } else if (name != "epoch" && name != "limits") {
    plans.push_back(plan);
  }
  const auto cores = static_cast<uint32_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  for (BenchPlan& one : plans) one.Resolve(cores);
  return plans;
}

absl::Status RunSuite(const std::string& name, const SuiteOptions& options, BenchHost* host,
                      BenchReport* report) {
  if (name == "epoch") return RunEpochs(options, host, report);
  if (name == "limits") {
    return MeasureLimits({absl::StrCat("--rounds=", options.plan.rounds)}, host, &report->limits);
  }
  const std::vector<BenchPlan> plans = SuitePlans(name, options.plan);
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans.size() > 1) Say(absl::StrFormat("[%d/%d]", i + 1, plans.size()));
    if (absl::Status status = RunPlan(plans[i], host, report); !status.ok()) return status;
  }
  report->targets = CheckTargets(*report);
  return absl::OkStatus();
}

std::vector<BenchTarget> CheckTargets(const BenchReport& report) {
  std::vector<BenchTarget> targets;
  // Flags make other cases of a load than those that targets are about. That must not look as if
  // there were no target; for a load that was not asked for there is nothing to say.
  const auto missing = [&](const std::string& id, BenchTarget target) {
    const std::string load = id.substr(0, id.find(' ') + 1);
    const auto& results = report.results;
    if (std::none_of(results.begin(), results.end(), [&](const BenchResult& result) {
          return absl::StartsWith(result.id, load);
        })) {
      return;
    }
    target.measured = false;
    targets.push_back(std::move(target));
  };
  const auto at_least = [&](const std::string& id, const char* series, double want,
                            const char* what) {
    BenchTarget target{absl::StrCat(id, ", ", series, ": share of ", what), 0, want};
    const BenchResult* result = report.Find(id, series);
    if (result == nullptr || result->limit.values.empty()) return missing(id, std::move(target));
    target.got = result->ratio();
    targets.push_back(std::move(target));
  };
  at_least("dense 64MiB shm", "push_then_pull", 0.6, "the two-pass limit");
  at_least("dense 1MiB x8 shm", "push_then_pull", 0.4, "the two-pass limit");
  BenchTarget trip{"latency 4KiB shm, push_pull p50: times a futex ping-pong", 0, 1.5, true};
  const BenchResult* result = report.Find("latency 4KiB shm", "push_pull.p50");
  if (result != nullptr && result->ratio() > 0) {
    trip.got = 1 / result->ratio();
    targets.push_back(std::move(trip));
  } else {
    missing("latency 4KiB shm", std::move(trip));
  }
  at_least("dense 1MiB x8 tcp", "push", 0.8, "raw ZeroMQ");
  at_least("rate tcp", "update", 0.5, "raw ZeroMQ's 64-byte messages");
  at_least("rate shm", "update", 0.5, "raw ZeroMQ's 64-byte messages");
  BenchTarget faster{"rate shm, update: times that over tcp", 0, 1.0};
  const BenchResult* tcp = report.Find("rate tcp", "update");
  const BenchResult* shm = report.Find("rate shm", "update");
  if (tcp != nullptr && shm != nullptr && tcp->series.median() > 0) {
    faster.got = shm->series.median() / tcp->series.median();
    targets.push_back(std::move(faster));
  } else {
    missing("rate shm", std::move(faster));
  }
  for (const char* distribution : {"uniform", "zipf:1.05"}) {
    for (const char* series : {"pull", "push"}) {
      at_least(absl::StrCat("sparse ", distribution, " shm"), series, 0.5, "the bare table");
    }
  }
  return targets;
}

}  // namespace parley
