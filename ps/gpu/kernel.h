// GPU kernels that also run on the host.
//
// A kernel is a struct: its members are the arguments, Run is what one thread does between two
// barriers. The same text is compiled for the device by nvcc and for the host by the C++ compiler,
// so that the arithmetic of every kernel is tested where there is no GPU; simulated_gpu.h runs it
// thread by thread, in an order of its own, and a kernel whose threads depend on each other within
// a phase shows it.
//
//   struct Halve {
//     static constexpr uint32_t kThreads = 256;  // of a block, a multiple of 32
//     static constexpr int kPhases = 1;          // between barriers of the block
//     using Shared = NoShared;                   // a block's shared memory, uninitialised
//     const float* x; float* y; uint64_t n;
//     PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared&) const {
//       for (uint64_t i = at.first(); i < n; i += at.stride()) y[i] = x[i] / 2;
//     }
//   };
//
// What a thread keeps from one phase to the next must lie in Shared. No atomics: the order of every
// sum is fixed by indices. Files with kernels are compiled without contraction to FMA, so that
// + - * / and sqrt give the bits that they give on the CPU.
//
// PARLEY_DECLARE_GPU_KERNEL(parley::Halve) at global scope behind the struct, and
// PARLEY_DEFINE_GPU_KERNEL(parley::Halve) in a file that is compiled by nvcc where there is CUDA
// and by the C++ compiler elsewhere, make it launchable.
#ifndef PARLEY_PS_GPU_KERNEL_H_
#define PARLEY_PS_GPU_KERNEL_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define PARLEY_GPU __host__ __device__
#else
#define PARLEY_GPU
#endif

namespace parley {

struct ThreadPlace {
  uint32_t block, blocks;    // this one's number, and how many there are
  uint32_t thread, threads;  // in the block

  // Walks over [0, n) by all threads of the launch.
  PARLEY_GPU uint64_t first() const { return uint64_t{block} * threads + thread; }
  PARLEY_GPU uint64_t stride() const { return uint64_t{blocks} * threads; }
};

struct NoShared {};

// A launchable kernel, type-erased. Constant.
struct GpuKernel {
  const char* name;
  // Runs all blocks here. `order` decides which block and which thread of a phase goes first; 0: by
  // number.
  void (*on_host)(const void* args, uint32_t blocks, uint64_t order);
  // Launches on a cudaStream_t and returns a cudaError_t. Null in a build without CUDA.
  int (*on_device)(const void* args, uint32_t blocks, void* stream);
};

template <typename Kernel>
struct GpuKernelOf {
  static const GpuKernel kKernel;
};

// Blocks for a kernel that walks over n elements: enough to fill any GPU, no more than there is
// work for.
template <typename Kernel>
uint32_t BlocksFor(uint64_t n) {
  constexpr uint64_t kMost = 132 * 16;
  const uint64_t blocks = (n + Kernel::kThreads - 1) / Kernel::kThreads;
  return static_cast<uint32_t>(blocks < 1 ? 1 : blocks > kMost ? kMost : blocks);
}

namespace gpu_internal {

// A permutation of [0, n), another one for each order.
class Shuffle {
 public:
  Shuffle(uint32_t n, uint64_t order) : n_(n) {
    if (order == 0 || n < 2) return;
    order *= 0x9E3779B97F4A7C15;
    first_ = (order >> 33) % n;
    step_ = 1 + (order >> 17) % (n - 1);
    while (Gcd(step_, n) != 1) step_ = step_ % n + 1;
  }
  uint32_t operator[](uint32_t i) const {
    return static_cast<uint32_t>((first_ + uint64_t{i} * step_) % n_);
  }

 private:
  static uint64_t Gcd(uint64_t a, uint64_t b) { return b == 0 ? a : Gcd(b, a % b); }
  uint64_t n_, first_ = 0, step_ = 1;
};

template <typename Kernel>
void RunOnHost(const void* args, uint32_t blocks, uint64_t order) {
  static_assert(std::is_trivially_copyable_v<Kernel>);
  static_assert(std::is_trivially_default_constructible_v<typename Kernel::Shared>);
  const Kernel& kernel = *static_cast<const Kernel*>(args);
  const Shuffle by_block(blocks, order), by_thread(Kernel::kThreads, order);
  typename Kernel::Shared shared;
  for (uint32_t b = 0; b < blocks; ++b) {
    std::memset(static_cast<void*>(&shared), 0xFF, sizeof(shared));  // floats: NaN
    for (int phase = 0; phase < Kernel::kPhases; ++phase) {
      for (uint32_t t = 0; t < Kernel::kThreads; ++t) {
        kernel.Run(phase, {by_block[b], blocks, by_thread[t], Kernel::kThreads}, shared);
      }
    }
  }
}

#ifdef __CUDACC__
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) OnDevice(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  const ThreadPlace place{blockIdx.x, gridDim.x, threadIdx.x, blockDim.x};
#pragma unroll
  for (int phase = 0; phase < Kernel::kPhases; ++phase) {
    if (phase > 0) __syncthreads();
    kernel.Run(phase, place, shared);
  }
}

// cudaLaunchKernel rather than <<<>>>: its result is of this launch, not of whatever failed before.
template <typename Kernel>
int Launch(const void* args, uint32_t blocks, void* stream) {
  void* pointers[] = {const_cast<void*>(args)};
  return static_cast<int>(cudaLaunchKernel(OnDevice<Kernel>, dim3(blocks), dim3(Kernel::kThreads),
                                           pointers, 0, static_cast<cudaStream_t>(stream)));
}
#define PARLEY_GPU_LAUNCHER(Kernel) &::parley::gpu_internal::Launch<Kernel>
#else
#define PARLEY_GPU_LAUNCHER(Kernel) nullptr
#endif

}  // namespace gpu_internal
}  // namespace parley

#define PARLEY_DECLARE_GPU_KERNEL(Kernel) \
  template <>                             \
  const ::parley::GpuKernel parley::GpuKernelOf<Kernel>::kKernel

#define PARLEY_DEFINE_GPU_KERNEL(Kernel)                             \
  template <>                                                        \
  const ::parley::GpuKernel parley::GpuKernelOf<Kernel>::kKernel = { \
      #Kernel, &::parley::gpu_internal::RunOnHost<Kernel>, PARLEY_GPU_LAUNCHER(Kernel)}

#endif  // PARLEY_PS_GPU_KERNEL_H_
