// The hash of final weights, by which runs are compared.
#ifndef PARLEY_WORKER_WEIGHTS_HASH_H_
#define PARLEY_WORKER_WEIGHTS_HASH_H_

#include <string>

#include "absl/status/statusor.h"
#include "ps/base/buffer.h"
#include "worker/workload.h"

namespace parley {

// SHA-256 of the float32 bytes, in hexadecimal. Weights in device memory are copied from it by the
// workload's device, whose error it may be. Off the loop, when nobody else uses the workload.
absl::StatusOr<std::string> HashWeights(const Workload& workload, const Buffer& weights);

}  // namespace parley

#endif  // PARLEY_WORKER_WEIGHTS_HASH_H_
