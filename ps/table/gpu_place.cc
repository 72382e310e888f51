#include "ps/table/gpu_place.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Gpu>> CreateGpuFor(pb::Compute::Device device) {
  switch (device) {
    case pb::Compute::CUDA:
      return CreateCudaGpu(0);
    case pb::Compute::CUDA_SIMULATED:
      return CreateSimulatedGpu({});
    case pb::Compute::CPU:
      return absl::InvalidArgumentError(
          "compute.placement is GPU with compute.device CPU; allowed: device CUDA, CUDA_SIMULATED, "
          "or AUTO where there is a GPU");
    case pb::Compute::AUTO:
      break;
  }
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = CreateCudaGpu(0);
  if (gpu.ok()) return gpu;
  return absl::Status(
      gpu.status().code(),
      absl::StrCat("compute.placement is GPU and compute.device AUTO finds none: ",
                   gpu.status().message(), "; allowed: placement HOST, or device CUDA_SIMULATED"));
}

absl::Status StatusOf(const std::bad_alloc& failure, const std::string& no_memory) {
  if (dynamic_cast<const DeviceFailure*>(&failure) == nullptr) {
    return absl::ResourceExhaustedError(no_memory);
  }
  return absl::InternalError(failure.what());  // waiting does not mend a GPU
}

absl::StatusOr<std::unique_ptr<GpuPlace>> MakeGpuPlace(GpuMemory* memory,
                                                       pb::Compute::Device device) {
  absl::StatusOr<std::shared_ptr<Gpu>> gpu =
      memory->Open([device] { return CreateGpuFor(device); });
  if (!gpu.ok()) return gpu.status();
  if (absl::Status status = memory->CheckLending(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<GpuStream>> stream = (*gpu)->NewStream();
  if (!stream.ok()) return stream.status();
  auto place = std::make_unique<GpuPlace>();
  place->gpu = *std::move(gpu);
  place->stream = *std::move(stream);
  place->pool = memory->pool();
  return place;
}

}  // namespace parley
