// Random failures for a random scenario, by profile, so that one that goes wrong can be read.
#ifndef PARLEY_TESTS_SIM_FAILURE_SCENARIOS_H_
#define PARLEY_TESTS_SIM_FAILURE_SCENARIOS_H_

#include <string>
#include <vector>

#include "tests/sim/cluster.h"
#include "tests/sim/draw.h"

namespace parley {

// Draws what fails in `run`, and changes its experiment so that it is to survive that: copies,
// checkpoints, patience.
void AddFailures(Draw& draw, SimRun* run);

// Some more for some of the runs that AddFailures was called for, of the kinds that are rare
// otherwise; drawn apart, so that all else about a seed stays what it was. Primaries that go on
// though they are replaced, processes that die for good, slow links, a bad disk of the scheduler.
void AddRareFailures(SimRun* run);

// "; server copies 1, process 0 crashes ...".
std::string DescribeFailures(const SimRun& run);

// Whether the weights and rows of the run must be those of a run in which nothing failed, bit for
// bit. REQUIRES: it ended well.
bool MustBeExact(const SimRun& run, const SimOutcome& outcome);

// What is wrong with the checkpoints that the run has left: a line each. The newest that is whole
// is resumed from, on another number of servers, and must come to the same end if the run
// `is_exact`.
std::vector<std::string> CheckCheckpoints(const SimRun& run, const SimOutcome& outcome,
                                          bool is_exact);

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_FAILURE_SCENARIOS_H_
