#include "ps/gpu/simulated_gpu.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/str_format.h"
#include "ps/gpu/simulated_memory.h"

namespace parley {
namespace {

class SimulatedStream;

// An event's progress: how often it has been recorded, and which of these recordings are done.
struct Progress {
  uint64_t recorded = 0, done = 0;
};

struct Operation {
  absl::AnyInvocable<void()> run = nullptr;  // empty: only waits or records
  // At most one of them.
  std::shared_ptr<Progress> records = nullptr;
  std::shared_ptr<Progress> awaits = nullptr;
  uint64_t recording = 0;  // of either
  bool MayRun() const { return awaits == nullptr || awaits->done >= recording; }
};

class SimulatedGraph final : public GpuGraph {
 public:
  std::vector<std::shared_ptr<absl::AnyInvocable<void()>>> operations;
};

class SimulatedGpu final : public Gpu {
 public:
  explicit SimulatedGpu(const SimulatedGpuOptions& options)
      : options_(options), memory_(options.memory_bytes, options.guard), draws_(options.seed) {
    info_.name = "simulated GPU";
    info_.uuid = "simulated";
    info_.memory_bytes = options.memory_bytes;
    info_.simulated = true;
  }

  const GpuInfo& info() const override { return info_; }
  absl::StatusOr<void*> Allocate(size_t bytes) override;
  void Free(void* device) override;
  absl::Status Pin(void* host, size_t bytes) override;
  void Unpin(void* host) override;
  absl::StatusOr<ShareableMemory> AllocateShareable(size_t bytes) override;
  void FreeShareable(const ShareableMemory& memory) override;
  absl::StatusOr<void*> MapShared(int fd, size_t bytes) override;
  void UnmapShared(void* device, size_t bytes) override;
  absl::StatusOr<std::unique_ptr<GpuStream>> NewStream() override;
  absl::StatusOr<std::unique_ptr<GpuEvent>> NewEvent() override;

  // The rest is for streams and events.
  std::mutex& mu() { return mu_; }
  // Counts a call; its error if it is the one that shall fail.
  absl::Status MayFail(const char* call);
  uint64_t calls() const { return calls_; }
  absl::Status CheckDevice(const char* call, const void* device, size_t bytes) const;
  void Add(SimulatedStream* stream) { streams_.push_back(stream); }
  void Remove(SimulatedStream* stream);
  // Runs one operation that may run; false if there is none. Leaves the memory open.
  bool Step();
  void StepOnce() {
    Step();
    memory_.Shut();
  }
  // Runs operations until `done` says so.
  template <typename Done>
  absl::Status RunUntil(const char* call, Done done);
  uint64_t Draw();
  uint64_t order() { return options_.seed == 0 ? 0 : Draw() | 1; }
  bool in_order() const { return options_.seed == 0; }

 private:
  const SimulatedGpuOptions options_;
  GpuInfo info_;
  std::mutex mu_;  // guards the rest
  SimulatedMemory memory_;
  uint64_t draws_, calls_ = 0;
  absl::Status failed_;
  std::vector<SimulatedStream*> streams_;
  std::map<void*, size_t> pinned_;
};

class SimulatedEvent final : public GpuEvent {
 public:
  explicit SimulatedEvent(SimulatedGpu* gpu) : gpu_(gpu) {}
  bool done() override {
    std::lock_guard lock(gpu_->mu());
    // Somebody who only ever asks gets there, too.
    if (progress_->done < progress_->recorded) gpu_->StepOnce();
    return progress_->done >= progress_->recorded;
  }
  absl::Status Await() override {
    std::lock_guard lock(gpu_->mu());
    const uint64_t recording = progress_->recorded;
    return gpu_->RunUntil("await an event", [&] { return progress_->done >= recording; });
  }
  const std::shared_ptr<Progress>& progress() const { return progress_; }

 private:
  SimulatedGpu* const gpu_;
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
};

class SimulatedStream final : public GpuStream {
 public:
  explicit SimulatedStream(SimulatedGpu* gpu) : gpu_(gpu) { gpu_->Add(this); }
  ~SimulatedStream() override {
    std::lock_guard lock(gpu_->mu());
    gpu_->RunUntil("end of a stream", [this] { return operations_.empty(); }).IgnoreError();
    gpu_->Remove(this);
  }

