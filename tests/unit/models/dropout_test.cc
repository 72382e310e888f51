#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "models/cpu/keep_mask.h"
#include "models/layers/dropout.h"
#include "ps/base/philox.h"
#include "tests/unit/models/model_fixture.h"

namespace parley {
namespace {

TEST(KeepMaskTest, IsUniformAtElementByElement) {
  const uint64_t seed = 0x123456789ABCDEF0,
                 stream = Stream(RandomPurpose::kDropout, 0x99887766554433);
  for (const float p : {0.0f, 0.1f, 0.25f, 0.5f, 0.99999994f}) {
    // Starts below, across and far above 2^32 blocks, where the counter's upper word begins.
    for (const uint64_t first :
         {uint64_t{0}, uint64_t{4}, (uint64_t{1} << 34) - 60, (uint64_t{1} << 40) + 8}) {
      for (const size_t count : {1, 31, 32, 33, 500}) {
        std::vector<uint8_t> keep(count + kKeepMaskGroup), baseline(keep.size());
        FillKeepMask(seed, stream, first, count, p, keep.data());
        FillKeepMaskBaseline(seed, stream, first, count, p, baseline.data());
        ASSERT_EQ(keep, baseline);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(keep[i], UniformAt(seed, stream, first + i) >= p ? 1 : 0)
              << "p " << p << " element " << first << "+" << i;
        }
      }
    }
  }
}

std::vector<float> Dropped(Device& device, const DropoutPattern& pattern, uint64_t rows,
                           uint32_t features) {
  const std::vector<float> ones(rows * features, 1.0f);
  const std::unique_ptr<Tensor> x = device.NewTensor(), y = device.NewTensor();
  const std::unique_ptr<Workspace> kept = device.NewWorkspace();
  device.Upload(ones.data(), {features, 1, 1}, rows, x.get());
  EXPECT_TRUE(device.Prepare(y.get(), {features, 1, 1}, rows).ok());
  device.DropoutForward(x.get(), pattern, y.get(), kept.get());
  std::vector<float> out(ones.size());
  device.Download(y.get(), out.data());
  // Backward drops the same elements and scales alike.
  const std::unique_ptr<Tensor> dx = device.NewTensor();
  EXPECT_TRUE(device.Prepare(dx.get(), {features, 1, 1}, rows).ok());
  device.DropoutBackward(x.get(), pattern.p, kept.get(), dx.get());
  std::vector<float> back(ones.size());
  device.Download(dx.get(), back.data());
  EXPECT_EQ(back, out);
  EXPECT_TRUE(device.Sync().ok());
  return out;
}

TEST(DropoutTest, DropsTheSameElementsHoweverTheBatchIsSplit) {
  const std::unique_ptr<Device> device = MakeDevice(Backend::kDefault);
  constexpr uint32_t kFeatures = 37;  // rows begin anywhere in a block of four
  const std::vector<float> whole = Dropped(*device, {0.3f, 5, 6, 100}, 8, kFeatures);
  std::vector<float> parts = Dropped(*device, {0.3f, 5, 6, 100}, 3, kFeatures);
  for (const float v : Dropped(*device, {0.3f, 5, 6, 103}, 5, kFeatures)) parts.push_back(v);
  EXPECT_EQ(parts, whole);
}

TEST(DropoutTest, KeepsTheRightShareAndTheMean) {
  const std::unique_ptr<Device> device = MakeDevice(Backend::kDefault);
  for (const float p : {0.1f, 0.25f, 0.5f}) {
    constexpr double kCount = 200.0 * 500;
    const std::vector<float> y = Dropped(*device, {p, 9, 1, 0}, 200, 500);
    double kept = 0;
    for (const float v : y) {
      if (v == 0) continue;
      ++kept;
      ASSERT_FLOAT_EQ(v, 1 / (1 - p));
    }
    // Five standard deviations of a binomial.
    EXPECT_NEAR(kept / kCount, 1 - p, 5 * std::sqrt(p * (1 - p) / kCount));
    // Neighbours are independent: so is the share of pairs kept.
    double pairs = 0;
    for (size_t i = 0; i + 1 < y.size(); ++i) pairs += y[i] != 0 && y[i + 1] != 0;
    EXPECT_NEAR(pairs / kCount, (1 - p) * (1 - p), 0.01);
  }
}

TEST(DropoutTest, LayersAndTicksHaveStreamsOfTheirOwn) {
  EXPECT_NE(DropoutLayer::StreamOf(1, 0), DropoutLayer::StreamOf(2, 0));
  EXPECT_NE(DropoutLayer::StreamOf(1, 7), DropoutLayer::StreamOf(1, 8));
  EXPECT_NE(DropoutLayer::StreamOf(1, 2), DropoutLayer::StreamOf(2, 1));
}

}  // namespace
}  // namespace parley
