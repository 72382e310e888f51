#include "ps/base/buffer.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace parley {
namespace {

TEST(BufferTest, EmptyHoldsNothing) {
  const Buffer buffer;
  EXPECT_TRUE(buffer.empty());
  EXPECT_FALSE(buffer.unique());
  EXPECT_EQ(buffer.view(), "");
  EXPECT_EQ(Buffer::Copy("").size(), 0u);
}

TEST(BufferTest, AllocateIsAlignedAndUnique) {
  for (const size_t size : {0, 1, 63, 64, 65, 100000}) {
    Buffer buffer = Buffer::Allocate(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % Buffer::kAlignment, 0u);
    EXPECT_TRUE(buffer.unique());
  }
}

TEST(BufferTest, CopiesShareBytesAndUniqueTellsWhenTheyDoNot) {
  Buffer first = Buffer::Copy("gradient");
  EXPECT_TRUE(first.unique());
  {
    const Buffer second = first;
    EXPECT_EQ(second.data(), first.data());
    EXPECT_FALSE(first.unique());
    EXPECT_FALSE(second.unique());
  }
  EXPECT_TRUE(first.unique());
  Buffer moved = std::move(first);
  EXPECT_TRUE(moved.unique());
  EXPECT_EQ(moved.view(), "gradient");
}

TEST(BufferTest, SlicesKeepTheBlockAlive) {
  Buffer slice;
  {
    const Buffer whole = Buffer::Copy("0123456789");
    slice = whole.Slice(3, 4);
    EXPECT_FALSE(slice.unique());
    EXPECT_EQ(slice.Slice(1, 2).view(), "45");
  }
  EXPECT_TRUE(slice.unique());
  EXPECT_EQ(slice.view(), "3456");
}

TEST(BufferTest, AssignmentDropsTheOldBlockAndSurvivesItself) {
  int released = 0;
  char bytes[4] = {'a', 'b', 'c', 'd'};
  Buffer buffer = Buffer::Wrap(bytes, sizeof bytes, [&released] { ++released; });
  const Buffer& itself = buffer;
  buffer = itself;
  EXPECT_EQ(released, 0);
  EXPECT_EQ(buffer.view(), "abcd");
  buffer = Buffer::Copy("x");
  EXPECT_EQ(released, 1);
}

TEST(BufferTest, WrapReleasesOnceWithTheLastReference) {
  int released = 0;
  std::vector<float> values = {1, 2, 3};
  {
    Buffer wrapped = Buffer::Wrap(values.data(), 12, [&released] { ++released; });
    EXPECT_EQ(wrapped.num_floats(), 3u);
    EXPECT_EQ(wrapped.floats(), values.data());
    const Buffer slice = wrapped.Slice(4, 4);
    wrapped = Buffer();
    EXPECT_EQ(released, 0);
    EXPECT_EQ(*slice.floats(), 2);
  }
  EXPECT_EQ(released, 1);
}

TEST(BufferPoolTest, RecyclesBlocksOfTheSameClass) {
  BufferPool pool;
  const std::byte* first = nullptr;
  {
    const Buffer buffer = pool.Allocate(1 << 20);
    first = buffer.data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % Buffer::kAlignment, 0u);
  }
  const Buffer again = pool.Allocate((1 << 20) - 100);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.size(), (1u << 20) - 100);
  EXPECT_NE(pool.Allocate(1 << 20).data(), first);  // still in use
}

TEST(BufferPoolTest, DoesNotRecycleWhatIsStillReferredTo) {
  BufferPool pool;
  Buffer slice = pool.Allocate(4096).Slice(100, 8);
  const std::byte* data = slice.data() - 100;
  EXPECT_NE(pool.Allocate(4096).data(), data);
  slice = Buffer();
  EXPECT_EQ(pool.Allocate(4096).data(), data);
}

TEST(BufferPoolTest, ServesEverySize) {
  BufferPool pool;
  for (size_t size = 0; size < 70000; size = size * 9 / 8 + 1) {
    Buffer buffer = pool.Allocate(size);
    ASSERT_EQ(buffer.size(), size);
    // All of it may be written: the address sanitizer watches.
    for (size_t i = 0; i < size; i += 13) buffer.mutable_data()[i] = std::byte{1};
    if (size > 0) buffer.mutable_data()[size - 1] = std::byte{2};
  }
}

TEST(BufferPoolTest, BuffersOutliveThePool) {
  Buffer survivor;
  {
    BufferPool pool(0);  // caches nothing
    survivor = pool.Allocate(100);
    pool.Allocate(100);
  }
  survivor.mutable_data()[99] = std::byte{7};
  EXPECT_TRUE(survivor.unique());
}

}  // namespace
}  // namespace parley