  absl::Status CopyIn(void* device, const void* host, size_t bytes) override {
    return Copy("copy in", device, host, bytes, device, nullptr);
  }
  absl::Status CopyOut(void* host, const void* device, size_t bytes) override {
    return Copy("copy out", host, device, bytes, device, nullptr);
  }
  absl::Status CopyWithin(void* to, const void* from, size_t bytes) override {
    return Copy("copy within", to, from, bytes, to, from);
  }
  absl::Status Zero(void* device, size_t bytes) override;
  absl::Status Gemm(const GemmCall& call) override;
  absl::Status LaunchErased(const GpuKernel& kernel, uint32_t blocks, const void* args,
                            size_t args_bytes) override;
  absl::Status WaitFor(const GpuEvent& event) override;
  absl::Status Record(GpuEvent* event) override;
  absl::Status Sync() override;
  absl::Status BeginGraph() override;
  absl::StatusOr<std::unique_ptr<GpuGraph>> EndGraph() override;
  absl::Status Launch(const GpuGraph& graph) override;
  using GpuStream::Launch;

  bool MayRun() const { return !operations_.empty() && operations_.front().MayRun(); }
  void RunFirst();
  bool empty() const { return operations_.empty(); }

 private:
  absl::Status Copy(const char* call, void* to, const void* from, size_t bytes, const void* device,
                    const void* other);
  absl::Status Enqueue(absl::AnyInvocable<void()> run);

  SimulatedGpu* const gpu_;
  std::deque<Operation> operations_;
  std::unique_ptr<SimulatedGraph> graph_;  // being recorded
};

// ---- The GPU ----

absl::Status SimulatedGpu::MayFail(const char* call) {
  if (!failed_.ok()) return failed_;
  if (++calls_ == options_.fail_at) {
    failed_ = absl::InternalError(absl::StrFormat("simulated gpu: %s: failed as was asked", call));
  }
  return failed_;
}

absl::Status SimulatedGpu::CheckDevice(const char* call, const void* device, size_t bytes) const {
  if (bytes == 0 || memory_.Contains(device, bytes)) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat(
      "simulated gpu: %s: %d bytes at %p are not the device's", call, bytes, device));
}

void SimulatedGpu::Remove(SimulatedStream* stream) {
  streams_.erase(std::find(streams_.begin(), streams_.end(), stream));
}

uint64_t SimulatedGpu::Draw() {
  // splitmix64
  draws_ += 0x9E3779B97F4A7C15;
  uint64_t z = draws_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

bool SimulatedGpu::Step() {
  const size_t first = in_order() || streams_.empty() ? 0 : Draw() % streams_.size();
  for (size_t i = 0; i < streams_.size(); ++i) {
    SimulatedStream* stream = streams_[(first + i) % streams_.size()];
    if (!stream->MayRun()) continue;
    memory_.Open();
    stream->RunFirst();
    return true;
  }
  return false;
}

template <typename Done>
absl::Status SimulatedGpu::RunUntil(const char* call, Done done) {
  absl::Status status = failed_;
  while (!done()) {
    if (Step()) continue;
    status = absl::InternalError(
        absl::StrFormat("simulated gpu: %s: nothing can run, it waits for itself", call));
    break;
  }
  memory_.Shut();
  return status;
}

absl::StatusOr<void*> SimulatedGpu::Allocate(size_t bytes) {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("allocate"); !status.ok()) return status;
  return memory_.Allocate(bytes);
}

void SimulatedGpu::Free(void* device) {
  if (device == nullptr) return;
  std::lock_guard lock(mu_);
  // As cudaFree, which waits for the whole GPU.
  RunUntil("free", [this] {
    return std::all_of(streams_.begin(), streams_.end(), [](auto* s) { return s->empty(); });
  }).IgnoreError();
  memory_.Free(device);
}

absl::Status SimulatedGpu::Pin(void* host, size_t bytes) {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("pin"); !status.ok()) return status;
  auto* begin = static_cast<std::byte*>(host);
  for (const auto& [other, size] : pinned_) {
    auto* other_begin = static_cast<std::byte*>(other);
    if (begin < other_begin + size && other_begin < begin + bytes) {
      return absl::InternalError("simulated gpu: pin: part of this memory is pinned already");
    }
  }
  pinned_[host] = bytes;
  return absl::OkStatus();
}

