// GEMM and convolution by oneDNN.
//
// A convolution is compiled once per shape and row count and kept; activations stay in the channel
// blocks that the compiled forward pass asks for, and the backward passes are held to the same
// ones. Parameters come and go in plain order: reordering a few thousand weights a step is cheap,
// reordering activations is not.
#include <omp.h>

#include <algorithm>
#include <list>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_format.h"
#include "models/cpu/cpu_backend.h"

namespace parley {
namespace {

using Dims = dnnl::memory::dims;
using Tag = dnnl::memory::format_tag;
using Desc = dnnl::memory::desc;
using Arguments = std::unordered_map<int, dnnl::memory>;
constexpr auto kF32 = dnnl::memory::data_type::f32;

// What a compiled convolution depends on.
struct ConvKey {
  uint64_t rows;
  SampleShape in, out;
  uint32_t kernel, padding;
  bool relu;
  friend bool operator==(const ConvKey&, const ConvKey&) = default;
};

Desc Activations(uint64_t rows, SampleShape s, uint32_t block) {
  const Dims dims{static_cast<int64_t>(rows), s.channels, s.height, s.width};
  if (block == 8) return Desc(dims, kF32, Tag::nChw8c);
  if (block == 16) return Desc(dims, kF32, Tag::nChw16c);
  if (block != 1 && block == s.channels) return Desc(dims, kF32, Tag::nhwc);
  return Desc(dims, kF32, Tag::nchw);
}

// The block of a layout that oneDNN chose; nothing if this device has no such layout.
std::optional<uint32_t> BlockOf(const Desc& desc, uint64_t rows, SampleShape s) {
  for (uint32_t block : {1u, 8u, 16u, s.channels}) {
    if (desc == Activations(rows, s, block)) return block;
  }
  return std::nullopt;
}

class Convolution {
 public:
  Convolution(const ConvKey& key, const dnnl::engine& engine) : key_(key), engine_(engine) {
    try {
      forward_pd_ = ForwardPd(Desc(InDims(), kF32, Tag::any), Desc(OutDims(), kF32, Tag::any));
    } catch (const dnnl::error&) {
      // Refused as a whole: fall through to plain order, which every shape has.
    }
    if (forward_pd_) {
      const auto in = BlockOf(forward_pd_.src_desc(), key.rows, key.in);
      const auto out = BlockOf(forward_pd_.dst_desc(), key.rows, key.out);
      if (in && out) {
        in_block_ = *in, out_block_ = *out;
      } else {
        forward_pd_ =
            ForwardPd(Activations(key.rows, key.in, 1), Activations(key.rows, key.out, 1));
      }
    } else {
      forward_pd_ = ForwardPd(Activations(key.rows, key.in, 1), Activations(key.rows, key.out, 1));
    }
    forward_ = dnnl::convolution_forward(forward_pd_);
    forward_weights_ = Packed(forward_pd_.weights_desc());
  }

  const ConvKey& key() const { return key_; }
  uint32_t in_block() const { return in_block_; }
  uint32_t out_block() const { return out_block_; }

  void Forward(dnnl::stream& stream, const float* x, const float* weight, const float* bias,
               float* y) {
    Pack(stream, weight, &forward_weights_);
    forward_.execute(stream, {{DNNL_ARG_SRC, Wrap(forward_pd_.src_desc(), x)},
                              {DNNL_ARG_WEIGHTS, forward_weights_},
                              {DNNL_ARG_BIAS, Wrap(BiasDesc(), bias)},
                              {DNNL_ARG_DST, Wrap(forward_pd_.dst_desc(), y)}});
  }

  void BackwardData(dnnl::stream& stream, const float* dy, const float* weight, float* dx) {
    if (!backward_data_) {
      const dnnl::convolution_backward_data::desc desc(
          dnnl::algorithm::convolution_direct, forward_pd_.src_desc(), AnyWeights(),
          forward_pd_.dst_desc(), {1, 1}, Padding(), Padding());
      const dnnl::convolution_backward_data::primitive_desc pd(desc, engine_, forward_pd_);
      backward_data_weights_ = Packed(pd.weights_desc());
      backward_data_ = dnnl::convolution_backward_data(pd);
    }
    Pack(stream, weight, &backward_data_weights_);
    backward_data_.execute(stream, {{DNNL_ARG_DIFF_DST, Wrap(forward_pd_.dst_desc(), dy)},
                                    {DNNL_ARG_WEIGHTS, backward_data_weights_},
                                    {DNNL_ARG_DIFF_SRC, Wrap(forward_pd_.src_desc(), dx)}});
  }

