// A step of a model on the GPU alone, without a parameter server, beside its floor.
#ifndef PARLEY_BENCHMARKS_GPU_STEPS_H_
#define PARLEY_BENCHMARKS_GPU_STEPS_H_

#include <cstdint>
#include <string>

#include "benchmarks/gpu/bench.h"
#include "benchmarks/gpu/rates.h"
#include "models/shape.h"
#include "proto/experiment.pb.h"

namespace parley {

struct StepCase {
  std::string name;  // "mlp_4096"
  pb::Model model;   // resolved: layers have names
  SampleShape input;
  uint32_t classes = 10;
  uint64_t batch = 1;
};

// Measures the products, the step with parameters in the GPU's memory and in pinned host memory,
// and the copies alone; the object of benchmarks/README.md, "cases".
std::string MeasureStep(Bench& bench, const StepCase& step, GemmMath math, const CopyRates& rates);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_GPU_STEPS_H_
