// parley bench: what the data plane reaches on this machine, beside what the machine allows.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/config/suggest.h"
#include "scheduler/report/run_directory.h"
#include "tools/bench/bench_host.h"
#include "tools/bench/suites.h"
#include "tools/parley/child_process.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

struct BenchFlags {
  std::string suite, json;
  SuiteOptions options;
};

// The cluster's flags, in terms of an experiment's fields.
void AddOverrides(SuiteOptions* options) {
  const BenchPlan& plan = options->plan;
  std::vector<std::string> all = {
      absl::StrCat("cluster.servers=", plan.servers),
      absl::StrCat("cluster.workers=", plan.workers),
      absl::StrCat("cluster.shards_per_server=", plan.shards),
      absl::StrCat("cluster.transport=", absl::AsciiStrToUpper(plan.transport)),
  };
  if (plan.codec != "none") all.push_back("compression.push=" + plan.codec);
  if (plan.pull_codec != "none") all.push_back("compression.pull=" + plan.pull_codec);
  // What was said by name comes last, and so counts.
  all.insert(all.end(), options->overrides.begin(), options->overrides.end());
  options->overrides = std::move(all);
}

// Told before minutes are spent rather than after; what an earlier run has left stays.
absl::Status CheckWritable(const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::app)) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("--json ", path, ": cannot be written"));
}

absl::Status Check(const BenchFlags& flags) {
  const std::vector<std::string>& names = SuiteNames();
  if (std::find(names.begin(), names.end(), flags.suite) == names.end()) {
    return absl::InvalidArgumentError(absl::StrCat("unknown benchmark '", flags.suite, "'",
                                                   DidYouMean(flags.suite, names),
                                                   "; allowed: ", absl::StrJoin(names, ", ")));
  }
  for (const BenchPlan& plan : SuitePlans(flags.suite, flags.options.plan)) {
    if (absl::Status status = plan.Check(); !status.ok()) return status;
  }
  return CheckWritable(flags.json);
}

}  // namespace

int BenchCommand(const CommandArgs& args) {
  BenchFlags bench;
  bench.options.experiment = "experiments/fashion_mlp.textproto";
  FlagSet flags("parley bench",
                "Measures a cluster on this machine beside the machine's own limits.");
  flags
      .Argument("SUITE", &bench.suite,
                "dense, sparse, latency, rate, epoch, limits, or all of them but epoch")
      .Text("json", &bench.json, "FILE", "write the results with all conditions here")
      .Text("experiment", &bench.options.experiment, "FILE", "epoch: what is trained")
      .Repeated("set", &bench.options.overrides, "A.B=C", "epoch: changes a field of it");
  bench.options.plan.AddFlags(&flags);
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  bench.options.plan.load = bench.suite;
  if (absl::Status status = Check(bench); !status.ok()) return Complain(status, kExitUsage);
  if (bench.suite == "epoch") AddOverrides(&bench.options);

  absl::StatusOr<std::string> bin = ProgramDirectory();
  if (!bin.ok()) return Complain(bin.status(), kExitFailure);
  absl::StatusOr<std::unique_ptr<BenchHost>> host = BenchHost::Create(*bin);
  if (!host.ok()) return Complain(host.status(), kExitFailure);
  BenchReport report;
  report.conditions = MachineConditions(*bin);
  const absl::Status status = RunSuite(bench.suite, bench.options, host->get(), &report);
  // What was measured before a failure is still worth seeing.
  std::fputs(report.Table().c_str(), stdout);
  std::fflush(stdout);
  if (!status.ok()) {
    return Complain(status, absl::IsCancelled(status) ? kExitInterrupted : kExitFailure);
  }
  if (bench.json.empty()) return kExitOk;
  if (absl::Status s = WriteFileWhole(bench.json, report.Json()); !s.ok()) {
    return Complain(s, kExitFailure);
  }
  return kExitOk;
}

}  // namespace parley
