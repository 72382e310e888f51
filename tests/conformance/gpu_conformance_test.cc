// What every Gpu does: copies, order, events, kernels, graphs, memory, errors. Products and memory
// that is shared are beside this file. How long anything takes is not looked at.
#include <sys/mman.h>

#include <cstring>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/conformance/gpu_rig.h"
#include "tests/conformance/gpu_test_kernels.h"

namespace parley {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

INSTANTIATE_TEST_SUITE_P(Simulated, GpuConformance, testing::ValuesIn(SimulatedGpus()), NameOf);
INSTANTIATE_TEST_SUITE_P(Cuda, GpuConformance, testing::ValuesIn(CudaGpus()), NameOf);

TEST_P(GpuConformance, SaysWhatItIs) {
  const GpuInfo& info = gpu().info();
  EXPECT_NE(info.name, "");
  EXPECT_NE(info.uuid, "");
  EXPECT_GT(info.memory_bytes, 0u);
  EXPECT_EQ(info.simulated, !GetParam().cuda);
  EXPECT_THAT(ToString(info), HasSubstr(info.name));
}

TEST_P(GpuConformance, MemoryIsAligned) {
  for (size_t bytes : {0, 1, 3, 255, 257, 100000}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(Allocate(bytes)) % 256, 0u) << bytes;
  }
  gpu().Free(nullptr);
}

TEST_P(GpuConformance, CopiesInWithinAndOut) {
  const std::vector<float> in = Numbers(1000, 1);
  float* a = Floats(1000);
  float* b = Floats(1000);
  std::vector<float> out(1000);
  ASSERT_OK(stream().CopyIn(a, in.data(), 4000));
  ASSERT_OK(stream().CopyWithin(b + 1, a, 3996));
  ASSERT_OK(stream().CopyIn(b, in.data() + 999, 4));
  ASSERT_OK(stream().Zero(b + 10, 8));
  ASSERT_OK(stream().CopyOut(out.data(), b, 4000));
  // Of nothing, they do nothing.
  ASSERT_OK(stream().CopyIn(a, in.data(), 0));
  ASSERT_OK(stream().CopyWithin(b, a, 0));
  ASSERT_OK(stream().CopyOut(out.data(), b, 0));
  ASSERT_OK(stream().Zero(b, 0));
  ASSERT_OK(stream().Sync());

  std::vector<float> expected(1000);
  expected[0] = in[999];
  std::copy_n(in.begin(), 999, expected.begin() + 1);
  expected[10] = expected[11] = 0;
  EXPECT_EQ(out, expected);
}

TEST_P(GpuConformance, AStreamIsInOrder) {
  constexpr int kTimes = 20;
  constexpr size_t kNumbers = 500;
  const std::vector<float> in = Numbers(kTimes * kNumbers, 2);
  std::vector<float> out(in.size()), expected = in;
  for (float& number : expected) number = number * 2 + 1;
  float* x = Floats(kNumbers);
  float* y = Floats(kNumbers);
  for (int i = 0; i < kTimes; ++i) {
    ASSERT_OK(stream().CopyIn(x, in.data() + i * kNumbers, kNumbers * 4));
    ASSERT_OK(stream().Launch(TestScale{x, y, kNumbers, 2, 1}, 2));
    ASSERT_OK(stream().CopyOut(out.data() + i * kNumbers, y, kNumbers * 4));
  }
  ASSERT_OK(stream().Sync());
  EXPECT_EQ(out, expected);
}

// In, compute and out on a stream each, as a worker does it, with two buffers that are used in
// turn.
TEST_P(GpuConformance, EventsOrderStreams) {
  constexpr int kTimes = 16;
  constexpr size_t kNumbers = 5000;
  const std::vector<float> in = Numbers(kTimes * kNumbers, 3);
  std::vector<float> out(in.size()), expected = in;
  for (float& number : expected) number = number * 3 + 1;
  auto copy_in = NewStream(), copy_out = NewStream();
  struct Slot {
    float *x, *y;
    std::unique_ptr<GpuEvent> came, computed, left;
  };
  std::vector<Slot> slots;
  for (int i = 0; i < 2; ++i) {
    slots.push_back({Floats(kNumbers), Floats(kNumbers), NewEvent(), NewEvent(), NewEvent()});
  }
  for (int i = 0; i < kTimes; ++i) {
    Slot& slot = slots[i % 2];
    ASSERT_OK(copy_in->WaitFor(*slot.computed));
    ASSERT_OK(copy_in->CopyIn(slot.x, in.data() + i * kNumbers, kNumbers * 4));
    ASSERT_OK(copy_in->Record(slot.came.get()));
    ASSERT_OK(stream().WaitFor(*slot.came));
    ASSERT_OK(stream().WaitFor(*slot.left));
    ASSERT_OK(stream().Launch(TestScale{slot.x, slot.y, kNumbers, 3, 1}, 4));
    ASSERT_OK(stream().Record(slot.computed.get()));
    ASSERT_OK(copy_out->WaitFor(*slot.computed));
    ASSERT_OK(copy_out->CopyOut(out.data() + i * kNumbers, slot.y, kNumbers * 4));
    ASSERT_OK(copy_out->Record(slot.left.get()));
  }
  for (Slot& slot : slots) {
    ASSERT_OK(slot.left->Await());
    EXPECT_TRUE(slot.left->done());
  }
  EXPECT_EQ(out, expected);
}

