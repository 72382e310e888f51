// What compute.placement asks of an experiment. The part of FindConfigProblems (validate.h) that is
// about it. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_VALIDATE_COMPUTE_H_
#define PARLEY_PS_CONFIG_VALIDATE_COMPUTE_H_

#include <vector>

#include "proto/experiment.pb.h"
#include "ps/config/validate.h"

namespace parley {

// What does not go with dense tables in a GPU's memory: a device that is none, what reads payload
// on the CPU, and transports that cannot lend.
void FindComputeProblems(const pb::Experiment& experiment, std::vector<ConfigProblem>* problems);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_VALIDATE_COMPUTE_H_
