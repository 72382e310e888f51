// "--set a.b=c": changes one field of an experiment by its path. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_OVERRIDES_H_
#define PARLEY_PS_CONFIG_OVERRIDES_H_

#include <string>

#include "absl/status/status.h"
#include "proto/experiment.pb.h"

namespace parley {

// `assignment` is "path=value". The path names fields from the experiment down, with an index for
// a repeated one: "cluster.workers=4", "model.layer[0].linear.out=5", "consistency.mode=SSP",
// "optimizer.adam={beta1: 0.8}", "optimizer.sgd={}". An index equal to the number of elements
// appends one. Naming a member of a oneof replaces the member that was there. Messages on the way
// are created. A message value is Protobuf text in braces and replaces the message.
//
// kInvalidArgument: "--set a.b=c: field 'a.b': what is wrong; allowed: ...". `experiment` is then
// unchanged.
absl::Status ApplyOverride(const std::string& assignment, pb::Experiment* experiment);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_OVERRIDES_H_