TEST_P(GpuConformance, AnEventThatWasNotRecordedHoldsNobody) {
  auto event = NewEvent();
  EXPECT_TRUE(event->done());
  ASSERT_OK(event->Await());
  ASSERT_OK(stream().WaitFor(*event));
  ASSERT_OK(stream().Sync());
}

TEST_P(GpuConformance, WhoeverAsksOftenEnoughSeesItDone) {
  const std::vector<float> in = Numbers(100000, 4);
  float* x = Floats(in.size());
  auto event = NewEvent();
  for (int i = 0; i < 5; ++i) ASSERT_OK(stream().CopyIn(x, in.data(), in.size() * 4));
  ASSERT_OK(stream().Record(event.get()));
  while (!event->done()) {
  }
  ASSERT_OK(event->Await());
  // Not done is no error: what follows goes on.
  ASSERT_OK(stream().Launch(TestScale{x, x, in.size(), 1, 0}, 4));
  EXPECT_EQ(Get(x, in.size()), in);
}

TEST_P(GpuConformance, AnyThreadMayUseIt) {
  const std::vector<float> in = Numbers(1000, 5);
  std::vector<float> out(1000);
  auto event = NewEvent();
  float* x = Floats(1000);
  std::thread([&] {
    ASSERT_OK(stream().CopyIn(x, in.data(), 4000));
    ASSERT_OK(stream().Launch(TestScale{x, x, 1000, 4, 0}, 1));
    ASSERT_OK(stream().CopyOut(out.data(), x, 4000));
    ASSERT_OK(stream().Record(event.get()));
  }).join();
  std::thread([&] { ASSERT_OK(event->Await()); }).join();
  for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(out[i], in[i] * 4);
}

// The products are rounded before the sums: no FMA, on no side.
TEST_P(GpuConformance, AKernelGivesTheBitsOfTheCpu) {
  const std::vector<float> in = Numbers(100003, 6);
  float* x = Put(in);
  float* y = Floats(in.size());
  ASSERT_OK(
      stream().Launch(TestScale{x, y, in.size(), 1.1f, -0.7f}, BlocksFor<TestScale>(in.size())));
  const std::vector<float> out = Get(y, in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const volatile float product = in[i] * 1.1f;
    ASSERT_EQ(out[i], product + -0.7f) << i;
  }
}

TEST_P(GpuConformance, PhasesOfAKernelMeetAtBarriers) {
  constexpr uint32_t kBlocks = 7, kThreads = TestSum::kThreads;
  const std::vector<float> in = Numbers(10001, 7);
  float* x = Put(in);
  float* sums = Floats(kBlocks);
  ASSERT_OK(stream().Launch(TestSum{x, sums, in.size()}, kBlocks));
  const std::vector<float> out = Get(sums, kBlocks);
  for (uint32_t block = 0; block < kBlocks; ++block) {
    float part[kThreads];
    for (uint32_t t = 0; t < kThreads; ++t) {
      part[t] = 0;
      for (size_t i = block * kThreads + t; i < in.size(); i += kBlocks * kThreads)
        part[t] += in[i];
    }
    for (uint32_t half = kThreads / 2; half > 0; half /= 2) {
      for (uint32_t t = 0; t < half; ++t) part[t] += part[t + half];
    }
    EXPECT_EQ(out[block], part[0]) << block;
  }
}

