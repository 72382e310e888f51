// GpuDensePartition beside a DensePartition of the same table: the same bits, wherever gradients
// come from, and states that either can go on from.
#include "ps/table/gpu_dense_partition.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/unit/table/gpu_testing.h"
#include "tests/unit/table/state_testing.h"

namespace parley {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// A process's GPU memory, its place, and host memory.
struct Machine {
  explicit Machine(std::unique_ptr<Gpu> gpu)
      : memory(std::make_shared<DeviceArenas>(
            Arenas::Options{.arena_bytes = 2 * kMiB, .max_bytes = 64 * kMiB})) {
    auto opened =
        memory.Open([&]() -> absl::StatusOr<std::unique_ptr<Gpu>> { return std::move(gpu); });
    EXPECT_TRUE(opened.ok()) << opened.status();
    auto made = MakeGpuPlace(&memory, pb::Compute::CUDA_SIMULATED);  // the one that is open
    EXPECT_TRUE(made.ok()) << made.status();
    place = *std::move(made);
  }
  Buffer OnDevice(const std::vector<float>& values, size_t shift = 0) {
    Buffer buffer = memory.pool()->Allocate(values.size() * sizeof(float) + shift);
    EXPECT_TRUE(
        place->stream
            ->CopyIn(buffer.mutable_data() + shift, values.data(), values.size() * sizeof(float))
            .ok());
    EXPECT_TRUE(place->stream->Sync().ok());
    return buffer.Slice(shift, values.size() * sizeof(float));
  }
  std::unique_ptr<TablePartition> Make(pb::TableSpec table) {
    table.mutable_compute()->set_placement(pb::Compute::GPU);
    auto made = TablePartition::Create(table, 1, &host, place.get());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  GpuMemory memory;
  std::unique_ptr<GpuPlace> place;
  BufferPool host;
};

std::vector<float> Floats(const Buffer& buffer) {
  std::vector<float> values(buffer.num_floats());
  std::memcpy(values.data(), buffer.data(), buffer.size());
  return values;
}

class GpuDensePartitionTest : public testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    std::unique_ptr<Gpu> gpu = GetParam() == 0 ? FirstCudaGpu() : GuardedGpu(GetParam());
    if (gpu == nullptr) GTEST_SKIP() << "this machine has no GPU, or this build no CUDA";
    machine_ = std::make_unique<Machine>(std::move(gpu));
  }