  void BackwardWeights(dnnl::stream& stream, const float* x, const float* dy, float* dweight,
                       float* dbias) {
    if (!backward_weights_) {
      const dnnl::convolution_backward_weights::desc desc(
          dnnl::algorithm::convolution_direct, forward_pd_.src_desc(), AnyWeights(), BiasDesc(),
          forward_pd_.dst_desc(), {1, 1}, Padding(), Padding());
      const dnnl::convolution_backward_weights::primitive_desc pd(desc, engine_, forward_pd_);
      gradient_ = Packed(pd.diff_weights_desc());
      backward_weights_ = dnnl::convolution_backward_weights(pd);
    }
    backward_weights_.execute(stream, {{DNNL_ARG_SRC, Wrap(forward_pd_.src_desc(), x)},
                                       {DNNL_ARG_DIFF_DST, Wrap(forward_pd_.dst_desc(), dy)},
                                       {DNNL_ARG_DIFF_WEIGHTS, gradient_.memory},
                                       {DNNL_ARG_DIFF_BIAS, Wrap(BiasDesc(), dbias)}});
    dnnl::memory plain = Wrap(PlainWeights(), dweight);
    gradient_.to_plain.execute(stream, gradient_.memory, plain);
  }

 private:
  // Weights in the order a primitive wants, and the ways there and back.
  struct PackedWeights {
    dnnl::memory memory;
    dnnl::reorder from_plain, to_plain;
    operator const dnnl::memory&() const { return memory; }
  };

  Dims InDims() const {
    return {static_cast<int64_t>(key_.rows), key_.in.channels, key_.in.height, key_.in.width};
  }
  Dims OutDims() const {
    return {static_cast<int64_t>(key_.rows), key_.out.channels, key_.out.height, key_.out.width};
  }
  Dims Padding() const { return {key_.padding, key_.padding}; }
  Dims WeightDims() const {
    return {key_.out.channels, key_.in.channels, key_.kernel, key_.kernel};
  }
  Desc AnyWeights() const { return Desc(WeightDims(), kF32, Tag::any); }
  Desc PlainWeights() const { return Desc(WeightDims(), kF32, Tag::oihw); }
  Desc BiasDesc() const { return Desc({key_.out.channels}, kF32, Tag::x); }

  // oneDNN has no memory of const data; sources are only read.
  dnnl::memory Wrap(const Desc& desc, const float* data) const {
    return dnnl::memory(desc, engine_, const_cast<float*>(data));
  }

  dnnl::convolution_forward::primitive_desc ForwardPd(const Desc& src, const Desc& dst) const {
    const dnnl::convolution_forward::desc desc(
        dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, src, AnyWeights(),
        BiasDesc(), dst, {1, 1}, Padding(), Padding());
    dnnl::primitive_attr attributes;
    if (key_.relu) {
      dnnl::post_ops relu;
      relu.append_eltwise(1, dnnl::algorithm::eltwise_relu, 0, 0);
      attributes.set_post_ops(relu);
    }
    return {desc, attributes, engine_};
  }

  PackedWeights Packed(const Desc& desc) const {
    PackedWeights packed;
    packed.memory = dnnl::memory(desc, engine_);
    packed.from_plain = dnnl::reorder({engine_, PlainWeights(), engine_, desc});
    packed.to_plain = dnnl::reorder({engine_, desc, engine_, PlainWeights()});
    return packed;
  }
  void Pack(dnnl::stream& stream, const float* weight, PackedWeights* packed) const {
    dnnl::memory plain = Wrap(PlainWeights(), weight);
    packed->from_plain.execute(stream, plain, packed->memory);
  }

