// GEMM by Eigen, convolution as im2col + GEMM, one sample at a time so that the columns stay in
// cache. Everything in plain order.
#define EIGEN_DONT_PARALLELIZE  // threads are the device's choice, not the compiler flags'
#include <Eigen/Core>
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "models/cpu/cpu_backend.h"

namespace parley {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using MutableMap = Eigen::Map<Matrix>;

// Sizes of one convolution, per sample.
struct ConvSizes {
  int64_t in, height, width, out, out_height, out_width, kernel, padding;
  int64_t column_rows() const { return in * kernel * kernel; }
  int64_t pixels() const { return out_height * out_width; }
  int64_t in_size() const { return in * height * width; }
  int64_t out_size() const { return out * pixels(); }
};

ConvSizes SizesOf(const CpuTensor& x, const CpuTensor& y, Conv2dGeometry g) {
  const SampleShape in = x.sample(), out = y.sample();
  return {in.channels, in.height, in.width, out.channels,
          out.height,  out.width, g.kernel, g.padding};
}

// Calls f(input pixel, column element, count) for every run of `count` neighbouring input pixels
// that is also contiguous in the column matrix, and zero(column element, count) for padding.
template <typename Copy, typename Zero>
void WalkColumns(const ConvSizes& s, Copy copy, Zero zero) {
  int64_t column = 0;
  for (int64_t c = 0; c < s.in; ++c) {
    for (int64_t kh = 0; kh < s.kernel; ++kh) {
      for (int64_t kw = 0; kw < s.kernel; ++kw) {
        // Output columns [first, last) see the image; the others see padding.
        const int64_t first = std::clamp<int64_t>(s.padding - kw, 0, s.out_width);
        const int64_t last = std::clamp<int64_t>(s.width + s.padding - kw, first, s.out_width);
        for (int64_t oh = 0; oh < s.out_height; ++oh, column += s.out_width) {
          const int64_t h = oh + kh - s.padding;
          if (h < 0 || h >= s.height) {
            zero(column, s.out_width);
            continue;
          }
          zero(column, first);
          copy((c * s.height + h) * s.width + first + kw - s.padding, column + first, last - first);
          zero(column + last, s.out_width - last);
        }
      }
    }
  }
}

void ImageToColumns(const ConvSizes& s, const float* image, float* columns) {
  WalkColumns(
      s, [&](int64_t i, int64_t c, int64_t n) { std::copy_n(image + i, n, columns + c); },
      [&](int64_t c, int64_t n) { std::fill_n(columns + c, n, 0.0f); });
}

void ColumnsToImage(const ConvSizes& s, const float* columns, float* image) {
  std::fill_n(image, s.in_size(), 0.0f);
  WalkColumns(
      s,
      [&](int64_t i, int64_t c, int64_t n) {
        for (int64_t j = 0; j < n; ++j) image[i + j] += columns[c + j];
      },
      [](int64_t, int64_t) {});
}

class EigenBackend final : public CpuBackend {
 public:
  std::string name() const override {
    return absl::StrCat("Eigen ", EIGEN_WORLD_VERSION, ".", EIGEN_MAJOR_VERSION);
  }
  uint32_t threads() const override { return 1; }

  absl::Status Gemm(const GemmShape& s, const float* a, const float* b, float* c) override {
    const ConstMap ma(a, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k);
    const ConstMap mb(b, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n);
    MutableMap mc(c, s.m, s.n);
    if (s.transpose_a && s.transpose_b) {
      mc.noalias() = ma.transpose() * mb.transpose();
    } else if (s.transpose_a) {
      mc.noalias() = ma.transpose() * mb;
    } else if (s.transpose_b) {
      mc.noalias() = ma * mb.transpose();
    } else {
      mc.noalias() = ma * mb;
    }
    return absl::OkStatus();
  }

  absl::Status ConvForward(CpuTensor* x, Conv2dGeometry geometry, const float* weight,
                           const float* bias, bool relu, CpuTensor* y) override {
    const ConvSizes s = SizesOf(*x, *y, geometry);
    columns_.Reserve(s.column_rows() * s.pixels() * sizeof(float));
    const ConstMap w(weight, s.out, s.column_rows());
    const ConstMap columns(columns_.floats(), s.column_rows(), s.pixels());
    const Eigen::Map<const Eigen::VectorXf> b(bias, s.out);
    for (uint64_t n = 0; n < x->rows(); ++n) {
      ImageToColumns(s, x->data() + n * s.in_size(), columns_.floats());
      MutableMap out(y->mutable_data() + n * s.out_size(), s.out, s.pixels());
      out.noalias() = w * columns;
      out.colwise() += b;
      if (relu) out = out.cwiseMax(0.0f);
    }
    return absl::OkStatus();
  }

  absl::Status ConvBackwardData(CpuTensor* dy, Conv2dGeometry geometry, const float* weight,
                                CpuTensor* dx) override {
    const ConvSizes s = SizesOf(*dx, *dy, geometry);
    columns_.Reserve(s.column_rows() * s.pixels() * sizeof(float));
    const ConstMap w(weight, s.out, s.column_rows());
    MutableMap columns(columns_.floats(), s.column_rows(), s.pixels());
    for (uint64_t n = 0; n < dy->rows(); ++n) {
      columns.noalias() =
          w.transpose() * ConstMap(dy->data() + n * s.out_size(), s.out, s.pixels());
      ColumnsToImage(s, columns_.floats(), dx->mutable_data() + n * s.in_size());
    }
    return absl::OkStatus();
  }

  absl::Status ConvBackwardWeights(CpuTensor* x, CpuTensor* dy, Conv2dGeometry geometry,
                                   float* dweight, float* dbias) override {
    const ConvSizes s = SizesOf(*x, *dy, geometry);
    columns_.Reserve(s.column_rows() * s.pixels() * sizeof(float));
    const ConstMap columns(columns_.floats(), s.column_rows(), s.pixels());
    MutableMap dw(dweight, s.out, s.column_rows());
    Eigen::Map<Eigen::VectorXf> db(dbias, s.out);
    dw.setZero();
    db.setZero();
    for (uint64_t n = 0; n < x->rows(); ++n) {
      ImageToColumns(s, x->data() + n * s.in_size(), columns_.floats());
      const ConstMap g(dy->data() + n * s.out_size(), s.out, s.pixels());
      dw.noalias() += g * columns.transpose();
      db += g.rowwise().sum();
    }
    return absl::OkStatus();
  }

 private:
  GrowingBuffer columns_;  // [in * kernel * kernel, out_height * out_width]
};

}  // namespace

std::unique_ptr<CpuBackend> CreateEigenBackend() { return std::make_unique<EigenBackend>(); }

}  // namespace parley
