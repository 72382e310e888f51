#include "models/gpu/gpu_device.h"

#include <cassert>
#include <deque>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/gpu/gpu_conv.h"
#include "models/gpu/gpu_engine.h"
#include "models/gpu/gpu_tensor.h"
#include "models/gpu/layer_kernels.h"
#include "models/gpu/lookup_kernels.h"

namespace parley {
namespace {

using Order = GpuTensor::Order;

// Losses that may be on their way at once.
constexpr uint64_t kMostSums = 16;

// cuBLAS chooses its code by alignment, too: other code could give other bits, and be slow. Memory
// of the device's own is aligned; a stage's place in a table may not be.
bool Aligned(const float* device) { return reinterpret_cast<uintptr_t>(device) % 16 == 0; }

uint32_t Count(uint64_t n) { return static_cast<uint32_t>(n); }

class GpuDevice final : public Device {
 public:
  GpuDevice(std::unique_ptr<GpuEngine> engine, PinnedMemory sums, size_t column_bytes)
      : engine_(std::move(engine)),
        conv_(engine_.get(), &forms_, column_bytes),
        host_sums_(std::move(sums)) {}
  // Nothing may be on its way from or to memory that goes.
  ~GpuDevice() override {
    engine_->DropHeldBack();
    engine_->SyncAll();
  }

  std::string description() const override {
    return absl::StrFormat("gpu (%s, %s)", ToString(engine_->gpu()->info()),
                           ToString(engine_->math()));
  }
  bool asynchronous() const override { return true; }
  absl::Status Sync() override;
  void Flush() override { engine_->Flush(); }
  Mark MarkHere() override { return engine_->MarkHere(); }
  bool Reached(Mark mark) override { return engine_->Reached(mark); }
  absl::Status Await(Mark mark) override;
  void BeginStep() override { engine_->BeginStep(); }

  std::unique_ptr<Tensor> NewTensor() override { return std::make_unique<GpuTensor>(); }
  std::unique_ptr<Workspace> NewWorkspace() override { return std::make_unique<GpuWorkspace>(); }

  absl::Status Prepare(Tensor* tensor, SampleShape sample, uint64_t rows) override {
    OnGpu(tensor)->SetShape(engine_.get(), sample, rows, Order::kPlain);
    return engine_->ok() ? absl::OkStatus() : TakeFailure();
  }
  const float* LoadParameters(const float* parameters, MemoryKind kind, uint64_t n,
                              Workspace* memory) override;
  float* PrepareGradients(float* gradients, MemoryKind kind, uint64_t n,
                          Workspace* memory) override;
  void StoreGradients(const float* made, MemoryKind kind, uint64_t n, float* gradients) override {
    if (made == gradients) return;
    if (kind == MemoryKind::kDevice) {
      engine_->CopyWithin(gradients, made, n * sizeof(float));
    } else {
      engine_->CopyOut(gradients, made, n * sizeof(float));
    }
  }
  absl::Status FetchParameters(const float* parameters, uint64_t n, float* out) override {
    engine_->CopyOut(out, parameters, n * sizeof(float));
    return Await(MarkHere());
  }
  const int32_t* LoadLabels(const int32_t* labels, uint64_t rows, Workspace* memory) override {
    return static_cast<const int32_t*>(
        CopyTo(&OnGpu(memory)->memory, labels, rows * sizeof(int32_t), "labels"));
  }
  void Upload(const float* x, SampleShape sample, uint64_t rows, Tensor* tensor) override;
  void Download(Tensor* tensor, float* out) override;
  void View(Tensor* tensor, SampleShape sample) override {
    assert(tensor->sample().size() == sample.size());
    Plain(tensor)->Reinterpret(sample);
  }

