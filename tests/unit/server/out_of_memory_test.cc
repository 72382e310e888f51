// What a shard does when memory runs out: what changed nothing is refused and may be asked again;
// after an update that may be half applied nobody is answered, and the shard ends by saying so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ps/server/hosted_table.h"
#include "ps/server/push_handler.h"
#include "tests/unit/server/server_harness.h"
#include "tests/unit/table/scarce_memory.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class OutOfMemoryTest : public ::testing::Test {
 protected:
  using Shortage = ScarceMemory::Shortage;

  std::string Why() { return server_.ended ? std::string(server_.ended->message()) : "alive"; }

  const std::shared_ptr<ScarceMemory> memory_ = std::make_shared<ScarceMemory>();
  ServerHarness server_{2, memory_};
};

Request Push(uint64_t tick) {
  return Request(pb::PUSH, ServerHarness::kDense).Tick(tick).Weight(1).Part(0, tick + 1);
}

TEST_F(OutOfMemoryTest, PartitionsThatDoNotFitEndTheShard) {
  server_.AddDense();
  const Shortage shortage(memory_.get());
  EXPECT_FALSE(server_.Start().ok());
  server_.Run(absl::Seconds(5));
  ASSERT_TRUE(server_.ended.has_value());
  EXPECT_EQ(server_.ended->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Why(), HasSubstr("table 'model': no memory for partition 0"));
}

TEST_F(OutOfMemoryTest, APullIsRefusedAndMayBeAskedAgain) {
  server_.AddSparse(1);
  ASSERT_TRUE(server_.Start().ok());
  const auto pull = [] {
    return Request(pb::PULL, ServerHarness::kSparse).Tick(0).Part(0).Keys({1, 2});
  };
  {
    const Shortage shortage(memory_.get());
    const absl::Status refused = server_.Ask(0, pull()).status();
    EXPECT_THAT(std::string(refused.message()), HasSubstr("no memory for an answer from table 3"));
  }
  const auto answer = server_.Ask(0, pull());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(FloatsOf(answer->payload[0]), ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(Why(), "alive");
}

// The second push completes the step. What is published of it is made after the weights are: there
// the memory is missing.
TEST_F(OutOfMemoryTest, AnUpdateThatMayBeHalfAppliedEndsTheShard) {
  server_.AddDense()->mutable_compression()->set_pull("one_bit");
  ASSERT_TRUE(server_.Start().ok());
  ASSERT_TRUE(server_.Ask(0, Push(0).Values({1, 1, 1, 1})).ok());
  {
    const Shortage shortage(memory_.get());
    EXPECT_EQ(server_.Ask(1, Push(0).Values({1, 1, 1, 1})).status().code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  // Neither is a copy of it acknowledged, nor are its weights read.
  EXPECT_FALSE(server_.Ask(1, Push(0).Values({1, 1, 1, 1})).ok());
  EXPECT_FALSE(
      server_.Ask(0, Request(pb::PULL, ServerHarness::kDense).Tick(1).Part(0)).status().ok());
  ASSERT_TRUE(server_.ended.has_value());
  EXPECT_EQ(server_.ended->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Why(),
              AllOf(HasSubstr("out of memory in a PUSH about table 4"), HasSubstr("half applied")));
}

TEST_F(OutOfMemoryTest, ValuesThatCannotBeDecodedLeaveNothingTaken) {
  server_.AddDense()->mutable_compression()->set_push("fp16");
  PushCounters counters;
  HostedTable::Context context;
  context.pool = &server_.pool;
  context.counters = &counters;
  auto table = HostedTable::Create(server_.tables[0], context, [](uint32_t, NormGroup, double) {});
  ASSERT_TRUE(table.ok()) << table.status();
  auto partition = (*table)->Make(0, {1});
  ASSERT_TRUE(partition.ok()) << partition.status();
  (*table)->Host(*std::move(partition));
  const auto push = [&] {
    Request request = Push(0);
    request.Encoded(std::string(8, '\x3c'), 4).header().set_incarnation(1);
    TableRequest resolved;
    resolved.table = table->get();
    resolved.partitions = {(*table)->Find(0)};
    resolved.payload = SplitPayload(request.frame());
    resolved.header = request.header();
    return TakePush(&resolved, &server_.pool, /*keep_keys=*/false);
  };
  {
    const Shortage shortage(memory_.get());
    const absl::Status refused = push();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("none of it was taken"));
    EXPECT_EQ(counters.accepted, 0u);
  }
  EXPECT_TRUE(push().ok());
  EXPECT_EQ(counters.accepted, 1u);
}

}  // namespace
}  // namespace parley