void SimulatedGpu::Unpin(void* host) {
  std::lock_guard lock(mu_);
  pinned_.erase(host);
}

absl::StatusOr<ShareableMemory> SimulatedGpu::AllocateShareable(size_t bytes) {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("allocate to share"); !status.ok()) return status;
  constexpr size_t kGranularity = size_t{2} << 20;  // a real one's
  ShareableMemory memory;
  memory.bytes = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  memory.fd = memfd_create("parley-simulated-gpu", MFD_CLOEXEC);
  if (memory.fd < 0 || ftruncate(memory.fd, static_cast<off_t>(memory.bytes)) != 0) {
    if (memory.fd >= 0) close(memory.fd);
    return absl::ResourceExhaustedError(
        absl::StrFormat("simulated gpu: no %d bytes to share: %s", memory.bytes, strerror(errno)));
  }
  absl::StatusOr<void*> mapped = memory_.Map(memory.fd, memory.bytes, /*writable=*/true);
  if (!mapped.ok()) {
    close(memory.fd);
    return mapped.status();
  }
  memory.device = *mapped;
  return memory;
}

void SimulatedGpu::FreeShareable(const ShareableMemory& memory) {
  Free(memory.device);
  close(memory.fd);
}

absl::StatusOr<void*> SimulatedGpu::MapShared(int fd, size_t bytes) {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("map"); !status.ok()) return status;
  struct stat file = {};
  if (fstat(fd, &file) != 0 || static_cast<size_t>(file.st_size) != bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "simulated gpu: what is to be mapped has not the %d bytes that were said", bytes));
  }
  return memory_.Map(fd, bytes, /*writable=*/false);
}

void SimulatedGpu::UnmapShared(void* device, size_t) { Free(device); }

absl::StatusOr<std::unique_ptr<GpuStream>> SimulatedGpu::NewStream() {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("new stream"); !status.ok()) return status;
  return std::make_unique<SimulatedStream>(this);
}

absl::StatusOr<std::unique_ptr<GpuEvent>> SimulatedGpu::NewEvent() {
  std::lock_guard lock(mu_);
  if (absl::Status status = MayFail("new event"); !status.ok()) return status;
  return std::make_unique<SimulatedEvent>(this);
}

// ---- Streams ----

void SimulatedStream::RunFirst() {
  Operation operation = std::move(operations_.front());
  operations_.pop_front();
  if (operation.run) operation.run();
  if (operation.records != nullptr) {
    operation.records->done = std::max(operation.records->done, operation.recording);
  }
}

absl::Status SimulatedStream::Enqueue(absl::AnyInvocable<void()> run) {
  if (graph_ != nullptr) {
    graph_->operations.push_back(std::make_shared<absl::AnyInvocable<void()>>(std::move(run)));
  } else {
    operations_.push_back({.run = std::move(run)});
  }
  return absl::OkStatus();
}

absl::Status SimulatedStream::Copy(const char* call, void* to, const void* from, size_t bytes,
                                   const void* device, const void* other) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail(call); !status.ok()) return status;
  for (const void* each : {device, other}) {
    if (each == nullptr) continue;
    if (absl::Status status = gpu_->CheckDevice(call, each, bytes); !status.ok()) return status;
  }
  return Enqueue([=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
}

absl::Status SimulatedStream::Zero(void* device, size_t bytes) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("zero"); !status.ok()) return status;
  if (absl::Status status = gpu_->CheckDevice("zero", device, bytes); !status.ok()) return status;
  return Enqueue([=] {
    if (bytes > 0) std::memset(device, 0, bytes);
  });
}

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// To 10 bits of mantissa, to nearest, ties away from zero: as cvt.rna.tf32.
float ToTf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7F800000) != 0x7F800000) bits = (bits + 0x1000) & 0xFFFFE000;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

Matrix Factor(const void* from, int64_t rows, int64_t columns, bool transpose, GemmMath math) {
  if (transpose) std::swap(rows, columns);
  Matrix matrix(rows, columns);
  if (math == GemmMath::kBf16) {
    const auto* in = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < matrix.size(); ++i) {
      const uint32_t bits = uint32_t{in[i]} << 16;
      std::memcpy(matrix.data() + i, &bits, sizeof(bits));
    }
  } else {
    if (matrix.size() > 0) std::memcpy(matrix.data(), from, sizeof(float) * matrix.size());
    if (math == GemmMath::kTf32) matrix = matrix.unaryExpr(&ToTf32);
  }
  if (transpose) return matrix.transpose();
  return matrix;
}