  void LinearForward(Tensor* x, const float* weight, const float* bias, bool relu,
                     Tensor* y) override;
  void LinearBackwardData(Tensor* dy, const float* weight, Tensor* dx) override;
  void LinearBackwardWeights(Tensor* x, Tensor* dy, float* dweight, float* dbias) override;
  void Conv2dForward(Tensor* x, Conv2dGeometry geometry, const float* weight, const float* bias,
                     bool relu, Tensor* y) override;
  void Conv2dBackwardData(Tensor* dy, Conv2dGeometry geometry, const float* weight,
                          Tensor* dx) override;
  void Conv2dBackwardWeights(Tensor* x, Tensor* dy, Conv2dGeometry geometry, float* dweight,
                             float* dbias) override;
  void MaxPoolForward(Tensor* x, uint32_t kernel, bool relu_gradient, Tensor* y,
                      Workspace* argmax) override;
  void MaxPoolBackward(Tensor* dy, uint32_t kernel, Workspace* argmax, Tensor* dx) override;
  void ReluForward(Tensor* x, Tensor* y) override;
  void ReluBackward(Tensor* y, Tensor* dy, Tensor* dx) override;
  void DropoutForward(Tensor* x, const DropoutPattern& pattern, Tensor* y,
                      Workspace* kept) override;
  void DropoutBackward(Tensor* dy, float p, Workspace* kept, Tensor* dx) override;
  void LogSoftmaxForward(Tensor* x, Tensor* y) override;
  void NllForward(Tensor* y, const int32_t* labels, double* loss_sum, uint64_t* correct) override;
  void NllLogSoftmaxBackward(Tensor* y, const int32_t* labels, Tensor* dx) override;
  void LoadLookup(const Lookup& lookup, Workspace* memory) override;
  void LookupForward(const float* values, Workspace* lookup, Tensor* x) override;
  void LookupBackward(Tensor* dx, Workspace* lookup, float* gradients) override;

 private:
  // Brings a tensor to an order and returns it.
  GpuTensor* Plain(Tensor* tensor) { return In(Order::kPlain, tensor); }
  GpuTensor* Last(Tensor* tensor) { return In(Order::kLast, tensor); }
  GpuTensor* In(Order order, Tensor* tensor) {
    OnGpu(tensor)->ChangeOrder(engine_.get(), order);
    return OnGpu(tensor);
  }
  // An output's shape stays, in this order.
  GpuTensor* Shaped(Order order, Tensor* tensor) {
    OnGpu(tensor)->SetShape(engine_.get(), tensor->sample(), tensor->rows(), order);
    return OnGpu(tensor);
  }
  const void* CopyTo(DeviceMemory* memory, const void* host, size_t bytes, const char* what) {
    if (!engine_->Reserve(memory, bytes, what)) return nullptr;
    engine_->CopyIn(memory->data(), host, bytes);
    return memory->data();
  }
  const void* WeightFactor(const float* weight, uint64_t n) {
    if (engine_->math() != GemmMath::kBf16) return weight;
    return forms_.Halves(engine_.get(), weight, n);
  }
  void AddBias(const float* bias, uint32_t columns, bool relu, GpuTensor* y) {
    const uint64_t n = y->elements();
    engine_->LaunchOver(
        AddBiasKernel{{}, y->mutable_data(), bias, Divider(columns), relu, Count(n)}, n);
  }
  // Gives NllForward's callers what is there at `mark`.
  void TakeSums(Mark mark);
  absl::Status TakeFailure();

  const std::unique_ptr<GpuEngine> engine_;
  WeightForms forms_;
  GpuConv conv_;

