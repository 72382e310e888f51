// How close the servers' fused reduce-and-update pass on the GPU is to the speed of its memory.
#ifndef PARLEY_BENCHMARKS_GPU_UPDATES_H_
#define PARLEY_BENCHMARKS_GPU_UPDATES_H_

#include <string>

#include "benchmarks/gpu/bench.h"
#include "benchmarks/gpu/rates.h"

namespace parley {

// A list: for each rule, number of gradients and size the bytes read and written a second, and the
// ratio of that to the traffic of a copy within the GPU.
std::string MeasureUpdates(Bench& bench, const CopyRates& rates);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_GPU_UPDATES_H_
