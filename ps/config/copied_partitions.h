// Which experiments cannot have copies of their partitions, and so neither `replicas` nor
// partitions that move while it trains: a move is a copy that takes over. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_COPIED_PARTITIONS_H_
#define PARLEY_PS_CONFIG_COPIED_PARTITIONS_H_

#include <string>

#include "proto/experiment.pb.h"

namespace parley {

// Clipping by norm where each worker has a norm of its own: a worker's ticks may overtake each
// other, so a partition may lack the total of one that those which had it have forgotten, and wait
// for it for ever.
bool NormsForbidCopies(const pb::Experiment& experiment);

// Pulls of changes where workers may be passed over: those read what is newest, even if no copy has
// it yet. If the copy takes over then, the step is made again, maybe of other pushes, under the
// same version, and changes are added to weights that they do not belong to.
bool ChangesForbidCopies(const pb::Experiment& experiment);

// "optimizer.clip_norm with mode ASP"; empty: partitions may be copied, and so may move.
std::string WhyPartitionsStay(const pb::Experiment& experiment);

// Whether a codec of this name sends changes, or what it lost before, along. By its default
// settings; false: or there is none of the name.
bool KeepsResidual(const std::string& codec);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_COPIED_PARTITIONS_H_