  // What NllForward made, on its way to its callers, oldest first. Each has a place of its own, in
  // turn.
  struct Wanted {
    double* loss_sum = nullptr;
    uint64_t* correct = nullptr;
    Mark there{0};
    uint64_t place = 0;
  };
  const PinnedMemory host_sums_;  // [kMostSums]
  DeviceMemory row_losses_, row_correct_, sums_;
  std::deque<Wanted> wanted_;
  uint64_t next_sums_ = 0;
};

// ---- Order of things ----

void GpuDevice::TakeSums(Mark mark) {
  for (; !wanted_.empty() && wanted_.front().there <= mark; wanted_.pop_front()) {
    const Wanted& wanted = wanted_.front();
    const NllSums& sums = static_cast<const NllSums*>(host_sums_.data())[wanted.place];
    *wanted.loss_sum = sums.loss;
    *wanted.correct = sums.correct;
  }
}

// Whoever is told of a failure gives up what was enqueued, memory included: nothing writes there
// any more.
absl::Status GpuDevice::TakeFailure() {
  engine_->SyncAll();
  wanted_.clear();
  return engine_->TakeStatus();
}

absl::Status GpuDevice::Sync() {
  engine_->SyncAll();
  if (!engine_->ok()) return TakeFailure();
  if (!wanted_.empty()) TakeSums(wanted_.back().there);
  return absl::OkStatus();
}

absl::Status GpuDevice::Await(Mark mark) {
  engine_->Await(mark);
  if (!engine_->ok()) return TakeFailure();
  TakeSums(mark);
  return absl::OkStatus();
}

// ---- The caller's memory ----

const float* GpuDevice::LoadParameters(const float* parameters, MemoryKind kind, uint64_t n,
                                       Workspace* memory) {
  if (kind == MemoryKind::kDevice) {
    if (Aligned(parameters)) return parameters;
    DeviceMemory& copy = OnGpu(memory)->memory;
    if (!engine_->Reserve(&copy, n * sizeof(float), "parameters")) return nullptr;
    engine_->CopyWithin(copy.data(), parameters, n * sizeof(float));
    return copy.floats();
  }
  const auto* loaded = static_cast<const float*>(
      CopyTo(&OnGpu(memory)->memory, parameters, n * sizeof(float), "parameters"));
  if (loaded != nullptr) forms_.Forget(loaded, n);
  return loaded;
}

float* GpuDevice::PrepareGradients(float* gradients, MemoryKind kind, uint64_t n,
                                   Workspace* memory) {
  if (kind == MemoryKind::kDevice && Aligned(gradients)) return gradients;
  DeviceMemory& made = OnGpu(memory)->memory;
  return engine_->Reserve(&made, n * sizeof(float), "gradients") ? made.floats() : nullptr;
}

void GpuDevice::Upload(const float* x, SampleShape sample, uint64_t rows, Tensor* tensor) {
  GpuTensor* to = OnGpu(tensor);
  if (!to->SetShape(engine_.get(), sample, rows, Order::kPlain)) return;
  engine_->CopyIn(to->mutable_data(), x, to->elements() * sizeof(float));
}

void GpuDevice::Download(Tensor* tensor, float* out) {
  const GpuTensor* from = Plain(tensor);
  engine_->CopyOut(out, from->data(), from->elements() * sizeof(float));
  engine_->HoldOperations();  // they may overwrite it
}

// ---- Products ----

void GpuDevice::LinearForward(Tensor* x, const float* weight, const float* bias, bool relu,
                              Tensor* y) {
  GpuTensor* out = OnGpu(y);
  const uint64_t in_size = x->sample().size(), out_size = y->sample().size();
  GemmCall call{.math = engine_->math(), .transpose_b = true};
  call.m = static_cast<int64_t>(x->rows());
  call.n = static_cast<int64_t>(out_size);
  call.k = static_cast<int64_t>(in_size);
  call.a = Plain(x)->Factor(engine_.get());
  call.b = WeightFactor(weight, in_size * out_size);
  call.c = out->mutable_data();
  engine_->Gemm(call);
  AddBias(bias, Count(out_size), relu, out);
}

void GpuDevice::LinearBackwardData(Tensor* dy, const float* weight, Tensor* dx) {
  const uint64_t in_size = dx->sample().size(), out_size = dy->sample().size();
  GemmCall call{.math = engine_->math()};
  call.m = static_cast<int64_t>(dy->rows());
  call.n = static_cast<int64_t>(in_size);
  call.k = static_cast<int64_t>(out_size);
  call.a = Plain(dy)->Factor(engine_.get());
  call.b = WeightFactor(weight, in_size * out_size);
  call.c = OnGpu(dx)->mutable_data();
  engine_->Gemm(call);
}

void GpuDevice::LinearBackwardWeights(Tensor* x, Tensor* dy, float* dweight, float* dbias) {
  GpuTensor* gradient = Plain(dy);
  const uint64_t in_size = x->sample().size(), out_size = dy->sample().size();
  SumRowsOnGpu(engine_.get(), gradient->data(), dy->rows(), Count(out_size), dbias);
  GemmCall call{.math = engine_->math(), .transpose_a = true};
  call.m = static_cast<int64_t>(out_size);
  call.n = static_cast<int64_t>(in_size);
  call.k = static_cast<int64_t>(x->rows());
  call.a = gradient->Factor(engine_.get());
  call.b = Plain(x)->Factor(engine_.get());
  call.c = dweight;
  engine_->Gemm(call);
}

void GpuDevice::Conv2dForward(Tensor* x, Conv2dGeometry geometry, const float* weight,
                              const float* bias, bool relu, Tensor* y) {
  GpuTensor* out = Shaped(Order::kLast, y);
  conv_.Forward(Last(x), geometry, weight, out);
  AddBias(bias, y->sample().channels, relu, out);
}

void GpuDevice::Conv2dBackwardData(Tensor* dy, Conv2dGeometry geometry, const float* weight,
                                   Tensor* dx) {
  conv_.BackwardData(Last(dy), geometry, weight, Shaped(Order::kLast, dx));
}

void GpuDevice::Conv2dBackwardWeights(Tensor* x, Tensor* dy, Conv2dGeometry geometry,
                                      float* dweight, float* dbias) {
  GpuTensor* gradient = Last(dy);
  const SampleShape out = dy->sample();
  SumRowsOnGpu(engine_.get(), gradient->data(), dy->rows() * out.height * out.width, out.channels,
               dbias);
  conv_.BackwardWeights(Last(x), gradient, geometry, dweight);
}

// ---- Element by element ----

PoolShape2d ShapeOfPool(SampleShape x, uint32_t kernel) {
  return {Divider(x.channels),        Divider(x.width), Divider(x.width / kernel),
          Divider(x.height / kernel), x.height,         kernel,
          Divider(x.height),          Divider(kernel)};
}

void GpuDevice::MaxPoolForward(Tensor* x, uint32_t kernel, bool relu_gradient, Tensor* y,
                               Workspace* argmax) {
  DeviceMemory& places = OnGpu(argmax)->memory;
  const uint64_t n = y->elements();
  if (!engine_->Reserve(&places, n, "max_pool2d")) return;
  const float* in = Last(x)->data();
  float* out = Shaped(Order::kLast, y)->mutable_data();
  engine_->LaunchOver(
      MaxPoolKernel{
          {}, in, out, places.bytes(), ShapeOfPool(x->sample(), kernel), relu_gradient, Count(n)},
      n);
}

void GpuDevice::MaxPoolBackward(Tensor* dy, uint32_t kernel, Workspace* argmax, Tensor* dx) {
  const uint64_t n = dx->elements();
  const float* gradient = Last(dy)->data();
  float* out = Shaped(Order::kLast, dx)->mutable_data();
  engine_->LaunchOver(MaxPoolGradientKernel{{},
                                            gradient,
                                            OnGpu(argmax)->memory.bytes(),
                                            out,
                                            ShapeOfPool(dx->sample(), kernel),
                                            Count(n)},
                      n);
}

void GpuDevice::ReluForward(Tensor* x, Tensor* y) {
  GpuTensor* in = OnGpu(x);
  const uint64_t n = in->elements();
  float* out = Shaped(in->order(), y)->mutable_data();
  engine_->LaunchOver(ReluKernel{{}, in->data(), out, Count(n)}, n);
}

void GpuDevice::ReluBackward(Tensor* y, Tensor* dy, Tensor* dx) {
  // Viewed as another shape since, only its plain order is the gradient's.
  GpuTensor* activation = y->sample() == dy->sample() ? OnGpu(y) : Plain(y);
  const uint64_t n = activation->elements();
  const float* gradient = In(activation->order(), dy)->data();
  float* out = (dx == dy ? OnGpu(dx) : Shaped(activation->order(), dx))->mutable_data();
  engine_->LaunchOver(ReluGradientKernel{{}, activation->data(), gradient, out, Count(n)}, n);
}

void GpuDevice::DropoutForward(Tensor* x, const DropoutPattern& pattern, Tensor* y,
                               Workspace* kept) {
  GpuTensor* in = OnGpu(x);
  DeviceMemory& mask = OnGpu(kept)->memory;
  const uint64_t n = in->elements();
  if (!engine_->Reserve(&mask, n, "dropout")) return;
  DropoutKernel kernel{};
  kernel.x = in->data();
  kernel.order = in->element_order();
  kernel.y = Shaped(Order::kPlain, y)->mutable_data();
  kernel.keep = mask.bytes();
  kernel.seed = pattern.seed;
  kernel.stream = pattern.stream;
  kernel.first = pattern.first_row * in->sample().size();
  kernel.p = pattern.p;
  kernel.scale = 1 / (1 - pattern.p);
  kernel.n = Count(n);
  engine_->LaunchOver(kernel, DropoutKernel::Groups(kernel.first, n));
}

void GpuDevice::DropoutBackward(Tensor* dy, float p, Workspace* kept, Tensor* dx) {
  const uint64_t n = dy->elements();
  const float* gradient = Plain(dy)->data();
  float* out = Shaped(Order::kPlain, dx)->mutable_data();
  engine_->LaunchOver(
      DropoutGradientKernel{{}, gradient, OnGpu(kept)->memory.bytes(), out, 1 / (1 - p), Count(n)},
      n);
}

// ---- The loss ----

void GpuDevice::LogSoftmaxForward(Tensor* x, Tensor* y) {
  const float* in = Plain(x)->data();
  engine_->Launch(
      LogSoftmaxKernel{
          {}, in, OnGpu(y)->mutable_data(), Count(x->rows()), Count(x->sample().size())},
      RowKernel::Blocks(x->rows()));
}

void GpuDevice::NllForward(Tensor* y, const int32_t* labels, double* loss_sum, uint64_t* correct) {
  const uint64_t rows = y->rows();
  if (!engine_->Reserve(&row_losses_, rows * sizeof(float), "the loss") ||
      !engine_->Reserve(&row_correct_, rows, "the loss") ||
      !engine_->Reserve(&sums_, kMostSums * sizeof(NllSums), "the loss")) {
    return;
  }
  if (wanted_.size() == kMostSums) {  // its place is needed
    engine_->Await(wanted_.front().there);
    if (!engine_->ok()) return;
    TakeSums(wanted_.front().there);
  }
  const uint64_t place = next_sums_++ % kMostSums;
  engine_->Launch(NllRowsKernel{{},
                                Plain(y)->data(),
                                labels,
                                row_losses_.floats(),
                                row_correct_.bytes(),
                                Count(rows),
                                Count(y->sample().size())},
                  RowKernel::Blocks(rows));
  NllSums* sums = static_cast<NllSums*>(sums_.data()) + place;
  engine_->Launch(NllSumKernel{row_losses_.floats(), row_correct_.bytes(), sums, Count(rows)}, 1);
  engine_->CopyOut(static_cast<NllSums*>(host_sums_.data()) + place, sums, sizeof(NllSums));
  wanted_.push_back({loss_sum, correct, engine_->MarkHere(), place});
}

void GpuDevice::NllLogSoftmaxBackward(Tensor* y, const int32_t* labels, Tensor* dx) {
  const uint64_t n = y->elements();
  const float* in = Plain(y)->data();
  engine_->LaunchOver(
      NllGradientKernel{
          {}, in, labels, OnGpu(dx)->mutable_data(), Divider(Count(y->sample().size())), Count(n)},
      n);
}

// ---- Embeddings ----

void GpuDevice::LoadLookup(const Lookup& lookup, Workspace* memory) {
  GpuWorkspace* to = OnGpu(memory);
  to->lookup = lookup;  // its numbers, whatever fails below
  const uint64_t places = lookup.samples * lookup.fields;
  if (places > UINT32_MAX || lookup.keys * lookup.dim > UINT32_MAX) {  // kernels count in 32 bits
    engine_->Note(absl::ResourceExhaustedError(
        absl::StrFormat("gpu: an embedding of %d rows of %d values at %d places is too large, "
                        "allowed are fewer than 2^32 values and places: take a smaller batch",
                        lookup.keys, lookup.dim, places)));
    return;
  }
  const uint64_t taken = lookup.keys == 0 ? 0 : lookup.starts[lookup.keys];
  // One piece of memory: index, starts, places, factors.
  const uint64_t words = places + lookup.keys + 1 + taken + (lookup.factors ? places : 0);
  if (!engine_->Reserve(&to->memory, words * sizeof(uint32_t), "embedding")) return;
  uint32_t* at = to->memory.words();
  const auto put = [&](const void* from, uint64_t n) {
    engine_->CopyIn(at, from, n * sizeof(uint32_t));
    return std::exchange(at, at + n);
  };
  to->lookup.index = put(lookup.index, places);
  to->lookup.starts = put(lookup.starts, lookup.keys + 1);
  to->lookup.places = put(lookup.places, taken);
  if (lookup.factors != nullptr) {
    to->lookup.factors = reinterpret_cast<const float*>(put(lookup.factors, places));
  }
}

void GpuDevice::LookupForward(const float* values, Workspace* lookup, Tensor* x) {
  const Lookup& l = OnGpu(lookup)->lookup;
  const uint64_t n = x->elements();
  engine_->LaunchOver(LookupKernel{{},
                                   values,
                                   l.index,
                                   l.factors,
                                   OnGpu(x)->mutable_data(),
                                   Divider(l.dim),
                                   l.fields,
                                   l.sum,
                                   Count(n)},
                      n);
}

void GpuDevice::LookupBackward(Tensor* dx, Workspace* lookup, float* gradients) {
  const Lookup& l = OnGpu(lookup)->lookup;
  const uint64_t n = l.keys * l.dim;
  const float* in = Plain(dx)->data();
  engine_->LaunchOver(LookupGradientKernel{{},
                                           in,
                                           l.starts,
                                           l.places,
                                           l.factors,
                                           gradients,
                                           Divider(l.dim),
                                           Divider(l.fields),
                                           l.sum,
                                           Count(n)},
                      n);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateGpuDevice(std::shared_ptr<Gpu> gpu,
                                                        const GpuDeviceOptions& options) {
  absl::StatusOr<PinnedMemory> sums = PinnedMemory::Create(gpu.get(), kMostSums * sizeof(NllSums));
  if (!sums.ok()) return sums.status();
  absl::StatusOr<std::unique_ptr<GpuEngine>> engine =
      GpuEngine::Create(gpu, options.math, options.graphs);
  if (!engine.ok()) return engine.status();
  return std::make_unique<GpuDevice>(*std::move(engine), *std::move(sums), options.column_bytes);
}

}  // namespace parley
