#include "ps/gpu/cuda_memory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_format.h"
#include "ps/gpu/cuda_status.h"

#define PARLEY_DRIVER(member, name, ...) Result(member(__VA_ARGS__), name, __LINE__)

namespace parley {
namespace {

// `cuda_version`: in which the function got the type that we know.
template <typename Function>
void Find(const char* name, unsigned cuda_version, Function* function, absl::Status* status) {
  if (!status->ok()) return;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  *status = CudaStatus(
      cudaGetDriverEntryPointByVersion(name, &found, cuda_version, cudaEnableDefault, &result),
      absl::StrFormat("cudaGetDriverEntryPointByVersion of %s", name), __FILE__, __LINE__);
  if (!status->ok()) return;
  if (found == nullptr || result != cudaDriverEntryPointSuccess) {
    *status = absl::UnimplementedError(
        absl::StrFormat("cuda: memory cannot be shared: this driver has no %s", name));
  }
  *function = reinterpret_cast<Function>(found);
}

// Kinds of files that CUDA never gives out: they are refused here, before its driver sees them.
bool IsSurelyNotCuda(int fd) {
  struct stat file = {};
  return fstat(fd, &file) != 0 || S_ISREG(file.st_mode) || S_ISDIR(file.st_mode) ||
         S_ISFIFO(file.st_mode) || S_ISSOCK(file.st_mode) || S_ISBLK(file.st_mode);
}

}  // namespace

CudaVirtualMemory CudaVirtualMemory::Open(const GpuInfo& info) {
  CudaVirtualMemory memory;
  memory.memory_bytes_ = info.memory_bytes;
  absl::Status& status = memory.usable_;
  Find("cuGetErrorString", 6000, &memory.error_string_, &status);
  Find("cuDeviceGet", 2000, &memory.device_get_, &status);
  Find("cuDeviceGetAttribute", 2000, &memory.device_get_attribute_, &status);
  constexpr unsigned kSince = 10020;
  Find("cuMemAddressFree", kSince, &memory.address_free_, &status);
  Find("cuMemAddressReserve", kSince, &memory.address_reserve_, &status);
  Find("cuMemCreate", kSince, &memory.create_, &status);
  Find("cuMemExportToShareableHandle", kSince, &memory.export_, &status);
  Find("cuMemGetAllocationGranularity", kSince, &memory.granularity_, &status);
  Find("cuMemGetAllocationPropertiesFromHandle", kSince, &memory.properties_, &status);
  Find("cuMemImportFromShareableHandle", kSince, &memory.import_, &status);
  Find("cuMemMap", kSince, &memory.map_, &status);
  Find("cuMemRelease", kSince, &memory.release_, &status);
  Find("cuMemSetAccess", kSince, &memory.set_access_, &status);
  Find("cuMemUnmap", kSince, &memory.unmap_, &status);
  if (!status.ok()) return memory;
  status = memory.Result(memory.device_get_(&memory.device_, info.index), "cuDeviceGet", __LINE__);
  for (const CUdevice_attribute attribute :
       {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED}) {
    if (!status.ok()) return memory;
    int supported = 0;
    status = memory.Result(memory.device_get_attribute_(&supported, attribute, memory.device_),
                           "cuDeviceGetAttribute", __LINE__);
    if (status.ok() && supported == 0) {
      status = absl::UnimplementedError(
          "cuda: memory cannot be shared: this GPU has no virtual memory with file descriptors");
    }
  }
  return memory;
}

absl::Status CudaVirtualMemory::Result(CUresult result, const char* call, int line) const {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* says = nullptr;
  if (error_string_(result, &says) != CUDA_SUCCESS || says == nullptr) says = "unknown error";
  return CudaFailure(result == CUDA_ERROR_OUT_OF_MEMORY, call, says, __FILE__, line);
}

CUmemAllocationProp CudaVirtualMemory::Properties() const {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device_;
  return properties;
}

absl::StatusOr<size_t> CudaVirtualMemory::Granularity() const {
  const CUmemAllocationProp properties = Properties();
  size_t granularity = 0;
  absl::Status status = PARLEY_DRIVER(granularity_, "cuMemGetAllocationGranularity", &granularity,
                                      &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  if (!status.ok()) return status;
  return granularity;
}

absl::StatusOr<CUdeviceptr> CudaVirtualMemory::Place(CUmemGenericAllocationHandle memory,
                                                     size_t bytes, bool writable) const {
  CUdeviceptr at = 0;
  absl::Status status = PARLEY_DRIVER(address_reserve_, "cuMemAddressReserve", &at, bytes, 0, 0, 0);
  if (!status.ok()) return status;
  status = PARLEY_DRIVER(map_, "cuMemMap", at, bytes, 0, memory, 0);
  if (!status.ok()) {
    (void)address_free_(at, bytes);
    return status;
  }
  CUmemAccessDesc access = {};
  access.location = Properties().location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
  // A borrower only reads; but where the driver cannot say that of memory, it may write as well.
  if (writable || set_access_(at, bytes, &access, 1) != CUDA_SUCCESS) {
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    status = PARLEY_DRIVER(set_access_, "cuMemSetAccess", at, bytes, &access, 1);
  }
  if (!status.ok()) {
    (void)unmap_(at, bytes);
    (void)address_free_(at, bytes);
    return status;
  }
  return at;
}

absl::StatusOr<ShareableMemory> CudaVirtualMemory::Allocate(size_t bytes) const {
  if (!usable_.ok()) return usable_;
  absl::StatusOr<size_t> granularity = Granularity();
  if (!granularity.ok()) return granularity.status();
  ShareableMemory memory;
  memory.bytes = (bytes + *granularity - 1) / *granularity * *granularity;
  if (memory.bytes == 0) memory.bytes = *granularity;
  const CUmemAllocationProp properties = Properties();
  CUmemGenericAllocationHandle handle = 0;
  absl::Status status =
      PARLEY_DRIVER(create_, "cuMemCreate", &handle, memory.bytes, &properties, 0);
  if (!status.ok()) return status;
  absl::StatusOr<CUdeviceptr> at = Place(handle, memory.bytes, /*writable=*/true);
  status = at.status();
  if (status.ok()) {
    memory.device = reinterpret_cast<void*>(*at);
    status = PARLEY_DRIVER(export_, "cuMemExportToShareableHandle", &memory.fd, handle,
                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (!status.ok()) Unmap(memory.device, memory.bytes);
  }
  // The mapping and the descriptor hold it from here on.
  (void)release_(handle);
  if (!status.ok()) return status;
  (void)fcntl(memory.fd, F_SETFD, FD_CLOEXEC);
  return memory;
}

void CudaVirtualMemory::Free(const ShareableMemory& memory) const {
  if (memory.device == nullptr) return;
  Unmap(memory.device, memory.bytes);
  (void)close(memory.fd);
}

absl::StatusOr<void*> CudaVirtualMemory::Map(int fd, size_t bytes) const {
  if (!usable_.ok()) return usable_;
  absl::StatusOr<size_t> granularity = Granularity();
  if (!granularity.ok()) return granularity.status();
  if (IsSurelyNotCuda(fd) || bytes == 0 || bytes > memory_bytes_ || bytes % *granularity != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cuda: %d bytes to be mapped are not memory of a GPU", bytes));
  }
  CUmemGenericAllocationHandle handle = 0;
  absl::Status status = PARLEY_DRIVER(import_, "cuMemImportFromShareableHandle", &handle,
                                      reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (!status.ok()) return absl::InvalidArgumentError(status.message());
  CUmemAllocationProp properties = {};
  status =
      PARLEY_DRIVER(properties_, "cuMemGetAllocationPropertiesFromHandle", &properties, handle);
  if (status.ok() && properties.location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
      properties.location.id != device_) {
    status = absl::InvalidArgumentError(absl::StrFormat(
        "cuda: memory to be mapped is GPU %d's, not GPU %d's", properties.location.id, device_));
  }
  absl::StatusOr<CUdeviceptr> at = status;
  if (status.ok()) at = Place(handle, bytes, /*writable=*/false);
  (void)release_(handle);
  if (at.ok()) return reinterpret_cast<void*>(*at);
  // Most likely it has another size than was said.
  if (absl::IsResourceExhausted(at.status())) return at.status();
  return absl::InvalidArgumentError(at.status().message());
}

void CudaVirtualMemory::Unmap(void* device, size_t bytes) const {
  if (device == nullptr) return;
  // Unlike cudaFree it does not wait for what uses the memory.
  (void)cudaDeviceSynchronize();
  const auto at = reinterpret_cast<CUdeviceptr>(device);
  (void)unmap_(at, bytes);
  (void)address_free_(at, bytes);
}

}  // namespace parley
