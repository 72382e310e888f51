// The same experiment in one process, with no servers and no messages: a naive reference.
//
// The logical workers of the experiment take turns; their gradients are added in worker order by
// the same optimizer over the same partitions, and values go through the same codecs. Under BSP the
// weights have the same bits as those of the distributed run. Shares the data, the model, the
// codecs and the optimizer with it, and on purpose nothing of what trains there: client, trainer,
// server, aggregation.
#ifndef PARLEY_TOOLS_LOCAL_LOCAL_RUN_H_
#define PARLEY_TOOLS_LOCAL_LOCAL_RUN_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"

namespace parley {

struct LocalEpoch {
  uint32_t epoch = 0;  // from 0
  uint64_t step = 0;   // steps done at its end
  uint64_t train_samples = 0;
  double train_loss = 0, train_accuracy = 0;  // running means, or a full pass if so configured
  bool evaluated = false;                     // the values below are there
  double test_loss = 0, test_accuracy = 0;
};

struct LocalResult {
  uint64_t steps = 0;
  std::string weights_sha256;
  std::vector<float> weights;        // the dense table, tensors end to end
  pb::ServerCounts::Rows embedding;  // rows and digest of the sparse one; no table if there is none
  std::vector<LocalEpoch> epochs;
};

// Runs a resolved and valid experiment; `on_epoch` (may be empty) is called as each ends.
// kInvalidArgument: consistency other than BSP without backup workers, whose result depends on
// timing. Other errors: those of the data and the model.
absl::StatusOr<LocalResult> RunLocal(const pb::Experiment& experiment,
                                     const std::function<void(const LocalEpoch&)>& on_epoch = {});

}  // namespace parley

#endif  // PARLEY_TOOLS_LOCAL_LOCAL_RUN_H_
