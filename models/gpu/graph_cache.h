// GraphCache: operations that are the same, step for step, enqueued as one graph. Internal to
// models/gpu.
//
// Launching takes the host a few microseconds for each operation, a graph about as long for all of
// them; which matters where computing takes no longer. Nobody has to say what is the same: what is
// enqueued is compared, to the last argument, with what was enqueued at the same place of the step
// before. What was the same twice is recorded; what changes each time (a dropout's pattern) is
// enqueued as it always was.
//
// Thread-safety: none.
#ifndef PARLEY_MODELS_GPU_GRAPH_CACHE_H_
#define PARLEY_MODELS_GPU_GRAPH_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "ps/gpu/gpu.h"

namespace parley {

// A kernel's launch or a product.
struct GpuOperation {
  const GpuKernel* kernel = nullptr;  // null: a product
  uint32_t blocks = 0;
  std::vector<std::byte> args;
  GemmCall gemm;
  bool operator==(const GpuOperation&) const = default;
};

class GraphCache {
 public:
  // Fewer are not worth a graph.
  static constexpr size_t kLeast = 3;

  // The step's first piece follows.
  void BeginStep() { next_ = 0; }

  // Enqueues a piece of the step.
  absl::Status Enqueue(std::vector<GpuOperation> operations, GpuStream* stream);

  uint64_t launched() const { return launched_; }  // graphs, so far

 private:
  struct Piece {
    std::vector<GpuOperation> operations;
    std::unique_ptr<GpuGraph> graph;  // null: not the same twice yet
  };
  size_t next_ = 0;
  std::vector<Piece> pieces_;  // by their order in a step
  uint64_t launched_ = 0;
};

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_GRAPH_CACHE_H_
