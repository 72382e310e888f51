#include "worker/gpu_seat.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/cpu/cpu_device.h"
#include "models/gpu/gpu_device.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/gpu_mover.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {
namespace {

GemmMath MathOf(pb::Compute::Math math) {
  switch (math) {
    case pb::Compute::FP32:
      return GemmMath::kFp32;
    case pb::Compute::BF16:
      return GemmMath::kBf16;
    case pb::Compute::TF32:
      break;
  }
  return GemmMath::kTf32;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> GpuSeat::MakeDevice(const pb::Experiment& experiment) {
  if (!std::exchange(looked_, true)) {
    absl::Status status = Find(experiment.compute());
    if (!status.ok()) return status;
  }
  if (gpu_ != nullptr) {
    return CreateGpuDevice(gpu_, {.math = MathOf(experiment.compute().gpu_math()),
                                  .graphs = experiment.compute().gpu_graphs()});
  }
  return CreateCpuDevice({.threads = experiment.cluster().compute_threads()});
}

absl::Status GpuSeat::Find(const pb::Compute& config) {
  const pb::Compute::Device wanted = config.device();
  if (wanted == pb::Compute::CPU) return absl::OkStatus();
  if (wanted == pb::Compute::CUDA_SIMULATED) {
    absl::Status opened =
        Open([]() -> absl::StatusOr<std::unique_ptr<Gpu>> { return CreateSimulatedGpu({}); });
    if (!opened.ok()) {
      looked_ = false;
      return opened;
    }
  } else if (absl::Status status = FindCuda(config); !status.ok()) {
    looked_ = false;
    claim_ = GpuClaim();
    if (config.placement() == pb::Compute::GPU) {
      return absl::Status(status.code(),
                          absl::StrCat(status.message(),
                                       "; allowed without a GPU is compute.placement HOST, with "
                                       "device AUTO or CPU"));
    }
    if (wanted == pb::Compute::AUTO && !options_.index.has_value()) {
      looked_ = true;
      note_ = absl::StrCat("no GPU: ", status.message());
      return absl::OkStatus();
    }
    return absl::Status(
        status.code(),
        absl::StrFormat("%s; allowed without a GPU is compute.device AUTO or CPU, here it is %s",
                        status.message(), pb::Compute::Device_Name(wanted)));
  }
  Pin();
  return absl::OkStatus();
}

absl::Status GpuSeat::FindCuda(const pb::Compute& config) {
  const absl::StatusOr<std::vector<GpuInfo>> gpus = ListCudaGpus();
  if (!gpus.ok()) return gpus.status();
  size_t index = 0;
  if (options_.index.has_value()) {
    index = *options_.index;
    if (index >= gpus->size()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--gpu is %d, allowed is 0..%d: this process sees so many GPUs (CUDA_VISIBLE_DEVICES "
          "decides)",
          index, gpus->size() - 1));
    }
    if (config.placement() == pb::Compute::GPU && index != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--gpu is %d, allowed with compute.placement GPU is 0, where the servers are", index));
    }
  } else if (config.placement() != pb::Compute::GPU) {  // else where the servers are: the first
    std::vector<std::string> uuids;
    for (const GpuInfo& gpu : *gpus) uuids.push_back(gpu.uuid);
    claim_ = GpuClaim(uuids);
    index = claim_.index();
    if (claim_.others() > 0) {
      note_ = absl::StrFormat("shares its GPU with %d worker%s", claim_.others(),
                              claim_.others() == 1 ? "" : "s");
    }
  }
  return Open([index] { return CreateCudaGpu(static_cast<int>(index)); });
}

absl::Status GpuSeat::Open(const std::function<absl::StatusOr<std::unique_ptr<Gpu>>()>& make) {
  absl::StatusOr<std::shared_ptr<Gpu>> gpu = memory_->Open(make);
  if (gpu.ok()) gpu_ = *std::move(gpu);
  return gpu.status();
}

absl::StatusOr<std::unique_ptr<PayloadMover>> GpuSeat::MakeMover() {
  if (absl::Status status = memory_->CheckLending(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<GpuStream>> stream = gpu_->NewStream();
  if (!stream.ok()) return stream.status();
  return std::make_unique<GpuMover>(memory_->arenas(), *std::move(stream));
}

// What cannot be pinned is copied more slowly, and nothing else. The arenas may outlive the seat.
void GpuSeat::Pin() {
  if (options_.arenas == nullptr) return;
  // Arenas come later, on other threads: whether it can be done is tried here.
  alignas(4096) static char page[4096];
  if (absl::Status status = gpu_->Pin(page, sizeof(page)); status.ok()) {
    gpu_->Unpin(page);
  } else {
    absl::StrAppend(&note_, note_.empty() ? "" : "; ", "memory is not pinned: ", status.message());
  }
  options_.arenas->Watch(
      [gpu = gpu_](std::byte* memory, size_t size) { gpu->Pin(memory, size).IgnoreError(); });
}

}  // namespace parley