  std::unique_ptr<TablePartition> MakeOnHost(const pb::TableSpec& table) {
    auto made = TablePartition::Create(table, 1, &machine_->host);
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  std::vector<float> Values(TablePartition& partition) {
    return Floats(partition.ToHost(partition.Read(KeyList())));
  }

  // One update of both: gradients on the device, there at an odd place, or in host memory, in turn.
  void Update(TablePartition& on_gpu, TablePartition& on_host, uint64_t number, size_t count) {
    const size_t n = on_host.values(0);
    std::vector<std::vector<float>> values;
    std::vector<Buffer> buffers;
    std::vector<GradientView> device, host;
    for (size_t w = 0; w < count; ++w) {
      values.push_back(RandomVector(1000 * number + w, n));
    }
    for (size_t w = 0; w < count; ++w) {
      host.push_back({KeyList(), values[w].data()});
      if (w % 3 == 2) {
        device.push_back(host.back());
        continue;
      }
      buffers.push_back(machine_->OnDevice(values[w], w % 3));
      device.push_back({KeyList(), buffers.back().floats(), buffers.back().on_device()});
    }
    StepInfo info;
    info.step = number;
    info.inverse_weight = 0.25;
    ASSERT_EQ(on_gpu.SumOfSquares(device, 0.25), on_host.SumOfSquares(host, 0.25));
    ASSERT_TRUE(SameBits(Floats(on_gpu.Sum(device).values), Floats(on_host.Sum(host).values)));
    on_gpu.Apply(device, info);
    on_host.Apply(host, info);
    ASSERT_TRUE(SameBits(Values(on_gpu), Floats(on_host.Read(KeyList()))));
  }

  std::unique_ptr<Machine> machine_;
};

TEST_P(GpuDensePartitionTest, UpdatesGiveTheBitsOfTheCpu) {
  for (const pb::TableSpec& table : DenseTables()) {
    SCOPED_TRACE(table.optimizer().ShortDebugString());
    const auto on_gpu = machine_->Make(table);
    const auto on_host = MakeOnHost(table);
    ASSERT_TRUE(on_gpu->on_device() && on_gpu->Read(KeyList()).on_device());
    EXPECT_EQ(on_gpu->memory_bytes(), on_host->memory_bytes());
    ASSERT_EQ(on_gpu->Digest(), on_host->Digest());
    uint64_t number = 0;
    for (const size_t count : {3, 0, 1, 18}) Update(*on_gpu, *on_host, ++number, count);
    EXPECT_EQ(on_gpu->version(), on_host->version());
    ASSERT_EQ(on_gpu->Digest(), on_host->Digest());
  }
}

TEST_P(GpuDensePartitionTest, WhatWasReadStaysAsItIs) {
  const pb::TableSpec table = DenseTableSpec("lr: 0.1 adam {}", 300);
  const auto on_gpu = machine_->Make(table);
  const auto on_host = MakeOnHost(table);
  const Buffer first = on_gpu->Read(KeyList());
  const std::vector<float> initial = Floats(on_gpu->ToHost(first));
  Update(*on_gpu, *on_host, 1, 2);
  Update(*on_gpu, *on_host, 2, 2);
  EXPECT_TRUE(SameBits(Floats(on_gpu->ToHost(first)), initial));
  EXPECT_NE(on_gpu->Read(KeyList()).data(), first.data());
}

TEST_P(GpuDensePartitionTest, EitherGoesOnFromWhatTheOtherSaved) {
  const pb::TableSpec table =
      DenseTableSpec("lr: 0.1 rmsprop { centered: true momentum: 0.9 }", 77);
  const auto on_gpu = machine_->Make(table);
  const auto on_host = MakeOnHost(table);
  Update(*on_gpu, *on_host, 1, 2);
  const TableState saved = on_gpu->Save();
  const auto host_again = MakeOnHost(table);
  const auto gpu_again = machine_->Make(table);
  ASSERT_TRUE(host_again->Load(saved).ok());
  ASSERT_TRUE(gpu_again->Load(on_host->Save()).ok());
  EXPECT_EQ(host_again->Digest(), on_gpu->Digest());
  EXPECT_EQ(gpu_again->Digest(), on_host->Digest());
  Update(*gpu_again, *host_again, 2, 3);
  EXPECT_EQ(gpu_again->Digest(), host_again->Digest());

  // What does not fit changes nothing.
  const uint64_t before = on_gpu->Digest();
  const auto other = MakeOnHost(DenseTableSpec("lr: 0.1 sgd {}", 77));
  EXPECT_EQ(on_gpu->Load(other->Save()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(on_gpu->Digest(), before);
}

INSTANTIATE_TEST_SUITE_P(Simulated, GpuDensePartitionTest, testing::Values(1, 2));
INSTANTIATE_TEST_SUITE_P(Cuda, GpuDensePartitionTest, testing::Values(0));

TEST(GpuDensePartition, WithoutAPlaceThereIsNone) {
  pb::TableSpec table = DenseTableSpec("lr: 0.1 sgd {}", 77);
  table.mutable_compute()->set_placement(pb::Compute::GPU);
  BufferPool pool;
  EXPECT_EQ(TablePartition::Create(table, 0, &pool).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Whatever call of the GPU fails: an error or an exception that names it, and nothing worse.
TEST(GpuDensePartition, EveryFailureOfTheGpuIsNamed) {
  const pb::TableSpec table = [] {
    pb::TableSpec spec = DenseTableSpec("lr: 0.1 adam {}", 50);
    spec.mutable_compute()->set_placement(pb::Compute::GPU);
    return spec;
  }();
  const std::vector<float> gradient = RandomVector(1, 50);
  bool failed = true;
  for (uint64_t fail_at = 1; failed; ++fail_at) {
    ASSERT_LT(fail_at, 200u);
    failed = false;
    GpuMemory memory(std::make_shared<DeviceArenas>(
        Arenas::Options{.arena_bytes = 2 * kMiB, .max_bytes = 8 * kMiB}));
    ASSERT_TRUE(memory
                    .Open([&]() -> absl::StatusOr<std::unique_ptr<Gpu>> {
                      return CreateSimulatedGpu({.seed = 3, .guard = true, .fail_at = fail_at});
                    })
                    .ok());
    BufferPool host;
    const auto place = MakeGpuPlace(&memory, pb::Compute::CUDA_SIMULATED);
    if (!place.ok()) {
      failed = true;
      continue;
    }
    const auto made = TablePartition::Create(table, 0, &host, place->get());
    if (!made.ok()) {
      EXPECT_TRUE(absl::IsInternal(made.status()) || absl::IsResourceExhausted(made.status()))
          << made.status();
      failed = true;
      continue;
    }
    try {
      (*made)->Apply({{KeyList(), gradient.data()}}, StepInfo());
      (*made)->Save();
    } catch (const DeviceFailure& failure) {
      EXPECT_NE(std::string(failure.what()), "");
      failed = true;
    }
  }
}

}  // namespace
}  // namespace parley
