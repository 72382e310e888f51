#include "models/gpu/gpu_tensor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "models/gpu/unfold_kernels.h"

namespace parley {

bool GpuTensor::SetShape(GpuEngine* engine, SampleShape sample, uint64_t rows, Order order) {
  sample_ = sample;
  rows_ = rows;
  order_ = order;
  has_halves_ = false;
  if (elements() > UINT32_MAX) {  // kernels count in 32 bits
    engine->Note(absl::ResourceExhaustedError(
        absl::StrFormat("gpu: activations [%d] x %s are %d values, allowed are fewer than 2^32: "
                        "take a smaller batch",
                        rows, ToString(sample), elements())));
    return false;
  }
  return engine->Reserve(&memory_, elements() * sizeof(float), "activations");
}

ElementOrder GpuTensor::element_order() const {
  const uint32_t spatial = sample_.height * sample_.width;
  const bool plain = order_ == Order::kPlain || SameInBoth();
  return {Divider(spatial), Divider(plain ? 1 : sample_.channels)};
}

void GpuTensor::ChangeOrder(GpuEngine* engine, Order order) {
  if (order == order_) return;
  if (SameInBoth()) {
    order_ = order;
    return;
  }
  const size_t bytes = elements() * sizeof(float);
  if (!engine->Reserve(&engine->spare(), bytes, "activations")) return;
  const uint32_t n = static_cast<uint32_t>(elements());
  const ElementOrder last{Divider(sample_.height * sample_.width), Divider(sample_.channels)};
  float* to = engine->spare().floats();
  if (order == Order::kPlain) {
    engine->LaunchOver(ToPlainKernel{{}, data(), to, last, n}, n);
  } else {
    engine->LaunchOver(ToLastKernel{{}, data(), to, last, n}, n);
  }
  std::swap(memory_, engine->spare());
  order_ = order;
  has_halves_ = false;
}

const uint16_t* GpuTensor::Halves(GpuEngine* engine) {
  if (!engine->Reserve(&halves_, elements() * sizeof(uint16_t), "activations")) return nullptr;
  if (!std::exchange(has_halves_, true)) {
    engine->LaunchOver(ToBf16Kernel{{}, data(), halves_.halves(), elements()}, elements());
  }
  return halves_.halves();
}

void WeightForms::Forget(const float* weights, uint64_t n) {
  for (auto& [at, form] : forms_) {
    if (at >= weights && at < weights + n) form.step = kNever;
  }
}

WeightForms::Form* WeightForms::Find(GpuEngine* engine, const float* weights, size_t bytes,
                                     bool* stale) {
  Form& form = forms_[weights];
  *stale = std::exchange(form.step, engine->step()) != engine->step() || form.memory.size() < bytes;
  return engine->Reserve(&form.memory, bytes, "weights") ? &form : nullptr;
}

const uint16_t* WeightForms::Halves(GpuEngine* engine, const float* weights, uint64_t n) {
  bool stale = false;
  Form* form = Find(engine, weights, n * sizeof(uint16_t), &stale);
  if (form == nullptr) return nullptr;
  if (stale) engine->LaunchOver(ToBf16Kernel{{}, weights, form->memory.halves(), n}, n);
  return form->memory.halves();
}

const void* WeightForms::Rows(GpuEngine* engine, const float* weights, uint64_t out,
                              uint32_t channels, uint32_t taps) {
  const bool halves = engine->math() == GemmMath::kBf16;
  const uint32_t n = static_cast<uint32_t>(out * channels * taps);
  bool stale = false;
  Form* form = Find(engine, weights, n * (halves ? sizeof(uint16_t) : sizeof(float)), &stale);
  if (form == nullptr) return nullptr;
  if (stale && halves) {
    engine->LaunchOver(
        WeightsToRowsKernel<uint16_t>{
            {}, weights, form->memory.halves(), Divider(channels), Divider(taps), n},
        n);
  } else if (stale) {
    engine->LaunchOver(
        WeightsToRowsKernel<float>{
            {}, weights, form->memory.floats(), Divider(channels), Divider(taps), n},
        n);
  }
  return form->memory.data();
}

void SumRowsOnGpu(GpuEngine* engine, const float* x, uint64_t rows, uint32_t n, float* sums) {
  // Enough blocks for any GPU, chunks long enough that their partial sums are few.
  constexpr uint64_t kBlocks = 1024, kLeastRows = 256;
  const uint32_t groups = (n + SumRowsKernel::kColumns - 1) / SumRowsKernel::kColumns;
  const uint64_t most = std::max<uint64_t>(1, kBlocks / groups);
  const uint64_t chunks = std::clamp<uint64_t>(rows / kLeastRows, 1, most);
  const uint64_t rows_of_chunk = std::max<uint64_t>(1, (rows + chunks - 1) / chunks);
  float* partial = sums;
  if (chunks > 1) {
    if (!engine->Reserve(&engine->partial(), chunks * n * sizeof(float), "sums")) return;
    partial = engine->partial().floats();
  }
  engine->Launch(SumRowsKernel{x, partial, static_cast<uint32_t>(rows), n,
                               static_cast<uint32_t>(rows_of_chunk), Divider(groups)},
                 static_cast<uint32_t>(groups * chunks));
  if (chunks == 1) return;
  engine->Launch(SumRowsKernel{partial, sums, static_cast<uint32_t>(chunks), n,
                               static_cast<uint32_t>(chunks), Divider(groups)},
                 groups);
}

}  // namespace parley
