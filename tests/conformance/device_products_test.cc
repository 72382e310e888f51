// Linear layers and convolutions of every Device against float64.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/conformance/device_rig.h"
#include "tests/unit/models/pattern.h"

namespace parley {
namespace {

using reference::Doubles;
using reference::ToDoubles;

// What is no product is float32 in every math.
constexpr double kFloatBound = 1e-5;

using ProductTest = DeviceTest;
PARLEY_ON_ALL_DEVICES(ProductTest);

Doubles Relu(Doubles y) {
  for (double& v : y) v = std::max(v, 0.0);
  return y;
}

struct LinearCase {
  uint64_t rows;
  SampleShape in;
  uint32_t out;
};

TEST_P(ProductTest, Linear) {
  const LinearCase cases[] = {
      {1, {1, 1, 1}, 1},
      {5, {2, 3, 4}, 7},
      {64, {1, 1, 100}, 65},
      {1500, {1, 1, 9}, 40},  // the bias's gradient is summed in chunks
  };
  DeviceRig rig(NewDevice());
  for (const auto& [rows, in, out] : cases) {
    SCOPED_TRACE(absl::StrFormat("[%d] x %s -> %d", rows, ToString(in), out));
    const SampleShape out_shape{out, 1, 1};
    const auto x = Pattern(1, rows * in.size()), dy = Pattern(2, rows * out);
    const auto w = Pattern(3, in.size() * out, 0.5), b = Pattern(4, out, 0.5);
    const Doubles y = reference::Linear(ToDoubles(x), rows, ToDoubles(w), ToDoubles(b));
    const auto want = reference::LinearBackward(ToDoubles(x), ToDoubles(dy), rows, ToDoubles(w));

    Tensor *on_x = rig.Input(x, in, rows), *on_dy = rig.Input(dy, out_shape, rows);
    const float *weight = rig.Parameters(w), *bias = rig.Parameters(b);
    Tensor *plain = rig.Output(out_shape, rows), *rectified = rig.Output(out_shape, rows);
    Tensor* dx = rig.Output(in, rows);
    const auto dw = rig.NewGradient(w.size()), db = rig.NewGradient(out);
    rig->LinearForward(on_x, weight, bias, false, plain);
    rig->LinearForward(on_x, weight, bias, true, rectified);
    rig->LinearBackwardWeights(on_x, on_dy, dw.made, db.made);
    rig->LinearBackwardData(on_dy, weight, dx);
    ExpectClose(rig.Values(plain), y, bound(), "y");
    ExpectClose(rig.Values(rectified), Relu(y), bound(), "max(0, y)");
    ExpectClose(rig.Values(dx), want.x, bound(), "dx");
    ExpectClose(rig.Finish(dw), want.weight, bound(), "dweight");
    ExpectClose(rig.Finish(db), want.bias, kFloatBound, "dbias");
  }
}

struct ConvCase {
  uint64_t rows;
  SampleShape in;
  uint32_t out, kernel, padding;
};

const ConvCase kConvCases[] = {
    {1, {1, 1, 1}, 1, 1, 0},   {3, {1, 5, 7}, 4, 3, 0},  {2, {3, 6, 4}, 5, 3, 1},
    {4, {17, 5, 6}, 3, 3, 2},  {5, {3, 4, 9}, 17, 1, 0}, {2, {2, 9, 4}, 3, 4, 3},
    {9, {17, 7, 5}, 9, 3, 1},  {3, {1, 6, 6}, 2, 6, 0},  {2, {5, 1, 8}, 6, 1, 0},
    {40, {3, 8, 8}, 20, 3, 1},  // many rows of sums, many pieces
};

void CheckConv(DeviceRig& rig, const ConvCase& c, double bound) {
  SCOPED_TRACE(absl::StrFormat("[%d] x %s -> %d, kernel %d padding %d", c.rows, ToString(c.in),
                               c.out, c.kernel, c.padding));
  const Conv2dGeometry g{c.kernel, c.padding};
  const SampleShape out = reference::ConvOutput(c.in, g, c.out);
  const auto x = Pattern(1, c.rows * c.in.size()), dy = Pattern(2, c.rows * out.size());
  const auto w = Pattern(3, size_t{c.out} * c.in.channels * c.kernel * c.kernel, 0.5);
  const auto b = Pattern(4, c.out, 0.5);
  const Doubles y = reference::Conv(ToDoubles(x), c.in, c.rows, g, ToDoubles(w), ToDoubles(b));
  const auto want =
      reference::ConvBackward(ToDoubles(x), c.in, ToDoubles(dy), c.rows, g, c.out, ToDoubles(w));

  Tensor *on_x = rig.Input(x, c.in, c.rows), *on_dy = rig.Input(dy, out, c.rows);
  const float *weight = rig.Parameters(w), *bias = rig.Parameters(b);
  Tensor *plain = rig.Output(out, c.rows), *rectified = rig.Output(out, c.rows);
  Tensor* dx = rig.Output(c.in, c.rows);
  const auto dw = rig.NewGradient(w.size()), db = rig.NewGradient(c.out);
  rig->Conv2dForward(on_x, g, weight, bias, false, plain);
  rig->Conv2dForward(on_x, g, weight, bias, true, rectified);
  rig->Conv2dBackwardWeights(on_x, on_dy, g, dw.made, db.made);
  rig->Conv2dBackwardData(on_dy, g, weight, dx);
  ExpectClose(rig.Values(plain), y, bound, "y");
  ExpectClose(rig.Values(rectified), Relu(y), bound, "max(0, y)");
  ExpectClose(rig.Values(dx), want.x, bound, "dx");
  ExpectClose(rig.Finish(dw), want.weight, bound, "dweight");
  ExpectClose(rig.Finish(db), want.bias, kFloatBound, "dbias");
  // Operations change the order of elements, never values.
  EXPECT_EQ(rig.Values(on_x), x);
  EXPECT_EQ(rig.Values(on_dy), dy);
}

TEST_P(ProductTest, Conv2dAtOnce) {
  DeviceRig rig(NewDevice(GpuDeviceOptions{}.column_bytes));
  for (const ConvCase& c : kConvCases) CheckConv(rig, c, bound());
}

TEST_P(ProductTest, Conv2dInPieces) {
  for (const size_t column_bytes : {size_t{1}, kSmallColumns}) {  // 1: a sample at a time
    DeviceRig rig(NewDevice(column_bytes));
    for (const ConvCase& c : kConvCases) CheckConv(rig, c, bound());
  }
}

// What one operation leaves is the next one's input, in whatever order it lies.
TEST_P(ProductTest, LinearReadsWhatConvolutionsLeave) {
  constexpr uint64_t kRows = 3;
  constexpr SampleShape kIn{2, 5, 4}, kBetween{6, 3, 2};
  const auto x = Pattern(1, kRows * kIn.size()), w = Pattern(2, 6 * 2 * 9, 0.5);
  const auto b = Pattern(3, 6, 0.5), w2 = Pattern(4, kBetween.size() * 4, 0.5);
  const auto b2 = Pattern(5, 4, 0.5), dy = Pattern(6, kRows * 4);
  DeviceRig rig(NewDevice());
  Tensor *between = rig.Output(kBetween, kRows), *y = rig.Output({4, 1, 1}, kRows);
  Tensor *dbetween = rig.Output(kBetween, kRows), *dx = rig.Output(kIn, kRows);
  const float *weight = rig.Parameters(w), *weight2 = rig.Parameters(w2);
  Tensor* on_dy = rig.Input(dy, {4, 1, 1}, kRows);
  const auto dw2 = rig.NewGradient(w2.size()), db2 = rig.NewGradient(4);
  rig->Conv2dForward(rig.Input(x, kIn, kRows), {}, weight, rig.Parameters(b), false, between);
  rig->LinearForward(between, weight2, rig.Parameters(b2), false, y);
  rig->LinearBackwardWeights(between, on_dy, dw2.made, db2.made);
  rig->LinearBackwardData(on_dy, weight2, dbetween);
  rig->Conv2dBackwardData(dbetween, {}, weight, dx);

  const Doubles middle = reference::Conv(ToDoubles(x), kIn, kRows, {}, ToDoubles(w), ToDoubles(b));
  ExpectClose(rig.Values(y), reference::Linear(middle, kRows, ToDoubles(w2), ToDoubles(b2)),
              bound(), "y");
  const auto second = reference::LinearBackward(middle, ToDoubles(dy), kRows, ToDoubles(w2));
  ExpectClose(rig.Finish(dw2), second.weight, bound(), "dweight");
  const auto first =
      reference::ConvBackward(ToDoubles(x), kIn, second.x, kRows, {}, 6, ToDoubles(w));
  ExpectClose(rig.Values(dx), first.x, bound(), "dx");
}

// Memory of weights that is taken again holds other weights.
TEST_P(ProductTest, WeightsThatCameToLieWhereOthersLay) {
  const std::unique_ptr<Device> device = NewDevice();
  const auto x = Pattern(1, 2 * 18), bias = Pattern(9, 2);
  for (uint32_t round = 0; round < 4; ++round) {
    const auto w = Pattern(2 + round, 2 * 2 * 9);
    const auto input = device->NewTensor(), y = device->NewTensor();
    const auto weight_memory = device->NewWorkspace(), bias_memory = device->NewWorkspace();
    const float* weight =
        device->LoadParameters(w.data(), MemoryKind::kHost, w.size(), weight_memory.get());
    device->Upload(x.data(), {2, 3, 3}, 2, input.get());
    ASSERT_TRUE(device->Prepare(y.get(), {2, 1, 1}, 2).ok());
    device->Conv2dForward(
        input.get(), {}, weight,
        device->LoadParameters(bias.data(), MemoryKind::kHost, 2, bias_memory.get()), false,
        y.get());
    std::vector<float> values(4);
    device->Download(y.get(), values.data());
    ASSERT_TRUE(device->Sync().ok());
    const Doubles want =
        reference::Conv(ToDoubles(x), {2, 3, 3}, 2, {}, ToDoubles(w), ToDoubles(bias));
    ExpectClose(values, want, bound(), "y");
  }
}

}  // namespace
}  // namespace parley
