// How fast the GPU multiplies and copies: what a step is measured against.
#ifndef PARLEY_BENCHMARKS_GPU_RATES_H_
#define PARLEY_BENCHMARKS_GPU_RATES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/gpu/bench.h"
#include "models/shape.h"
#include "proto/experiment.pb.h"

namespace parley {

// Bytes copied a second, between pinned host memory and the GPU's, and within that. Within, each
// byte is read and written: the traffic is twice the rate.
struct CopyRates {
  size_t bytes = 0;  // of one copy
  double in = 0, out = 0, both = 0 /* ways at once, added up */, within = 0;
  std::string Json() const;
};
CopyRates MeasureCopies(Bench& bench);

// One matrix product of a step, as the GPU device computes it: a convolution's is that of its
// unfolded input, the whole batch at once.
struct Product {
  std::string layer;
  const char* pass;  // "forward", "data", "weights": the gradient by which
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;

  double flops() const { return 2.0 * m * n * k; }
  bool forward() const { return pass[0] == 'f'; }
};

// The products of a step, and what a step must move over the GPU's memory besides them: layers that
// are neither products nor can ride along with one (ReLU, flatten) read and write their activations
// once in forward and once in backward.
struct StepWork {
  std::vector<Product> products;
  double other_bytes = 0;  // read and written
};
StepWork WorkOf(const pb::Model& model, SampleShape input, uint64_t rows);

// A step's products one by one, each with its own shape.
struct ProductTimes {
  double forward = 0, backward = 0;  // seconds, added up
  double flops = 0;
  std::string json;  // a list
};
ProductTimes MeasureProducts(Bench& bench, const StepWork& work, GemmMath math);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_GPU_RATES_H_
