// UpdateWorker: a worker of the simulation that does not train, but sends small updates that belong
// to no step (SparseTable::Update), a window of them always open, and then looks whether each is in
// the rows exactly once.
//
// Gradients are small whole numbers and the rule is SGD with a rate of 1 on rows that begin as
// zeros, so a row is minus the sum of its gradients, exact in float32 whatever the order. What any
// worker sends follows from the plan alone; so each can tell what the rows of all must be.
//
// Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_TESTS_SIM_UPDATE_WORKER_H_
#define PARLEY_TESTS_SIM_UPDATE_WORKER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "ps/base/env.h"
#include "ps/net/transport.h"

namespace parley {

struct UpdatePlan {
  static constexpr uint32_t kDim = 3;
  static constexpr uint64_t kKeys = 40;  // few, so that workers meet in rows

  struct Update {
    std::vector<uint64_t> keys;    // may repeat; now and then none
    std::vector<float> gradients;  // [keys, kDim]
  };

  uint64_t seed = 1;
  uint32_t workers = 1;
  uint32_t updates = 1;  // of each worker

  Update Nth(uint32_t rank, uint32_t n) const;
  // What every row must be in the end: key -> [kDim].
  std::map<uint64_t, std::vector<float>> FinalRows() const;
};

class UpdateWorker {
 public:
  struct Options {
    std::string scheduler, job, node_name;
    UpdatePlan plan;
    uint64_t max_request_bytes = uint64_t{1} << 20;
    std::function<void(std::string)> violation;  // a line for each row that is not as it must be
  };

  // As WorkerNode's.
  UpdateWorker(Env* env, Transport* transport, Options options,
               absl::AnyInvocable<void(absl::Status)> done);
  ~UpdateWorker();

  void Start();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_UPDATE_WORKER_H_
