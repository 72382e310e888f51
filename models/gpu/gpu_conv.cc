#include "models/gpu/gpu_conv.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "models/gpu/unfold_kernels.h"

namespace parley {

struct GpuConv::Plan {
  Plan(SampleShape in, SampleShape out, Conv2dGeometry geometry, GemmMath math, size_t most_bytes)
      : shape{Divider(in.channels), Divider(geometry.kernel), Divider(in.width), Divider(in.height),
              Divider(out.width),   Divider(out.height),      geometry.padding},
        math(math),
        taps(geometry.kernel * geometry.kernel),
        depth(uint64_t{in.channels} * taps),
        places(uint64_t{out.height} * out.width),
        outputs(out.channels),
        in_size(in.size()),
        value_bytes(math == GemmMath::kBf16 ? 2 : 4) {
    // Kernels count in 32 bits.
    const uint64_t most = std::min<uint64_t>(most_bytes / sizeof(float), UINT32_MAX);
    rows_at_once = std::max<uint64_t>(1, most / (places * depth));
  }
  // Nothing to unfold.
  bool as_it_is() const { return taps == 1; }

  ConvShape shape;
  GemmMath math;
  uint32_t taps;
  uint64_t depth;   // of an unfolded row
  uint64_t places;  // of a sample's output
  uint64_t outputs, in_size;
  size_t value_bytes;  // of a factor
  uint64_t rows_at_once;
};

// One sample's unfolded input is the least that there is at once. False: noted.
bool GpuConv::Fits(const Plan& plan) {
  if (plan.places * plan.depth <= UINT32_MAX) return true;
  engine_->Note(absl::ResourceExhaustedError(absl::StrFormat(
      "gpu: a convolution unfolds a sample to %d x %d values, allowed are fewer than 2^32",
      plan.places, plan.depth)));
  return false;
}

// [rows * places, depth] of the rows from `first` on.
const void* GpuConv::Unfold(const Plan& plan, GpuTensor* x, uint64_t first, uint64_t rows) {
  if (plan.as_it_is()) {
    const void* all = x->Factor(engine_);
    return static_cast<const uint8_t*>(all) + first * plan.in_size * plan.value_bytes;
  }
  const uint64_t n = rows * plan.places * plan.depth;
  DeviceMemory& columns = engine_->columns();
  if (!engine_->Reserve(&columns, n * plan.value_bytes, "a convolution's unfolded input")) {
    return nullptr;
  }
  const float* from = x->data() + first * plan.in_size;
  const uint32_t count = static_cast<uint32_t>(n);
  if (plan.math == GemmMath::kBf16) {
    engine_->LaunchOver(UnfoldKernel<uint16_t>{{}, from, columns.halves(), plan.shape, count}, n);
  } else {
    engine_->LaunchOver(UnfoldKernel<float>{{}, from, columns.floats(), plan.shape, count}, n);
  }
  return columns.data();
}

void GpuConv::Forward(GpuTensor* x, Conv2dGeometry geometry, const float* weight, GpuTensor* y) {
  const Plan plan(x->sample(), y->sample(), geometry, engine_->math(), column_bytes_);
  if (!Fits(plan)) return;
  const void* filters =
      forms_->Rows(engine_, weight, plan.outputs, x->sample().channels, plan.taps);
  float* out = y->mutable_data();
  for (uint64_t first = 0; first < x->rows() && engine_->ok(); first += plan.rows_at_once) {
    const uint64_t rows = std::min(plan.rows_at_once, x->rows() - first);
    GemmCall call{.math = plan.math, .transpose_b = true};
    call.m = static_cast<int64_t>(rows * plan.places);
    call.n = static_cast<int64_t>(plan.outputs);
    call.k = static_cast<int64_t>(plan.depth);
    call.a = Unfold(plan, x, first, rows);
    call.b = filters;
    call.c = out + first * plan.places * plan.outputs;
    engine_->Gemm(call);
  }
}

void GpuConv::BackwardData(GpuTensor* dy, Conv2dGeometry geometry, const float* weight,
                           GpuTensor* dx) {
  const Plan plan(dx->sample(), dy->sample(), geometry, engine_->math(), column_bytes_);
  if (!Fits(plan)) return;
  const void* filters =
      forms_->Rows(engine_, weight, plan.outputs, dx->sample().channels, plan.taps);
  const auto* gradient = static_cast<const uint8_t*>(dy->Factor(engine_));
  float* out = dx->mutable_data();
  DeviceMemory& columns = engine_->columns();
  for (uint64_t first = 0; first < dx->rows() && engine_->ok(); first += plan.rows_at_once) {
    const uint64_t rows = std::min(plan.rows_at_once, dx->rows() - first);
    float* to = out + first * plan.in_size;
    const uint64_t unfolded = rows * plan.places * plan.depth;
    if (!plan.as_it_is() &&
        !engine_->Reserve(&columns, unfolded * sizeof(float), "a convolution's unfolded input")) {
      return;
    }
    GemmCall call{.math = plan.math};
    call.m = static_cast<int64_t>(rows * plan.places);
    call.n = static_cast<int64_t>(plan.depth);
    call.k = static_cast<int64_t>(plan.outputs);
    call.a = gradient + first * plan.places * plan.outputs * plan.value_bytes;
    call.b = filters;
    call.c = plan.as_it_is() ? to : columns.floats();
    engine_->Gemm(call);
    if (plan.as_it_is()) continue;
    const uint64_t n = rows * plan.in_size;
    engine_->LaunchOver(FoldKernel{{}, columns.floats(), to, plan.shape, static_cast<uint32_t>(n)},
                        n);
  }
}

void GpuConv::BackwardWeights(GpuTensor* x, GpuTensor* dy, Conv2dGeometry geometry,
                              float* dweight) {
  const Plan plan(x->sample(), dy->sample(), geometry, engine_->math(), column_bytes_);
  if (!Fits(plan)) return;
  const uint64_t n = plan.outputs * plan.depth;
  if (!engine_->Reserve(&engine_->rows(), n * sizeof(float), "a gradient")) return;
  const auto* gradient = static_cast<const uint8_t*>(dy->Factor(engine_));
  for (uint64_t first = 0; first < x->rows() && engine_->ok(); first += plan.rows_at_once) {
    const uint64_t rows = std::min(plan.rows_at_once, x->rows() - first);
    GemmCall call{.math = plan.math, .transpose_a = true, .accumulate = first > 0};
    call.m = static_cast<int64_t>(plan.outputs);
    call.n = static_cast<int64_t>(plan.depth);
    call.k = static_cast<int64_t>(rows * plan.places);
    call.a = gradient + first * plan.places * plan.outputs * plan.value_bytes;
    call.b = Unfold(plan, x, first, rows);
    call.c = engine_->rows().floats();
    engine_->Gemm(call);
  }
  engine_->LaunchOver(RowsToWeightsKernel{{},
                                          engine_->rows().floats(),
                                          dweight,
                                          plan.shape.channels,
                                          Divider(plan.taps),
                                          static_cast<uint32_t>(n)},
                      n);
}

}  // namespace parley
