#include "models/cpu/cpu_device.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "models/cpu/cpu_backend.h"
#include "models/cpu/cpu_kernels.h"
#include "models/cpu/cpu_tensor.h"
#include "models/cpu/keep_mask.h"

namespace parley {
namespace {

class CpuWorkspace final : public Workspace {
 public:
  GrowingBuffer memory;
  Lookup lookup;
  uint64_t offset = 0;  // of the first byte that counts
  uint32_t block = 1;   // order of the tensor it belongs to
};

CpuTensor* Cpu(Tensor* tensor) { return static_cast<CpuTensor*>(tensor); }
CpuWorkspace* Cpu(Workspace* workspace) { return static_cast<CpuWorkspace*>(workspace); }

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(std::unique_ptr<CpuBackend> backend) : backend_(std::move(backend)) {}

  std::string description() const override {
    return absl::StrFormat("cpu (%s, %d thread%s)", backend_->name(), backend_->threads(),
                           backend_->threads() == 1 ? "" : "s");
  }
  bool asynchronous() const override { return false; }
  absl::Status Sync() override { return std::exchange(status_, absl::OkStatus()); }
  void Flush() override {}
  Mark MarkHere() override { return Mark{0}; }
  bool Reached(Mark) override { return true; }
  absl::Status Await(Mark) override { return Sync(); }
  void BeginStep() override {}

  // Everything is read and written where the caller has it.
  const float* LoadParameters(const float* parameters, MemoryKind, uint64_t, Workspace*) override {
    return parameters;
  }
  float* PrepareGradients(float* gradients, MemoryKind, uint64_t, Workspace*) override {
    return gradients;
  }
  void StoreGradients(const float*, MemoryKind, uint64_t, float*) override {}
  absl::Status FetchParameters(const float* parameters, uint64_t n, float* out) override {
    std::copy_n(parameters, n, out);
    return absl::OkStatus();
  }
  const int32_t* LoadLabels(const int32_t* labels, uint64_t, Workspace*) override { return labels; }
  std::unique_ptr<Tensor> NewTensor() override { return std::make_unique<CpuTensor>(); }
  std::unique_ptr<Workspace> NewWorkspace() override { return std::make_unique<CpuWorkspace>(); }

  absl::Status Prepare(Tensor* tensor, SampleShape sample, uint64_t rows) override;
  void Upload(const float* x, SampleShape sample, uint64_t rows, Tensor* tensor) override {
    Cpu(tensor)->Borrow(x, sample, rows);
  }
  void Download(Tensor* tensor, float* out) override;
  void View(Tensor* tensor, SampleShape sample) override;

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
  void LoadLookup(const Lookup& lookup, Workspace* memory) override {
    Cpu(memory)->lookup = lookup;
  }
  void LookupForward(const float* values, Workspace* lookup, Tensor* x) override;
  void LookupBackward(Tensor* dx, Workspace* lookup, float* gradients) override;

 private:
  // Runs one operation unless an earlier one failed. Growing scratch memory may throw.
  template <typename Operation>
  void Run(const char* name, Operation operation) {
    if (!status_.ok()) return;
    try {
      if constexpr (std::is_void_v<decltype(operation())>) {
        operation();
      } else {
        status_ = operation();
      }
    } catch (const std::bad_alloc&) {
      status_ = absl::ResourceExhaustedError(absl::StrFormat("cpu: no memory for %s", name));
    }
  }
  // Takes `tensor` to plain order and returns it.
  CpuTensor* Plain(Tensor* tensor) {
    Cpu(tensor)->ChangeBlock(1, &spare_);
    return Cpu(tensor);
  }

