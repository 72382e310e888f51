// Device memory that is lent: what one Gpu makes, another of the same chip maps.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"
#include "ps/gpu/simulated_gpu.h"
#include "tests/conformance/gpu_rig.h"
#include "tests/conformance/gpu_test_kernels.h"

namespace parley {
namespace {

constexpr size_t kNumbers = 1000;

class GpuSharing : public GpuConformance {
 protected:
  void SetUp() override {
    GpuConformance::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    absl::StatusOr<ShareableMemory> memory = gpu().AllocateShareable(kNumbers * sizeof(float));
    if (absl::IsUnimplemented(memory.status())) GTEST_SKIP() << memory.status();
    ASSERT_OK(memory.status());
    memory_ = *memory;
  }

  float* owned() { return static_cast<float*>(memory_.device); }
  // Once.
  void Free() {
    gpu().FreeShareable(memory_);
    memory_ = {};
  }
  void TearDown() override {
    if (memory_.device != nullptr) Free();
  }

  // Bytes of `other`, as its own stream sees them.
  static std::vector<float> GetOf(Gpu* other, const void* device) {
    std::vector<float> values(kNumbers);
    absl::StatusOr<std::unique_ptr<GpuStream>> stream = other->NewStream();
    EXPECT_TRUE(stream.ok()) << stream.status();
    if (!stream.ok()) return {};
    absl::Status status = (*stream)->CopyOut(values.data(), device, kNumbers * sizeof(float));
    if (status.ok()) status = (*stream)->Sync();
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

  ShareableMemory memory_;
};

INSTANTIATE_TEST_SUITE_P(Simulated, GpuSharing, testing::ValuesIn(SimulatedGpus()), NameOf);
INSTANTIATE_TEST_SUITE_P(Cuda, GpuSharing, testing::ValuesIn(CudaGpus()), NameOf);

TEST_P(GpuSharing, ABorrowerSeesWhatTheOwnerWrites) {
  EXPECT_GE(memory_.bytes, kNumbers * sizeof(float));
  EXPECT_GE(memory_.fd, 0);
  absl::StatusOr<std::unique_ptr<Gpu>> borrower = MakeGpu();
  ASSERT_OK(borrower.status());
  absl::StatusOr<void*> borrowed = (*borrower)->MapShared(memory_.fd, memory_.bytes);
  ASSERT_OK(borrowed.status());
  for (uint64_t seed = 1; seed < 4; ++seed) {
    const std::vector<float> in = Numbers(kNumbers, seed);
    ASSERT_OK(stream().CopyIn(owned(), in.data(), kNumbers * sizeof(float)));
    ASSERT_OK(stream().Sync());
    EXPECT_EQ(GetOf(borrower->get(), *borrowed), in);
  }
  (*borrower)->UnmapShared(*borrowed, memory_.bytes);
  // The descriptor is still the owner's, and the memory, too.
  borrowed = (*borrower)->MapShared(memory_.fd, memory_.bytes);
  ASSERT_OK(borrowed.status());
  EXPECT_EQ(GetOf(borrower->get(), *borrowed), Numbers(kNumbers, 3));
  (*borrower)->UnmapShared(*borrowed, memory_.bytes);
}

TEST_P(GpuSharing, KernelsAndProductsReadWhatIsBorrowed) {
  const std::vector<float> in = Numbers(kNumbers, 4);
  ASSERT_OK(stream().CopyIn(owned(), in.data(), kNumbers * sizeof(float)));
  ASSERT_OK(stream().Sync());
  absl::StatusOr<void*> mapped = gpu().MapShared(memory_.fd, memory_.bytes);
  ASSERT_OK(mapped.status());
  const auto* borrowed = static_cast<const float*>(*mapped);
  float* doubled = Floats(kNumbers);
  float* product = Floats(1);
  float* ones = Put(std::vector<float>(kNumbers, 1));
  ASSERT_OK(stream().Launch(TestScale{borrowed, doubled, kNumbers, 2, 0}, 2));
  ASSERT_OK(stream().Gemm({.m = 1, .n = 1, .k = kNumbers, .a = borrowed, .b = ones, .c = product}));
  double sum = 0;
  const std::vector<float> out = Get(doubled, kNumbers);
  for (size_t i = 0; i < kNumbers; ++i) {
    ASSERT_EQ(out[i], in[i] * 2);
    sum += in[i];
  }
  EXPECT_NEAR(Get(product, 1)[0], sum, 1e-3);
  gpu().UnmapShared(*mapped, memory_.bytes);
}

TEST_P(GpuSharing, WhatIsBorrowedOutlivesItsOwner) {
  const std::vector<float> in = Numbers(kNumbers, 5);
  ASSERT_OK(stream().CopyIn(owned(), in.data(), kNumbers * sizeof(float)));
  ASSERT_OK(stream().Sync());
  absl::StatusOr<std::unique_ptr<Gpu>> borrower = MakeGpu();
  ASSERT_OK(borrower.status());
  const size_t bytes = memory_.bytes;
  absl::StatusOr<void*> borrowed = (*borrower)->MapShared(memory_.fd, bytes);
  ASSERT_OK(borrowed.status());
  Free();
  EXPECT_EQ(GetOf(borrower->get(), *borrowed), in);
  (*borrower)->UnmapShared(*borrowed, bytes);
}

// What a stranger sends over the socket.
TEST_P(GpuSharing, WhatIsNoSuchMemoryIsRefused) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int file = memfd_create("stranger", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 4096), 0);
  const int zeros = open("/dev/zero", O_RDWR | O_CLOEXEC);
  for (int fd : {-1, 1 << 20, ends[0], ends[1], file, zeros}) {
    const absl::Status status = gpu().MapShared(fd, memory_.bytes).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << fd << ": " << status;
  }
  for (size_t bytes : {size_t{0}, memory_.bytes - 1, memory_.bytes * 2, size_t{1} << 62}) {
    const absl::Status status = gpu().MapShared(memory_.fd, bytes).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bytes << ": " << status;
  }
  for (int fd : {ends[0], ends[1], file, zeros}) close(fd);
  // And nothing is broken.
  ASSERT_OK(stream().Zero(owned(), 4));
  ASSERT_OK(stream().Launch(TestScale{owned(), owned(), 1, 1, 0}, 1));
  ASSERT_OK(stream().Sync());
}

// CUDA does not survive fork(2), so that two processes are only tried with what does.
TEST(SimulatedGpuSharing, AnotherProcessMayMapIt) {
  std::unique_ptr<Gpu> owner = CreateSimulatedGpu({.seed = 1, .guard = true});
  absl::StatusOr<ShareableMemory> memory = owner->AllocateShareable(kNumbers * sizeof(float));
  ASSERT_OK(memory.status());
  const std::vector<float> in = Numbers(kNumbers, 6);
  {
    absl::StatusOr<std::unique_ptr<GpuStream>> stream = owner->NewStream();
    ASSERT_OK(stream.status());
    ASSERT_OK((*stream)->CopyIn(memory->device, in.data(), kNumbers * sizeof(float)));
    ASSERT_OK((*stream)->Sync());
  }
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::unique_ptr<Gpu> borrower = CreateSimulatedGpu({.seed = 2, .guard = true});
    absl::StatusOr<void*> borrowed = borrower->MapShared(memory->fd, memory->bytes);
    if (!borrowed.ok()) _exit(1);
    absl::StatusOr<std::unique_ptr<GpuStream>> stream = borrower->NewStream();
    std::vector<float> out(kNumbers);
    const bool copied = stream.ok() &&
                        (*stream)->CopyOut(out.data(), *borrowed, kNumbers * sizeof(float)).ok() &&
                        (*stream)->Sync().ok();
    _exit(copied && out == in ? 0 : 2);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  owner->FreeShareable(*memory);
}

}  // namespace
}  // namespace parley