  const ConvKey key_;
  const dnnl::engine engine_;
  uint32_t in_block_ = 1, out_block_ = 1;
  dnnl::convolution_forward::primitive_desc forward_pd_;
  dnnl::convolution_forward forward_;
  PackedWeights forward_weights_;
  // Compiled when first used: evaluation never does.
  dnnl::convolution_backward_data backward_data_;
  PackedWeights backward_data_weights_;
  dnnl::convolution_backward_weights backward_weights_;
  PackedWeights gradient_;
};

class OneDnnBackend final : public CpuBackend {
 public:
  explicit OneDnnBackend(uint32_t threads)
      : threads_(threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  std::string name() const override {
    const dnnl_version_t* version = dnnl_version();
    return absl::StrFormat("oneDNN %d.%d", version->major, version->minor);
  }
  uint32_t threads() const override { return threads_; }

  absl::Status Gemm(const GemmShape& s, const float* a, const float* b, float* c) override {
    UseThreads();
    const dnnl::status status =
        dnnl::sgemm(s.transpose_a ? 'T' : 'N', s.transpose_b ? 'T' : 'N', s.m, s.n, s.k, 1.0f, a,
                    s.transpose_a ? s.m : s.k, b, s.transpose_b ? s.k : s.n, 0.0f, c, s.n);
    if (status == dnnl::status::success) return absl::OkStatus();
    return absl::InternalError(absl::StrFormat("oneDNN: sgemm [%d, %d, %d] failed with status %d",
                                               s.m, s.n, s.k, static_cast<int>(status)));
  }

  absl::Status ConvForward(CpuTensor* x, Conv2dGeometry geometry, const float* weight,
                           const float* bias, bool relu, CpuTensor* y) override {
    return Guarded("convolution", [&] {
      Convolution& conv = Compiled(*x, *y, geometry, relu);
      x->ChangeBlock(conv.in_block(), &spare_);
      y->SetShape(y->sample(), y->rows(), conv.out_block());
      conv.Forward(stream_, x->data(), weight, bias, y->mutable_data());
    });
  }

  absl::Status ConvBackwardData(CpuTensor* dy, Conv2dGeometry geometry, const float* weight,
                                CpuTensor* dx) override {
    return Guarded("convolution backward data", [&] {
      Convolution& conv = Compiled(*dx, *dy, geometry, std::nullopt);
      dy->ChangeBlock(conv.out_block(), &spare_);
      dx->SetShape(dx->sample(), dx->rows(), conv.in_block());
      conv.BackwardData(stream_, dy->data(), weight, dx->mutable_data());
    });
  }

  absl::Status ConvBackwardWeights(CpuTensor* x, CpuTensor* dy, Conv2dGeometry geometry,
                                   float* dweight, float* dbias) override {
    return Guarded("convolution backward weights", [&] {
      Convolution& conv = Compiled(*x, *dy, geometry, std::nullopt);
      x->ChangeBlock(conv.in_block(), &spare_);
      dy->ChangeBlock(conv.out_block(), &spare_);
      conv.BackwardWeights(stream_, x->data(), dy->data(), dweight, dbias);
    });
  }

 private:
  // Bound on compiled convolutions: a model has few, in four row counts at most (training and
  // evaluation, each with its last batch).
  static constexpr size_t kMaxCompiled = 64;

  // OpenMP's count belongs to the calling thread, and that may change between calls.
  void UseThreads() const { omp_set_num_threads(static_cast<int>(threads_)); }

  template <typename Operation>
  absl::Status Guarded(const char* what, Operation operation) {
    UseThreads();
    try {
      operation();
      stream_.wait();
    } catch (const dnnl::error& error) {
      return absl::InternalError(absl::StrFormat("oneDNN: %s failed: %s (status %d)", what,
                                                 error.what(), static_cast<int>(error.status)));
    }
    return absl::OkStatus();
  }

  // The convolution for these shapes, moved to the front of the list. Backward does not care about
  // `relu` (nothing) and takes what forward compiled.
  Convolution& Compiled(const CpuTensor& x, const CpuTensor& y, Conv2dGeometry geometry,
                        std::optional<bool> relu) {
    ConvKey key{x.rows(),        x.sample(),       y.sample(),
                geometry.kernel, geometry.padding, relu.value_or(false)};
    for (auto it = compiled_.begin(); it != compiled_.end(); ++it) {
      if (!relu.has_value()) key.relu = it->key().relu;
      if (it->key() == key) {
        compiled_.splice(compiled_.begin(), compiled_, it);
        return compiled_.front();
      }
    }
    if (compiled_.size() == kMaxCompiled) compiled_.pop_back();
    key.relu = relu.value_or(false);
    compiled_.emplace_front(key, engine_);
    return compiled_.front();
  }

  const uint32_t threads_;
  const dnnl::engine engine_;
  dnnl::stream stream_;
  std::list<Convolution> compiled_;  // most recently used first
  GrowingBuffer spare_;
};

}  // namespace

std::unique_ptr<CpuBackend> CreateOneDnnBackend(uint32_t threads) {
  return std::make_unique<OneDnnBackend>(threads);
}

}  // namespace parley
