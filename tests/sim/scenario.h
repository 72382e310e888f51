// Random scenarios: a seed decides the experiment, the cluster and the faults.
#ifndef PARLEY_TESTS_SIM_SCENARIO_H_
#define PARLEY_TESTS_SIM_SCENARIO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/cluster.h"

namespace parley {

// One line for people: "bsp, 2x1 servers, 3 workers, adam, loss 12% ...".
std::string Describe(const SimRun& run);

// `rare`: with AddRareFailures; without it, what seeds were when those of scenario_test.cc failed.
SimRun RandomScenario(uint64_t seed, bool rare = true);

// Runs the scenario of `seed` and everything there is to check about it; returns what is wrong, a
// line each:
//  - it ends well, in bounded virtual time (liveness once faults heal)
//  - SampleChecker: each epoch covers each sample once, counted
//  - HistoryChecker: exactly once, bounded staleness, acknowledged means durable
//  - where workers send updates that belong to no step: each is in the rows once (update_worker.h)
//  - BSP without backup workers: the same weights and rows, bit for bit, as a run with no faults on
//  another number of servers, and as the local run, which has no servers - whatever failed, except
//  where failure_scenarios.h says that it cannot be
//  - a checkpoint that is left can be resumed from, to the same end
std::vector<std::string> CheckSeed(uint64_t seed, bool verbose, bool rare = true);

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_SCENARIO_H_
