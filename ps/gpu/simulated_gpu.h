// A Gpu on the host: the same kernels, run by this process's threads of whoever waits.
//
// It is strict where a real one is lucky. Nothing enqueued is done before somebody waits for it,
// and then streams take turns by a seeded draw that respects events and nothing else: a missing
// wait gives wrong numbers for some seed. Threads and blocks of a kernel run in a drawn order. New
// memory is NaN. With `guard` the host cannot touch device memory: it is killed by SIGSEGV.
//
// Products round their factors as GemmMath says and are summed by Eigen.
//
// Thread-safety: as Gpu; one lock, held while work is done.
#ifndef PARLEY_PS_GPU_SIMULATED_GPU_H_
#define PARLEY_PS_GPU_SIMULATED_GPU_H_

#include <cstdint>
#include <memory>

#include "ps/gpu/gpu.h"

namespace parley {

struct SimulatedGpuOptions {
  uint64_t seed = 0;  // of all that is drawn; 0: everything in order, as fast as it goes
  bool guard = false;
  uint64_t memory_bytes = uint64_t{4} << 30;  // Allocate fails past it
  // The so-manieth call that can fail does, counted from 1; 0: none.
  uint64_t fail_at = 0;
};

std::unique_ptr<Gpu> CreateSimulatedGpu(const SimulatedGpuOptions& options);

// Calls so far that could have failed, for SimulatedGpuOptions::fail_at.
// REQUIRES: `gpu` is simulated.
uint64_t CallsThatCanFail(const Gpu& gpu);

}  // namespace parley

#endif  // PARLEY_PS_GPU_SIMULATED_GPU_H_
