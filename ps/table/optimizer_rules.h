// From configuration to the kernels' rule and numbers; internal to ps/table.
//
// Scalars are computed in float64 from the decimals that the configuration shows, and rounded to
// float32 once: as PyTorch does with Python's floats.
#ifndef PARLEY_PS_TABLE_OPTIMIZER_RULES_H_
#define PARLEY_PS_TABLE_OPTIMIZER_RULES_H_

#include <cstdint>

#include "proto/experiment.pb.h"
#include "ps/table/optimizer_kernels.h"

namespace parley {

// REQUIRES for all: CheckOptimizer(config) is OK.
UpdateRule RuleOf(const pb::Optimizer& config);
int SlotsOf(UpdateRule rule);
// `lr`: of this step. `update`: how often the weights have been updated, this one included.
RuleScalars ScalarsOf(const pb::Optimizer& config, double lr, uint64_t update);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_OPTIMIZER_RULES_H_
