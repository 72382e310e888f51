// Device memory that other processes map: CUDA's virtual memory management.
//
// It is the driver's interface, whose functions are asked of the runtime: libcuda is not linked,
// since a machine without a GPU has none. The memory goes when the last process has let go of it
// and of its descriptors, also when they are killed.
//
// Thread-safety: constant after Open.
#ifndef PARLEY_PS_GPU_CUDA_MEMORY_H_
#define PARLEY_PS_GPU_CUDA_MEMORY_H_

#include <cuda.h>
#include <cudaTypedefs.h>

#include "absl/status/statusor.h"
#include "ps/gpu/gpu.h"

namespace parley {

class CudaVirtualMemory {
 public:
  // Never fails: what cannot be had is said by Allocate and Map. REQUIRES: this GPU is the
  // thread's, here and in all calls.
  static CudaVirtualMemory Open(const GpuInfo& info);

  absl::StatusOr<ShareableMemory> Allocate(size_t bytes) const;
  void Free(const ShareableMemory& memory) const;  // also closes the descriptor

  absl::StatusOr<void*> Map(int fd, size_t bytes) const;
  void Unmap(void* device, size_t bytes) const;

 private:
  absl::Status Result(CUresult result, const char* call, int line) const;
  CUmemAllocationProp Properties() const;
  absl::StatusOr<size_t> Granularity() const;
  // Puts memory at an address of its own.
  absl::StatusOr<CUdeviceptr> Place(CUmemGenericAllocationHandle memory, size_t bytes,
                                    bool writable) const;

  absl::Status usable_;  // kUnimplemented
  CUdevice device_ = 0;
  uint64_t memory_bytes_ = 0;
  PFN_cuDeviceGet_v2000 device_get_ = nullptr;
  PFN_cuDeviceGetAttribute_v2000 device_get_attribute_ = nullptr;
  PFN_cuGetErrorString_v6000 error_string_ = nullptr;
  PFN_cuMemAddressFree_v10020 address_free_ = nullptr;
  PFN_cuMemAddressReserve_v10020 address_reserve_ = nullptr;
  PFN_cuMemCreate_v10020 create_ = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 export_ = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 granularity_ = nullptr;
  PFN_cuMemGetAllocationPropertiesFromHandle_v10020 properties_ = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 import_ = nullptr;
  PFN_cuMemMap_v10020 map_ = nullptr;
  PFN_cuMemRelease_v10020 release_ = nullptr;
  PFN_cuMemSetAccess_v10020 set_access_ = nullptr;
  PFN_cuMemUnmap_v10020 unmap_ = nullptr;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_CUDA_MEMORY_H_