TEST_P(GpuConformance, AGraphIsDoneWhenItIsLaunched) {
  constexpr size_t kNumbers = 64;
  const std::vector<float> factor = Numbers(64, 8);
  float* in = Put(std::vector<float>(kNumbers, 1));
  float* f = Put(factor);
  float* x = Put(std::vector<float>(kNumbers, 0));
  float* product = Put(std::vector<float>(kNumbers, 0));

  ASSERT_OK(stream().BeginGraph());
  ASSERT_OK(stream().Launch(TestScale{in, x, kNumbers, 2, 1}, 1));
  // The stream's first product, so that there is nothing yet that it needs.
  ASSERT_OK(stream().Gemm({.m = 8, .n = 8, .k = 8, .a = x, .b = f, .c = product}));
  ASSERT_OK(stream().CopyWithin(in, x, kNumbers * 4));
  absl::StatusOr<std::unique_ptr<GpuGraph>> graph = stream().EndGraph();
  ASSERT_OK(graph.status());
  EXPECT_EQ(Get(x, kNumbers), std::vector<float>(kNumbers, 0));
  EXPECT_EQ(Get(in, kNumbers), std::vector<float>(kNumbers, 1));

  float value = 1;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(stream().Launch(**graph));
    value = value * 2 + 1;
  }
  EXPECT_EQ(Get(in, kNumbers), std::vector<float>(kNumbers, value));
  const std::vector<float> out = Get(product, kNumbers);
  for (int column = 0; column < 8; ++column) {
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += value * factor[k * 8 + column];
    EXPECT_NEAR(out[column], sum, 1e-4) << column;
  }
  // Others may launch it, too, and the stream goes on without it.
  auto other = NewStream();
  ASSERT_OK(other->Launch(**graph));
  ASSERT_OK(other->Sync());
  ASSERT_OK(stream().Zero(in, 4));
  EXPECT_EQ(Get(in, 2), (std::vector<float>{0, value * 2 + 1}));
}

// As SharedArenas map it.
struct HostArena {
  static constexpr size_t kBytes = size_t{1} << 20;
  HostArena()
      : floats(static_cast<float*>(
            mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~HostArena() { munmap(floats, kBytes); }
  float* const floats;
};

TEST_P(GpuConformance, HostMemoryIsPinnedAndUnpinned) {
  HostArena arena;
  const std::vector<float> in = Numbers(1000, 9);
  float* device = Floats(1000);
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(gpu().Pin(arena.floats, HostArena::kBytes));
    std::memcpy(arena.floats, in.data(), 4000);
    ASSERT_OK(stream().CopyIn(device, arena.floats, 4000));
    ASSERT_OK(stream().CopyOut(arena.floats + 5000, device, 4000));
    ASSERT_OK(stream().Sync());
    EXPECT_EQ(std::memcmp(arena.floats + 5000, in.data(), 4000), 0);
    gpu().Unpin(arena.floats);
  }
}

TEST_P(GpuConformance, MemoryThatIsNotThereIsAnError) {
  EXPECT_TRUE(absl::IsResourceExhausted(gpu().Allocate(gpu().info().memory_bytes + 4096).status()));
  // And nothing that follows suffers from it.
  float* x = Put(std::vector<float>(100, 3));
  ASSERT_OK(stream().Launch(TestScale{x, x, 100, 2, 0}, 1));
  EXPECT_EQ(Get(x, 100), std::vector<float>(100, 6));
}

TEST_P(GpuConformance, ErrorsNameTheCall) {
  HostArena arena;
  ASSERT_OK(gpu().Pin(arena.floats, HostArena::kBytes));
  const absl::Status status = gpu().Pin(arena.floats, HostArena::kBytes);
  gpu().Unpin(arena.floats);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  const std::string message(status.message());
  if (GetParam().cuda) {
    EXPECT_THAT(message, MatchesRegex("cuda: cudaHostRegister: .*memory.* "
                                      "\\(ps/gpu/cuda_gpu\\.cc:[0-9]+\\)"));
  } else {
    EXPECT_THAT(message, HasSubstr("simulated gpu: pin: "));
  }
}

TEST_P(GpuConformance, AKernelThatNvccHasNotCompiledIsAnError) {
  const GpuKernel host_only{"TestHostOnly", [](const void*, uint32_t, uint64_t) {}, nullptr};
  const char args = 0;
  const absl::Status status = stream().LaunchErased(host_only, 1, &args, 1);
  ASSERT_OK(stream().Sync());
  if (!GetParam().cuda) {
    ASSERT_OK(status);
    return;
  }
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              MatchesRegex(".*TestHostOnly.*not compiled by nvcc.*\\(ps/gpu/.*:[0-9]+\\)"));
}

}  // namespace
}  // namespace parley
