#include "models/gpu/graph_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "models/gpu/layer_kernels.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {
namespace {

class GraphCacheTest : public testing::Test {
 protected:
  GraphCacheTest() {
    stream_ = *gpu_->NewStream();
    x_ = static_cast<float*>(*gpu_->Allocate(4 * sizeof(float)));
    const std::vector<float> ones(4, 1);
    EXPECT_TRUE(stream_->CopyIn(x_, ones.data(), 16).ok());
    EXPECT_TRUE(stream_->Sync().ok());
  }
  ~GraphCacheTest() override {
    stream_ = nullptr;
    gpu_->Free(x_);
  }

  // x = x * factor, `times` times.
  std::vector<GpuOperation> Doublings(int times, float factor = 2) {
    std::vector<GpuOperation> operations;
    for (int i = 0; i < times; ++i) {
      DropoutGradientKernel kernel{};
      kernel.dy = x_;
      kernel.dx = x_;
      kernel.keep = Ones();
      kernel.scale = factor;
      kernel.n = 4;
      GpuOperation operation;
      operation.kernel = &GpuKernelOf<DropoutGradientKernel>::kKernel;
      operation.blocks = 1;
      const auto* bytes = reinterpret_cast<const std::byte*>(&kernel);
      operation.args.assign(bytes, bytes + sizeof(kernel));
      operations.push_back(operation);
    }
    return operations;
  }

  void Step(std::vector<GpuOperation> operations) {
    cache_.BeginStep();
    EXPECT_TRUE(cache_.Enqueue(std::move(operations), stream_.get()).ok());
  }

  float Value() {
    std::vector<float> x(4);
    EXPECT_TRUE(stream_->CopyOut(x.data(), x_, 16).ok());
    EXPECT_TRUE(stream_->Sync().ok());
    return x[3];
  }

  const std::unique_ptr<Gpu> gpu_ = CreateSimulatedGpu({});
  std::unique_ptr<GpuStream> stream_;
  float* x_ = nullptr;
  GraphCache cache_;

 private:
  const uint8_t* Ones() {
    if (ones_ == nullptr) {
      ones_ = static_cast<uint8_t*>(*gpu_->Allocate(4));
      const std::vector<uint8_t> ones(4, 1);
      EXPECT_TRUE(stream_->CopyIn(ones_, ones.data(), 4).ok());
      EXPECT_TRUE(stream_->Sync().ok());
    }
    return ones_;
  }
  uint8_t* ones_ = nullptr;
};

TEST_F(GraphCacheTest, WhatIsTheSameTwiceBecomesAGraph) {
  Step(Doublings(3));
  EXPECT_EQ(cache_.launched(), 0u);
  EXPECT_EQ(Value(), 8);
  Step(Doublings(3));
  EXPECT_EQ(cache_.launched(), 1u);
  EXPECT_EQ(Value(), 64);
  Step(Doublings(3));
  EXPECT_EQ(cache_.launched(), 2u);
  EXPECT_EQ(Value(), 512);
}

TEST_F(GraphCacheTest, AnotherArgumentIsAnotherPiece) {
  Step(Doublings(3));
  Step(Doublings(3));
  Step(Doublings(3, 1));
  EXPECT_EQ(cache_.launched(), 1u);
  EXPECT_EQ(Value(), 64);
  Step(Doublings(3, 1));
  EXPECT_EQ(cache_.launched(), 2u);
  Step(Doublings(4, 1));
  EXPECT_EQ(cache_.launched(), 2u);
  EXPECT_EQ(Value(), 64);
}

TEST_F(GraphCacheTest, PiecesOfAStepAreToldApart) {
  for (int step = 0; step < 3; ++step) {
    cache_.BeginStep();
    EXPECT_TRUE(cache_.Enqueue(Doublings(3), stream_.get()).ok());
    EXPECT_TRUE(cache_.Enqueue(Doublings(3, 0.5f), stream_.get()).ok());
  }
  EXPECT_EQ(cache_.launched(), 4u);
  EXPECT_EQ(Value(), 1);
}

TEST_F(GraphCacheTest, FewOperationsAreNoGraph) {
  for (int step = 0; step < 4; ++step) Step(Doublings(2));
  EXPECT_EQ(cache_.launched(), 0u);
  EXPECT_EQ(Value(), 256);
}

}  // namespace
}  // namespace parley