  const std::unique_ptr<CpuBackend> backend_;
  absl::Status status_;
  GrowingBuffer spare_;  // the other half of an in-place reordering
};

absl::Status CpuDevice::Prepare(Tensor* tensor, SampleShape sample, uint64_t rows) {
  try {
    Cpu(tensor)->SetShape(sample, rows, 1);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cpu: no memory for activations [%d] x %s", rows, ToString(sample)));
  }
  return absl::OkStatus();
}

void CpuDevice::Download(Tensor* tensor, float* out) {
  Run("download", [&] {
    CpuTensor* plain = Plain(tensor);
    std::copy_n(plain->data(), plain->elements(), out);
  });
}

void CpuDevice::View(Tensor* tensor, SampleShape sample) {
  assert(tensor->sample().size() == sample.size());
  Run("flatten", [&] { Plain(tensor)->Reinterpret(sample); });
}

void CpuDevice::LinearForward(Tensor* x, const float* weight, const float* bias, bool relu,
                              Tensor* y) {
  Run("linear", [&] {
    const int64_t rows = x->rows(), in = x->sample().size(), out = y->sample().size();
    float* result = Cpu(y)->mutable_data();
    absl::Status status =
        backend_->Gemm({false, true, rows, out, in}, Plain(x)->data(), weight, result);
    AddBias(bias, rows, out, relu, result);
    return status;
  });
}

void CpuDevice::LinearBackwardData(Tensor* dy, const float* weight, Tensor* dx) {
  Run("linear", [&] {
    const int64_t rows = dy->rows(), out = dy->sample().size(), in = dx->sample().size();
    return backend_->Gemm({false, false, rows, in, out}, Plain(dy)->data(), weight,
                          Cpu(dx)->mutable_data());
  });
}

void CpuDevice::LinearBackwardWeights(Tensor* x, Tensor* dy, float* dweight, float* dbias) {
  Run("linear", [&] {
    const int64_t rows = dy->rows(), out = dy->sample().size(), in = x->sample().size();
    const float* gradient = Plain(dy)->data();
    SumRows(gradient, rows, out, dbias);
    return backend_->Gemm({true, false, out, in, rows}, gradient, Plain(x)->data(), dweight);
  });
}

void CpuDevice::Conv2dForward(Tensor* x, Conv2dGeometry geometry, const float* weight,
                              const float* bias, bool relu, Tensor* y) {
  Run("conv2d",
      [&] { return backend_->ConvForward(Cpu(x), geometry, weight, bias, relu, Cpu(y)); });
}

void CpuDevice::Conv2dBackwardData(Tensor* dy, Conv2dGeometry geometry, const float* weight,
                                   Tensor* dx) {
  Run("conv2d", [&] { return backend_->ConvBackwardData(Cpu(dy), geometry, weight, Cpu(dx)); });
}

void CpuDevice::Conv2dBackwardWeights(Tensor* x, Tensor* dy, Conv2dGeometry geometry,
                                      float* dweight, float* dbias) {
  Run("conv2d",
      [&] { return backend_->ConvBackwardWeights(Cpu(x), Cpu(dy), geometry, dweight, dbias); });
}

PoolShape PoolShapeOf(const CpuTensor& x, uint32_t kernel) {
  return {x.rows() * x.channel_blocks(), x.sample().height, x.sample().width, x.block(), kernel};
}

void CpuDevice::MaxPoolForward(Tensor* x, uint32_t kernel, bool relu_gradient, Tensor* y,
                               Workspace* argmax) {
  assert(kernel >= 1 && kernel <= kMaxPoolKernel);
  Run("max_pool2d", [&] {
    CpuTensor *in = Cpu(x), *out = Cpu(y);
    CpuWorkspace* places = Cpu(argmax);
    // Channel blocks stay: the loops run over their lanes, and a convolution may follow.
    out->SetShape(out->sample(), out->rows(), in->block());
    places->block = in->block();
    places->memory.Reserve(out->physical_elements());
    MaxPool(PoolShapeOf(*in, kernel), in->data(), relu_gradient, out->mutable_data(),
            places->memory.bytes());
  });
}

void CpuDevice::MaxPoolBackward(Tensor* dy, uint32_t kernel, Workspace* argmax, Tensor* dx) {
  Run("max_pool2d", [&] {
    CpuTensor* out = Cpu(dx);
    CpuWorkspace* places = Cpu(argmax);
    Cpu(dy)->ChangeBlock(places->block, &spare_);
    out->SetShape(out->sample(), out->rows(), places->block);
    MaxPoolGradient(PoolShapeOf(*out, kernel), Cpu(dy)->data(), places->memory.bytes(),
                    out->mutable_data());
  });
}

void CpuDevice::ReluForward(Tensor* x, Tensor* y) {
  Run("relu", [&] {
    CpuTensor *in = Cpu(x), *out = Cpu(y);
    out->SetShape(in->sample(), in->rows(), in->block());
    Relu(in->data(), in->physical_elements(), out->mutable_data());
  });
}

void CpuDevice::ReluBackward(Tensor* y, Tensor* dy, Tensor* dx) {
  Run("relu", [&] {
    CpuTensor *activation = Cpu(y), *gradient = Cpu(dy), *out = Cpu(dx);
    // Viewed as another shape and read by a convolution since, it may lie in blocks that are not
    // the gradient's.
    if (!(activation->sample() == gradient->sample())) activation->ChangeBlock(1, &spare_);
    gradient->ChangeBlock(activation->block(), &spare_);
    if (out != gradient) {
      out->SetShape(gradient->sample(), gradient->rows(), gradient->block());
    }
    ReluGradient(activation->data(), gradient->data(), gradient->physical_elements(),
                 out->mutable_data());
  });
}

void CpuDevice::DropoutForward(Tensor* x, const DropoutPattern& pattern, Tensor* y,
                               Workspace* kept) {
  Run("dropout", [&] {
    CpuTensor* in = Cpu(x);
    CpuWorkspace* mask = Cpu(kept);
    const uint64_t features = in->sample().size();
    const uint64_t first = pattern.first_row * features;
    // The generator works from a multiple of four on; what is before `first` goes unused.
    mask->offset = first % 4;
    const uint64_t count = mask->offset + in->elements();
    mask->memory.Reserve(count + kKeepMaskGroup);
    FillKeepMask(pattern.seed, pattern.stream, first - mask->offset, count, pattern.p,
                 mask->memory.bytes());
    const uint8_t* keep = mask->memory.bytes() + mask->offset;
    float* out = Cpu(y)->mutable_data();
    // The pattern is in plain order: a row goes there on its way, while it is in cache.
    for (uint64_t r = 0; r < in->rows(); ++r, keep += features, out += features) {
      const float* row = in->data() + r * features;
      if (in->block() != 1) {
        in->CopyRow(r, out);
        row = out;
      }
      ApplyMask(row, keep, 1 / (1 - pattern.p), features, out);
    }
  });
}

void CpuDevice::DropoutBackward(Tensor* dy, float p, Workspace* kept, Tensor* dx) {
  Run("dropout", [&] {
    CpuWorkspace* mask = Cpu(kept);
    ApplyMask(Plain(dy)->data(), mask->memory.bytes() + mask->offset, 1 / (1 - p), dy->elements(),
              Cpu(dx)->mutable_data());
  });
}

void CpuDevice::LogSoftmaxForward(Tensor* x, Tensor* y) {
  Run("log_softmax",
      [&] { LogSoftmax(Plain(x)->data(), x->rows(), x->sample().size(), Cpu(y)->mutable_data()); });
}

void CpuDevice::NllForward(Tensor* y, const int32_t* labels, double* loss_sum, uint64_t* correct) {
  Run("nll", [&] {
    const uint64_t classes = y->sample().size();
    const float* row = Plain(y)->data();
    *loss_sum = 0;
    *correct = 0;
    for (uint64_t r = 0; r < y->rows(); ++r, row += classes) {
      *loss_sum -= row[labels[r]];
      *correct += std::max_element(row, row + classes) == row + labels[r] ? 1 : 0;
    }
  });
}

void CpuDevice::NllLogSoftmaxBackward(Tensor* y, const int32_t* labels, Tensor* dx) {
  Run("nll", [&] {
    const uint64_t classes = y->sample().size();
    const float* log_probability = Plain(y)->data();
    float* gradient = Cpu(dx)->mutable_data();
    for (uint64_t i = 0; i < y->elements(); ++i) gradient[i] = std::exp(log_probability[i]);
    for (uint64_t r = 0; r < y->rows(); ++r) gradient[r * classes + labels[r]] -= 1;
  });
}

void CpuDevice::LookupForward(const float* values, Workspace* lookup, Tensor* x) {
  Run("embedding", [&] { GatherRows(Cpu(lookup)->lookup, values, Cpu(x)->mutable_data()); });
}

void CpuDevice::LookupBackward(Tensor* dx, Workspace* lookup, float* gradients) {
  Run("embedding", [&] { ScatterRows(Cpu(lookup)->lookup, Plain(dx)->data(), gradients); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCpuDevice(const CpuDeviceOptions& options) {
  if (options.threads < 1 || options.threads > 256) {
    return absl::InvalidArgumentError(
        absl::StrFormat("threads of the cpu device is %d, allowed is 1..256", options.threads));
  }
  std::unique_ptr<CpuBackend> backend;
  if (options.use_onednn) backend = CreateOneDnnBackend(options.threads);
  if (backend == nullptr) backend = CreateEigenBackend();
  return std::make_unique<CpuDevice>(std::move(backend));
}

}  // namespace parley
