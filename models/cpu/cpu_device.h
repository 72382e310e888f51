// The CPU device: convolution and GEMM by oneDNN where it was built in, else by Eigen.
//
// Every operation is done when its call returns; Sync only reports.
#ifndef PARLEY_MODELS_CPU_CPU_DEVICE_H_
#define PARLEY_MODELS_CPU_CPU_DEVICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "models/device.h"

namespace parley {

struct CpuDeviceOptions {
  // Threads that oneDNN uses, the caller's among them; 1..256. The number is part of what decides
  // the bits of the result. More than the cores the process may use is slow. Eigen uses one.
  uint32_t threads = 1;
  // false: Eigen even if oneDNN is there; about half as fast on convolutions.
  bool use_onednn = true;
};

// kInvalidArgument: `threads` out of range.
absl::StatusOr<std::unique_ptr<Device>> CreateCpuDevice(const CpuDeviceOptions& options);

}  // namespace parley

#endif  // PARLEY_MODELS_CPU_CPU_DEVICE_H_
