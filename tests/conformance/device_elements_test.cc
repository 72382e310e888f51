// What a Device does element by element or row by row, against its definition: mostly to the bit.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/base/philox.h"
#include "tests/conformance/device_rig.h"
#include "tests/unit/models/pattern.h"

namespace parley {
namespace {

using reference::Doubles;
using reference::ToDoubles;

constexpr double kFloatBound = 1e-5;  // no products here: float32 in every math

using ElementTest = DeviceTest;
PARLEY_ON_ALL_DEVICES(ElementTest);

// Values that products do not round, in any math; `levels`: few of them make ties.
std::vector<float> Coarse(uint32_t stream, size_t n, float levels = 128) {
  std::vector<float> x = Pattern(stream, n);
  for (float& v : x) v = std::round(v * (levels - 1)) / levels;
  return x;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// In plain order, and as a convolution leaves it.
constexpr bool kBothOrders[] = {false, true};
Tensor* Put(DeviceRig& rig, bool after_conv, const std::vector<float>& x, SampleShape s,
            uint64_t rows) {
  return after_conv ? rig.AfterConv(x, s, rows) : rig.Input(x, s, rows);
}

// The same, in memory of the tensor's own: Upload's may be the caller's, not to be written to.
Tensor* PutToChange(DeviceRig& rig, bool after_conv, const std::vector<float>& x, SampleShape s,
                    uint64_t rows) {
  if (after_conv) return rig.AfterConv(x, s, rows);
  Tensor* y = rig.Output(s, rows);
  rig->DropoutForward(rig.Input(x, s, rows), {.p = 0}, y, rig.NewWorkspace());
  return y;
}

TEST_P(ElementTest, UploadAndDownload) {
  DeviceRig rig(NewDevice());
  for (const SampleShape s : {SampleShape{1, 1, 1}, {3, 4, 5}, {17, 3, 2}, {1, 7, 9}, {33, 1, 1}}) {
    for (const uint64_t rows : {1, 6}) {
      const auto x = Coarse(1, rows * s.size());
      EXPECT_EQ(rig.Values(rig.Input(x, s, rows)), x);
      EXPECT_EQ(rig.Values(rig.AfterConv(x, s, rows)), x);
    }
  }
}

TEST_P(ElementTest, ViewKeepsPlainOrder) {
  constexpr uint64_t kRows = 3;
  constexpr SampleShape kShape{5, 4, 3};
  DeviceRig rig(NewDevice());
  const auto x = Coarse(1, kRows * kShape.size()), w = Coarse(2, kShape.size() * 2);
  for (const bool after_conv : kBothOrders) {
    Tensor* t = Put(rig, after_conv, x, kShape, kRows);
    for (const SampleShape s : {SampleShape{60, 1, 1}, {3, 5, 4}, {1, 6, 10}, kShape}) {
      rig->View(t, s);
      EXPECT_EQ(t->sample(), s);
      EXPECT_EQ(rig.Values(t), x) << ToString(s);
    }
    rig->View(t, {60, 1, 1});
    Tensor* y = rig.Output({2, 1, 1}, kRows);
    const Doubles bias = {1, -2};
    rig->LinearForward(t, rig.Parameters(w), rig.Parameters({1, -2}), false, y);
    ExpectClose(rig.Values(y), reference::Linear(ToDoubles(x), kRows, ToDoubles(w), bias),
                kFloatBound, "y");
  }
}

TEST_P(ElementTest, Relu) {
  constexpr uint64_t kRows = 4;
  constexpr SampleShape kShape{3, 5, 2};
  auto x = Coarse(1, kRows * kShape.size()), dy = Coarse(2, x.size());
  x[0] = 0, x[1] = -0.0f;
  std::vector<float> want_y, want_dx;
  for (size_t i = 0; i < x.size(); ++i) {
    want_y.push_back(x[i] > 0 ? x[i] : 0), want_dx.push_back(x[i] > 0 ? dy[i] : 0);
  }
  DeviceRig rig(NewDevice());
  for (const bool x_after_conv : kBothOrders) {
    for (const bool dy_after_conv : kBothOrders) {
      Tensor* y = rig.Output(kShape, kRows);
      rig->ReluForward(Put(rig, x_after_conv, x, kShape, kRows), y);
      Tensor *gradient = PutToChange(rig, dy_after_conv, dy, kShape, kRows),
             *dx = rig.Output(kShape, kRows);
      rig->ReluBackward(y, gradient, dx);
      rig->ReluBackward(y, gradient, gradient);  // in place
      EXPECT_EQ(rig.Values(y), want_y);
      EXPECT_EQ(rig.Values(dx), want_dx);
      EXPECT_EQ(rig.Values(gradient), want_dx);
    }
  }
}

// The activation has been viewed as flat, and a convolution has read it since.
TEST_P(ElementTest, ReluBackwardOfAnActivationOfAnotherShape) {
  constexpr uint64_t kRows = 2;
  constexpr SampleShape kShape{3, 2, 2}, kFlat{12, 1, 1};
  const auto x = Coarse(1, kRows * 12), dy = Coarse(2, kRows * 12), w = Coarse(3, 12 * 2);
  std::vector<float> want;
  for (size_t i = 0; i < x.size(); ++i) want.push_back(x[i] > 0 ? dy[i] : 0);
  DeviceRig rig(NewDevice());
  for (const bool dy_after_conv : kBothOrders) {
    Tensor *y = rig.AfterConv(x, kShape, kRows), *z = rig.Output({2, 1, 1}, kRows);
    rig->View(y, kFlat);
    rig->Conv2dForward(y, {.kernel = 1}, rig.Parameters(w), rig.Parameters({0, 0}), false, z);
    Tensor* gradient = PutToChange(rig, dy_after_conv, dy, kShape, kRows);
    rig->ReluBackward(y, gradient, gradient);
    EXPECT_EQ(rig.Values(gradient), want);
    EXPECT_EQ(rig.Values(y), x);
  }
}

void CheckPool(DeviceRig& rig, bool after_conv, SampleShape in, uint32_t kernel, float levels,
               bool relu_gradient) {
  SCOPED_TRACE(absl::StrFormat("%s kernel %d, %g levels, relu_gradient %d, after a conv %d",
                               ToString(in), kernel, levels, relu_gradient, after_conv));
  constexpr uint64_t kRows = 3;
  const SampleShape out{in.channels, in.height / kernel, in.width / kernel};
  const auto x = Coarse(1, kRows * in.size(), levels), dy = Coarse(2, kRows * out.size());
  const auto places = reference::MaxPlaces(ToDoubles(x), in, kRows, kernel);
  std::vector<float> want_y, want_dx(x.size());
  for (size_t i = 0; i < places.size(); ++i) {
    want_y.push_back(x[places[i]]);
    if (!relu_gradient || want_y[i] > 0) want_dx[places[i]] = dy[i];
  }
  Tensor *y = rig.Output(out, kRows), *dx = rig.Output(in, kRows);
  Workspace* argmax = rig.NewWorkspace();
  rig->MaxPoolForward(Put(rig, after_conv, x, in, kRows), kernel, relu_gradient, y, argmax);
  rig->MaxPoolBackward(Put(rig, after_conv, dy, out, kRows), kernel, argmax, dx);
  EXPECT_EQ(rig.Values(y), want_y);
  EXPECT_EQ(rig.Values(dx), want_dx);
}

TEST_P(ElementTest, MaxPool) {
  DeviceRig rig(NewDevice());
  const std::pair<SampleShape, uint32_t> shapes[] = {
      {{1, 4, 4}, 2}, {{3, 7, 6}, 2}, {{17, 8, 5}, 3}, {{2, 15, 16}, 15}, {{5, 3, 3}, 1}};
  for (const auto& [in, kernel] : shapes) {
    for (const float levels : {128.f, 4.f}) {
      for (const bool relu_gradient : {false, true}) {
        for (const bool after_conv : kBothOrders) {
          CheckPool(rig, after_conv, in, kernel, levels, relu_gradient);
        }
      }
    }
  }
}

struct DropoutCase {
  SampleShape sample;
  uint64_t rows;
  DropoutPattern pattern;
};

TEST_P(ElementTest, DropoutKeepsWhatThePatternSays) {
  const DropoutCase cases[] = {
      {{37, 1, 1}, 5, {0.3f, 5, 6, 0}},
      {{37, 1, 1}, 3, {0.3f, 5, 6, 1}},  // first % 4 is 1, 2, 3
      {{37, 1, 1}, 3, {0.5f, 5, 7, 2}},
      {{37, 1, 1}, 1, {0.5f, 6, 7, 3}},
      {{5, 3, 2}, 4, {0.25f, 1, uint64_t{7} << 56 | 3, 11}},
      {{1, 1, 1}, 2, {0.9f, 1, 2, 3}},
      {{3, 7, 7}, 9, {0, 1, 2, 3}},
      {{2, 3, 5}, 2, {0.5f, ~uint64_t{0}, ~uint64_t{0}, (uint64_t{1} << 34) / 30 - 1}},
      {{17, 40, 40}, 20, {0.5f, 3, 4, 5}},  // more than the threads of a launch
  };
  DeviceRig rig(NewDevice());
  DeviceRig cpu(*MakeDevice(kDeviceCases[0]));
  for (const auto& [sample, rows, pattern] : cases) {
    const auto x = Coarse(1, rows * sample.size()), dy = Coarse(2, rows * sample.size());
    const uint64_t first = pattern.first_row * sample.size();
    std::vector<bool> kept;
    for (size_t i = 0; i < x.size(); ++i) {
      kept.push_back(UniformAt(pattern.seed, pattern.stream, first + i) >= pattern.p);
    }
    for (const bool after_conv : kBothOrders) {
      SCOPED_TRACE(absl::StrFormat("%s first row %d, p %g, after a conv %d", ToString(sample),
                                   pattern.first_row, pattern.p, after_conv));
      const auto run = [&](DeviceRig& on, std::vector<float>* y_values) {
        Tensor *y = on.Output(sample, rows), *dx = on.Output(sample, rows);
        Workspace* mask = on.NewWorkspace();
        on->DropoutForward(Put(on, after_conv, x, sample, rows), pattern, y, mask);
        on->DropoutBackward(Put(on, after_conv, dy, sample, rows), pattern.p, mask, dx);
        *y_values = on.Values(y);
        return on.Values(dx);
      };
      std::vector<float> y, cpu_y;
      const std::vector<float> dx = run(rig, &y), cpu_dx = run(cpu, &cpu_y);
      Doubles want_y, want_dx;
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(dx[i] != 0, kept[i] && dy[i] != 0) << i;
        want_y.push_back(kept[i] ? x[i] / (1 - double{pattern.p}) : 0);
        want_dx.push_back(kept[i] ? dy[i] / (1 - double{pattern.p}) : 0);
      }
      ExpectClose(y, want_y, kFloatBound, "y");
      ExpectClose(dx, want_dx, kFloatBound, "dx");
      EXPECT_TRUE(SameBits(y, cpu_y));
      EXPECT_TRUE(SameBits(dx, cpu_dx));
    }
  }
}

TEST_P(ElementTest, LogSoftmaxAndNll) {
  struct Case {
    uint64_t rows;
    uint32_t classes;
    float scale, offset;
  };
  const Case cases[] = {{1, 2, 1, 0},     {7, 10, 4, 0},    {9, 31, 1, 0},   {9, 33, 80, 0},
                        {300, 5, 2, -50}, {3, 1000, 10, 0}, {4, 20, 1e4, 0}, {4, 20, 1e30, 0}};
  DeviceRig rig(NewDevice());
  for (const auto& [rows, classes, scale, offset] : cases) {
    SCOPED_TRACE(absl::StrFormat("[%d, %d] * %g + %g", rows, classes, scale, offset));
    const SampleShape shape{classes, 1, 1};
    auto x = Pattern(1, rows * classes, scale);
    for (float& v : x) v += offset;
    const auto labels = PatternLabels(rows, classes);
    const Doubles y = reference::LogSoftmax(ToDoubles(x), rows);
    double want_loss = 0;
    uint64_t want_correct = 0;
    for (size_t r = 0; r < rows; ++r) {
      const auto row = y.begin() + static_cast<int64_t>(r * classes);
      want_loss -= row[labels[r]];
      want_correct += std::max_element(row, row + classes) - row == labels[r] ? 1 : 0;
    }
    Tensor *on_y = rig.Output(shape, rows), *dx = rig.Output(shape, rows);
    const int32_t* on_labels = rig.Labels(labels);
    double loss = -1;
    uint64_t correct = ~uint64_t{0};
    rig->LogSoftmaxForward(rig.Input(x, shape, rows), on_y);
    rig->NllForward(on_y, on_labels, &loss, &correct);
    rig->NllLogSoftmaxBackward(on_y, on_labels, dx);
    ExpectClose(rig.Values(on_y), y, kFloatBound, "y");
    ExpectClose(rig.Values(dx), reference::NllLogSoftmaxBackward(y, rows, labels), kFloatBound,
                "dx");
    EXPECT_NEAR(loss, want_loss, kFloatBound * std::abs(want_loss));
    EXPECT_EQ(correct, want_correct);
  }
}

// Scores far from zero that differ little: the shift must not be added to the sum's logarithm.
TEST_P(ElementTest, LogSoftmaxOfScoresWithALargeOffset) {
  if (!GetParam().on_gpu()) GTEST_SKIP() << "the CPU's rounds to the offset's precision";
  DeviceRig rig(NewDevice());
  std::vector<float> x = Pattern(1, 40);
  for (float& v : x) v += 1e4;
  Tensor* y = rig.Output({10, 1, 1}, 4);
  rig->LogSoftmaxForward(rig.Input(x, {10, 1, 1}, 4), y);
  ExpectClose(rig.Values(y), reference::LogSoftmax(ToDoubles(x), 4), kFloatBound, "y");
}

TEST_P(ElementTest, TheFirstOfEqualLargestCounts) {
  DeviceRig rig(NewDevice());
  constexpr uint32_t kClasses = 100;  // several for each of 32 threads
  const std::pair<uint32_t, uint32_t> ties[] = {{0, 1},   {3, 35},  {35, 36}, {40, 67},
                                                {31, 99}, {64, 96}, {33, 64}};
  for (const auto& [first, second] : ties) {
    std::vector<float> y(4 * kClasses, -9);
    for (uint32_t r = 0; r < 4; ++r) y[r * kClasses + first] = y[r * kClasses + second] = -1;
    const auto other =
        static_cast<int32_t>((first + 1) % kClasses == second ? first + 2 : first + 1);
    const std::vector<int32_t> labels = {static_cast<int32_t>(first), static_cast<int32_t>(second),
                                         other % 100, static_cast<int32_t>(first)};
    double loss = 0;
    uint64_t correct = 0;
    rig->NllForward(rig.Input(y, {kClasses, 1, 1}, 4), rig.Labels(labels), &loss, &correct);
    rig.Finish();
    EXPECT_EQ(correct, 2u) << first << " and " << second;
    EXPECT_EQ(loss, 1 + 1 + 9 + 1);
  }
}

using reference::OwnLookup;
constexpr uint32_t kNone = Lookup::kNone;

void CheckLookup(DeviceRig& rig, const OwnLookup& lookup) {
  const Lookup& l = lookup.view;
  const auto values = Pattern(1, l.keys * l.dim), dx = Pattern(2, lookup.x_size());
  const SampleShape sample{l.sum ? l.dim : l.dim * l.fields, 1, 1};
  Workspace* memory = rig.NewWorkspace();
  Tensor* x = rig.Output(sample, l.samples);
  rig->LoadLookup(l, memory);
  rig->LookupForward(rig.Parameters(values), memory, x);
  const auto gradients = rig.NewGradient(values.size());
  rig->LookupBackward(rig.Input(dx, sample, l.samples), memory, gradients.made);
  ExpectClose(rig.Values(x), lookup.Forward(ToDoubles(values)), kFloatBound, "x");
  ExpectClose(rig.Finish(gradients), lookup.Backward(ToDoubles(dx)), kFloatBound, "gradients");
}

TEST_P(ElementTest, LookupSideBySideAndSummed) {
  DeviceRig rig(NewDevice());
  // Keys that repeat in a sample and between samples, one that nobody has, fields without a row.
  const std::vector<uint32_t> index = {0, 1, 2, 2, kNone, 0, 4, 4, 4, kNone, kNone, kNone, 1, 0, 4};
  const auto factors = Pattern(9, index.size(), 2);
  auto with_ones = factors;
  with_ones[1] = with_ones[7] = 1, with_ones[3] = 0;
  for (const bool sum : {false, true}) {
    for (const uint32_t dim : {1u, 3u, 16u}) {
      SCOPED_TRACE(absl::StrFormat("sum %d dim %d", sum, dim));
      CheckLookup(rig, OwnLookup(index, 5, 3, dim, sum));
      CheckLookup(rig, OwnLookup(index, 5, 3, dim, sum, factors));
      CheckLookup(rig, OwnLookup(index, 5, 3, dim, sum, with_ones));
      CheckLookup(rig, OwnLookup(index, 5, 1, dim, sum));
    }
    CheckLookup(rig, OwnLookup({kNone, kNone}, 0, 2, 4, sum));  // no keys at all
  }
}

TEST_P(ElementTest, LookupOfManyRepeats) {
  DeviceRig rig(NewDevice());
  std::vector<uint32_t> index(3000);
  const auto pattern = Pattern(3, index.size());
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = pattern[i] > 0.9f ? kNone : static_cast<uint32_t>(i * i % 40);
  }
  for (const bool sum : {false, true}) {
    CheckLookup(rig, OwnLookup(index, 40, 6, 8, sum, Pattern(4, index.size())));
  }
}

}  // namespace
}  // namespace parley
