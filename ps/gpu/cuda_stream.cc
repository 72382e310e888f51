#include "ps/gpu/cuda_stream.h"

#include "absl/strings/str_format.h"
#include "ps/gpu/cuda_status.h"

namespace parley {
namespace {

// Every call begins with it: CUDA's current GPU is a thread's, and calls come from any. It costs
// tens of nanoseconds when nothing changes.
absl::Status Use(int index) { return PARLEY_CUDA(cudaSetDevice, index); }

class CudaEvent final : public GpuEvent {
 public:
  CudaEvent(int index, cudaEvent_t event) : index_(index), event_(event) {}
  ~CudaEvent() override {
    (void)cudaSetDevice(index_);
    (void)cudaEventDestroy(event_);
  }

  // True after an error, too: then Await says it.
  bool done() override {
    if (!Use(index_).ok()) return true;
    const cudaError_t result = cudaEventQuery(event_);
    if (result != cudaSuccess) (void)cudaGetLastError();
    return result != cudaErrorNotReady;
  }

  // Spins, as long as there are more cores than contexts in this process: waits are of less than a
  // step, and waking up takes longer than what is mostly left of them.
  absl::Status Await() override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaEventSynchronize, event_);
  }

  cudaEvent_t get() const { return event_; }

 private:
  const int index_;
  const cudaEvent_t event_;
};

class CudaGraph final : public GpuGraph {
 public:
  CudaGraph(int index, cudaGraphExec_t graph) : index_(index), graph_(graph) {}
  ~CudaGraph() override {
    (void)cudaSetDevice(index_);
    (void)cudaDeviceSynchronize();  // it may be running
    (void)cudaGraphExecDestroy(graph_);
  }
  cudaGraphExec_t get() const { return graph_; }

 private:
  const int index_;
  const cudaGraphExec_t graph_;
};

struct OwnedStream {
  explicit OwnedStream(cudaStream_t stream) : stream(stream) {}
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream() { (void)cudaStreamDestroy(stream); }
  const cudaStream_t stream;
};

class CudaStream final : public GpuStream {
 public:
  CudaStream(const GpuInfo& info, const Blas& blas, cudaStream_t stream)
      : index_(info.index), major_(info.major), owned_(stream), stream_(stream), blas_(blas) {}
  ~CudaStream() override { (void)cudaSetDevice(index_); }

  absl::Status CopyIn(void* device, const void* host, size_t bytes) override {
    return Copy(device, host, bytes, cudaMemcpyHostToDevice);
  }
  absl::Status CopyOut(void* host, const void* device, size_t bytes) override {
    return Copy(host, device, bytes, cudaMemcpyDeviceToHost);
  }
  absl::Status CopyWithin(void* to, const void* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  absl::Status Zero(void* device, size_t bytes) override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaMemsetAsync, device, 0, bytes, stream_);
  }

  absl::Status Gemm(const GemmCall& call) override {
    if (call.m < 0 || call.n < 0 || call.k < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("gemm: [%d, %d] by [%d, %d]", call.m, call.k, call.k, call.n));
    }
    if (call.m == 0 || call.n == 0 || (call.k == 0 && call.accumulate)) return absl::OkStatus();
    if (call.k == 0) return Zero(call.c, sizeof(float) * call.m * call.n);
    if (absl::Status status = Use(index_); !status.ok()) return status;
    if (absl::Status status = blas_.Prepare(stream_, major_); !status.ok()) return status;
    return blas_.Gemm(call);
  }

  absl::Status LaunchErased(const GpuKernel& kernel, uint32_t blocks, const void* args,
                            size_t) override {
    if (kernel.on_device == nullptr) {
      return CudaFailure(false, absl::StrFormat("launch of %s", kernel.name),
                         "it was not compiled by nvcc", __FILE__, __LINE__);
    }
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return CudaStatus(static_cast<cudaError_t>(kernel.on_device(args, blocks, stream_)),
                      absl::StrFormat("launch of %s", kernel.name), __FILE__, __LINE__);
  }

  absl::Status WaitFor(const GpuEvent& event) override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaStreamWaitEvent, stream_, static_cast<const CudaEvent&>(event).get(), 0);
  }
  absl::Status Record(GpuEvent* event) override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaEventRecord, static_cast<CudaEvent*>(event)->get(), stream_);
  }
  absl::Status Sync() override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaStreamSynchronize, stream_);
  }

  absl::Status BeginGraph() override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    // Memory cannot be had while a stream is captured, and whether there will be products in it
    // nobody knows.
    if (absl::Status status = blas_.Prepare(stream_, major_); !status.ok()) return status;
    // Relaxed: other threads go on as if nothing were, and a kernel that is met here for the first
    // time may be loaded.
    return PARLEY_CUDA(cudaStreamBeginCapture, stream_, cudaStreamCaptureModeRelaxed);
  }

  absl::StatusOr<std::unique_ptr<GpuGraph>> EndGraph() override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    cudaGraph_t recorded = nullptr;
    absl::Status status = PARLEY_CUDA(cudaStreamEndCapture, stream_, &recorded);
    if (!status.ok()) return status;
    cudaGraphExec_t graph = nullptr;
    status = PARLEY_CUDA(cudaGraphInstantiate, &graph, recorded, 0);
    (void)cudaGraphDestroy(recorded);
    if (!status.ok()) return status;
    return std::make_unique<CudaGraph>(index_, graph);
  }

  absl::Status Launch(const GpuGraph& graph) override {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaGraphLaunch, static_cast<const CudaGraph&>(graph).get(), stream_);
  }

 private:
  absl::Status Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (absl::Status status = Use(index_); !status.ok()) return status;
    return PARLEY_CUDA(cudaMemcpyAsync, to, from, bytes, kind, stream_);
  }

  const int index_, major_;
  const OwnedStream owned_;
  const cudaStream_t stream_;
  BlasHandle blas_;  // goes before the stream does
};

}  // namespace

absl::StatusOr<std::unique_ptr<GpuStream>> NewCudaStream(const GpuInfo& info, const Blas& blas) {
  cudaStream_t stream = nullptr;
  if (absl::Status status = PARLEY_CUDA(cudaStreamCreateWithFlags, &stream, cudaStreamNonBlocking);
      !status.ok()) {
    return status;
  }
  return std::make_unique<CudaStream>(info, blas, stream);
}

absl::StatusOr<std::unique_ptr<GpuEvent>> NewCudaEvent(const GpuInfo& info) {
  cudaEvent_t event = nullptr;
  if (absl::Status status = PARLEY_CUDA(cudaEventCreateWithFlags, &event, cudaEventDisableTiming);
      !status.ok()) {
    return status;
  }
  return std::make_unique<CudaEvent>(info.index, event);
}

}  // namespace parley
