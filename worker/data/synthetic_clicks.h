// SyntheticClicks: clicks made from the seed, kept nowhere.
//
// Field f of a sample holds key f * keys_per_field + rank - 1 with `rank` from a Zipf distribution.
// Every key has a hidden weight; the label is 1 if the mean weight of a sample's keys plus noise is
// positive (a probit model), so that embeddings have something to find. Pure, thread-safe.
#ifndef PARLEY_WORKER_DATA_SYNTHETIC_CLICKS_H_
#define PARLEY_WORKER_DATA_SYNTHETIC_CLICKS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"
#include "worker/data/dataset.h"

namespace parley {

// `limit` 0: all samples. kInvalidArgument names the field, its value and what is allowed.
absl::StatusOr<std::unique_ptr<Dataset>> MakeSyntheticClicks(const pb::SyntheticClicks& config,
                                                             uint64_t seed, uint64_t limit,
                                                             bool train);

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_SYNTHETIC_CLICKS_H_
