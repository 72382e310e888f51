// Checks an optimizer's configuration; internal to ps/table.
#ifndef PARLEY_PS_TABLE_OPTIMIZER_CONFIG_H_
#define PARLEY_PS_TABLE_OPTIMIZER_CONFIG_H_

#include "absl/status/status.h"
#include "proto/experiment.pb.h"

namespace parley {

// kInvalidArgument: "optimizer.sgd.momentum is -1; allowed: ...", the first field that is wrong.
absl::Status CheckOptimizer(const pb::Optimizer& config);

// The same for the rows of sparse tables, which take every rule of dense tables, ftrl and
// row_adagrad. clip_norm is not looked at: rows are not clipped by norm.
absl::Status CheckRowOptimizer(const pb::Optimizer& config);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_OPTIMIZER_CONFIG_H_
