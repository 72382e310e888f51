// What an experiment will do, worked out before anything starts. Pure apart from reading the data.
#ifndef PARLEY_TOOLS_PARLEY_EXPLAIN_H_
#define PARLEY_TOOLS_PARLEY_EXPLAIN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "tools/parley/traffic.h"

namespace parley {

struct Explanation {
  struct Shard {
    uint32_t server = 0, shard = 0;
    std::vector<uint32_t> partitions;
    uint64_t elements = 0;
  };

  uint64_t train_samples = 0, test_samples = 0;
  std::string sample_shape;  // "[1, 28, 28]"
  uint32_t classes = 0;
  std::string device;

  pb::TableSpec table;
  uint64_t parameters = 0;
  uint32_t partitions = 0;
  std::vector<Shard> shards;

  uint64_t ticks_per_epoch = 0;            // of the worker with the most
  uint64_t steps = 0;                      // in all
  std::vector<uint64_t> rows_of_a_step;    // by worker, in a full step
  uint64_t rows_of_last_step = 0;          // over all workers, in an epoch's last
  uint64_t bytes_per_worker_and_step = 0;  // each way, of the dense table as float32
  Traffic traffic;                         // with codecs and frame headers
  int slots = 0;                           // floats that the optimizer keeps beside each weight
  double flops_per_sample = 0;
};

// REQUIRES: resolved and valid. Errors: as of loading the data and building the model.
absl::StatusOr<Explanation> Explain(const pb::Experiment& experiment);

// As text for people.
std::string ToText(const pb::Experiment& experiment, const Explanation& explanation);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_EXPLAIN_H_
