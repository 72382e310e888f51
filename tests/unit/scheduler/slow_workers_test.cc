#include "scheduler/slow_workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SlowWorkers, AreThoseFarAboveTheMedian) {
  SlowWorkers workers;
  for (uint32_t rank = 0; rank < 4; ++rank) workers.Add(rank, NodeId{10 + rank}, 3, 100);
  EXPECT_THAT(workers.Slow(2), IsEmpty());  // nothing has been measured
  for (uint32_t rank = 0; rank < 4; ++rank) {
    workers.Add(rank, NodeId{10 + rank}, 13, 100 + (rank == 2 ? 31 : 10));
  }
  EXPECT_THAT(workers.Slow(3), ElementsAre(NodeId{12}));
  EXPECT_THAT(workers.Slow(3.2), IsEmpty());
  EXPECT_DOUBLE_EQ(workers.StepSeconds(NodeId{12}), 3.1);
  // At another node it is measured anew, and until then nobody is judged.
  workers.Add(2, NodeId{50}, 14, 1);
  EXPECT_THAT(workers.Slow(3), IsEmpty());
  EXPECT_EQ(workers.StepSeconds(NodeId{50}), 0);
  EXPECT_EQ(workers.StepSeconds(NodeId{12}), 0);
}

}  // namespace
}  // namespace parley