absl::Status SimulatedStream::Gemm(const GemmCall& call) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("gemm"); !status.ok()) return status;
  const size_t factor = call.math == GemmMath::kBf16 ? 2 : sizeof(float);
  const std::pair<const void*, int64_t> operands[] = {
      {call.a, call.m * call.k * static_cast<int64_t>(factor)},
      {call.b, call.k * call.n * static_cast<int64_t>(factor)},
      {call.c, call.m * call.n * static_cast<int64_t>(sizeof(float))}};
  for (const auto& [device, bytes] : operands) {
    absl::Status status = gpu_->CheckDevice("gemm", device, static_cast<size_t>(bytes));
    if (!status.ok()) return status;
  }
  return Enqueue([call] {
    const Matrix a = Factor(call.a, call.m, call.k, call.transpose_a, call.math);
    const Matrix b = Factor(call.b, call.k, call.n, call.transpose_b, call.math);
    Eigen::Map<Matrix> c(call.c, call.m, call.n);
    if (call.accumulate) {
      c.noalias() += a * b;
    } else {
      c.noalias() = a * b;
    }
  });
}

absl::Status SimulatedStream::LaunchErased(const GpuKernel& kernel, uint32_t blocks,
                                           const void* args, size_t args_bytes) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail(kernel.name); !status.ok()) return status;
  if (blocks < 1) {
    return absl::InternalError(
        absl::StrFormat("simulated gpu: %s: no blocks to launch", kernel.name));
  }
  // Aligned as any struct of pointers and numbers wants it.
  std::vector<uint64_t> copy((args_bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
  std::memcpy(copy.data(), args, args_bytes);
  return Enqueue([&kernel, blocks, copy = std::move(copy), order = gpu_->order()] {
    kernel.on_host(copy.data(), blocks, order);
  });
}

absl::Status SimulatedStream::WaitFor(const GpuEvent& event) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("wait for an event"); !status.ok()) return status;
  if (graph_ != nullptr) return absl::InternalError("simulated gpu: a wait in a graph");
  const auto& progress = static_cast<const SimulatedEvent&>(event).progress();
  operations_.push_back({.awaits = progress, .recording = progress->recorded});
  return absl::OkStatus();
}

absl::Status SimulatedStream::Record(GpuEvent* event) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("record an event"); !status.ok()) return status;
  if (graph_ != nullptr) return absl::InternalError("simulated gpu: an event in a graph");
  const auto& progress = static_cast<SimulatedEvent*>(event)->progress();
  operations_.push_back({.records = progress, .recording = ++progress->recorded});
  return absl::OkStatus();
}

absl::Status SimulatedStream::Sync() {
  std::lock_guard lock(gpu_->mu());
  if (graph_ != nullptr) return absl::InternalError("simulated gpu: a sync in a graph");
  return gpu_->RunUntil("sync", [this] { return operations_.empty(); });
}

absl::Status SimulatedStream::BeginGraph() {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("begin a graph"); !status.ok()) return status;
  if (graph_ != nullptr) return absl::InternalError("simulated gpu: a graph in a graph");
  graph_ = std::make_unique<SimulatedGraph>();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GpuGraph>> SimulatedStream::EndGraph() {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("end a graph"); !status.ok()) return status;
  if (graph_ == nullptr) return absl::InternalError("simulated gpu: no graph was begun");
  return std::move(graph_);
}

absl::Status SimulatedStream::Launch(const GpuGraph& graph) {
  std::lock_guard lock(gpu_->mu());
  if (absl::Status status = gpu_->MayFail("launch a graph"); !status.ok()) return status;
  for (const auto& operation : static_cast<const SimulatedGraph&>(graph).operations) {
    operations_.push_back({.run = [operation] { (*operation)(); }});
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<Gpu> CreateSimulatedGpu(const SimulatedGpuOptions& options) {
  return std::make_unique<SimulatedGpu>(options);
}

uint64_t CallsThatCanFail(const Gpu& gpu) { return static_cast<const SimulatedGpu&>(gpu).calls(); }

}  // namespace parley
