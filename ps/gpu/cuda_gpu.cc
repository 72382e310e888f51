#include "ps/gpu/cuda_gpu.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "ps/gpu/cuda_blas.h"
#include "ps/gpu/cuda_memory.h"
#include "ps/gpu/cuda_status.h"
#include "ps/gpu/cuda_stream.h"

namespace parley {
namespace {

// The least compute capability that PARLEY_CUDA_ARCHITECTURES has code for.
constexpr int kLeastMajor = 8;

std::string Version(int cuda_version) {
  return absl::StrFormat("%d.%d", cuda_version / 1000, cuda_version % 1000 / 10);
}

absl::Status WhyNone(cudaError_t error) {
  (void)cudaGetLastError();
  switch (error) {
    case cudaErrorNoDevice:
      return absl::UnavailableError(
          "this machine has no GPU of NVIDIA, or CUDA_VISIBLE_DEVICES hides it");
    case cudaErrorInsufficientDriver: {  // also said where there is no driver at all
      int driver = 0;
      if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        return absl::UnavailableError("NVIDIA's driver is not installed (libcuda.so.1)");
      }
      return absl::UnavailableError(
          absl::StrFormat("NVIDIA's driver is of CUDA %s, this build needs %s", Version(driver),
                          Version(CUDART_VERSION)));
    }
    case cudaErrorStubLibrary:
      return absl::UnavailableError("libcuda.so.1 is the stub that comes with CUDA");
    default:
      return absl::UnavailableError(
          absl::StrFormat("GPUs cannot be listed: %s", cudaGetErrorString(error)));
  }
}

// As nvidia-smi writes it.
std::string Uuid(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString({uuid.bytes, sizeof(uuid.bytes)});
  return absl::StrFormat("GPU-%s-%s-%s-%s-%s", hex.substr(0, 8), hex.substr(8, 4),
                         hex.substr(12, 4), hex.substr(16, 4), hex.substr(20));
}

class CudaGpu final : public Gpu {
 public:
  CudaGpu(GpuInfo info, const Blas& blas)
      : info_(std::move(info)), blas_(blas), shared_(CudaVirtualMemory::Open(info_)) {}

  const GpuInfo& info() const override { return info_; }

  absl::StatusOr<void*> Allocate(size_t bytes) override {
    if (absl::Status status = Use(); !status.ok()) return status;
    void* device = nullptr;  // of no bytes it would stay null
    absl::Status status = PARLEY_CUDA(cudaMalloc, &device, bytes > 0 ? bytes : 1);
    if (!status.ok()) return status;
    return device;
  }
  void Free(void* device) override {
    if (device == nullptr || !Use().ok()) return;
    PARLEY_CUDA(cudaFree, device).IgnoreError();
  }

  absl::Status Pin(void* host, size_t bytes) override {
    if (absl::Status status = Use(); !status.ok()) return status;
    // Portable: as good for the other GPUs of this process, should there be any.
    return PARLEY_CUDA(cudaHostRegister, host, bytes, cudaHostRegisterPortable);
  }
  void Unpin(void* host) override {
    if (!Use().ok()) return;
    PARLEY_CUDA(cudaHostUnregister, host).IgnoreError();
  }

  absl::StatusOr<ShareableMemory> AllocateShareable(size_t bytes) override {
    if (absl::Status status = Use(); !status.ok()) return status;
    return shared_.Allocate(bytes);
  }
  void FreeShareable(const ShareableMemory& memory) override {
    Use().IgnoreError();
    shared_.Free(memory);
  }
  absl::StatusOr<void*> MapShared(int fd, size_t bytes) override {
    if (absl::Status status = Use(); !status.ok()) return status;
    return shared_.Map(fd, bytes);
  }
  void UnmapShared(void* device, size_t bytes) override {
    Use().IgnoreError();
    shared_.Unmap(device, bytes);
  }

  absl::StatusOr<std::unique_ptr<GpuStream>> NewStream() override {
    if (absl::Status status = Use(); !status.ok()) return status;
    return NewCudaStream(info_, blas_);
  }
  absl::StatusOr<std::unique_ptr<GpuEvent>> NewEvent() override {
    if (absl::Status status = Use(); !status.ok()) return status;
    return NewCudaEvent(info_);
  }

 private:
  absl::Status Use() { return PARLEY_CUDA(cudaSetDevice, info_.index); }

  const GpuInfo info_;
  const Blas blas_;
  const CudaVirtualMemory shared_;
};

}  // namespace

absl::StatusOr<std::vector<GpuInfo>> ListCudaGpus() {
  int count = 0;
  if (cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return WhyNone(error);
  if (count == 0) return WhyNone(cudaErrorNoDevice);
  std::vector<GpuInfo> gpus;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties = {};
    if (absl::Status status = PARLEY_CUDA(cudaGetDeviceProperties, &properties, i); !status.ok()) {
      return absl::UnavailableError(status.message());
    }
    GpuInfo gpu;
    gpu.index = i;
    gpu.name = properties.name;
    gpu.uuid = Uuid(properties.uuid);
    gpu.major = properties.major;
    gpu.minor = properties.minor;
    gpu.memory_bytes = properties.totalGlobalMem;
    gpus.push_back(std::move(gpu));
  }
  return gpus;
}

absl::StatusOr<std::unique_ptr<Gpu>> CreateCudaGpu(int index) {
  absl::StatusOr<std::vector<GpuInfo>> gpus = ListCudaGpus();
  if (!gpus.ok()) return gpus.status();
  if (index < 0 || static_cast<size_t>(index) >= gpus->size()) {
    return absl::UnavailableError(
        absl::StrFormat("no GPU %d: this process sees %d, counted from 0", index, gpus->size()));
  }
  const GpuInfo& info = (*gpus)[index];
  if (info.major < kLeastMajor) {
    return absl::UnavailableError(absl::StrFormat(
        "%s is too old: this build has code from sm_%d0 on", ToString(info), kLeastMajor));
  }
  absl::StatusOr<Blas> blas = OpenBlas();
  if (!blas.ok()) return blas.status();
  // Makes this process's context there, which takes time and memory, and can fail.
  if (absl::Status status = PARLEY_CUDA(cudaSetDevice, index); !status.ok()) return status;
  return std::make_unique<CudaGpu>(info, *blas);
}

}  // namespace parley
