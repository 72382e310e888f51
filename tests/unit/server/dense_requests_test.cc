// PUSH_PULL, codecs and changes of a dense table through a whole server shard.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ps/codec/payload_codec.h"
#include "tests/unit/server/server_harness.h"

namespace parley {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kTable = ServerHarness::kDense;
constexpr uint64_t kAfterAllLeft = ~uint64_t{0};

Request Pull(uint64_t tick) { return Request(pb::PULL, kTable).Tick(tick); }
Request Push(uint64_t tick, double weight = 1) {
  return Request(pb::PUSH, kTable).Tick(tick).Weight(weight);
}
Request PushPull(uint64_t tick, double weight = 1) {
  return Request(pb::PUSH_PULL, kTable).Tick(tick).Weight(weight).PullTick(tick + 1);
}

class DenseRequestsTest : public ::testing::Test {
 protected:
  void Start(pb::Consistency::Mode mode = pb::Consistency::BSP, uint32_t partitions = 1) {
    server_.experiment.mutable_consistency()->set_mode(mode);
    if (server_.tables.empty()) server_.AddDense(partitions);
    const absl::Status status = server_.Start();
    ASSERT_TRUE(status.ok()) << status;
  }
  std::vector<float> Weights(const absl::StatusOr<Frame>& answer, size_t part = 0) {
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? FloatsOf(SplitPayload(*answer)[part].values) : std::vector<float>();
  }
  std::string Error(uint32_t worker, Request request) {
    return std::string(server_.Ask(worker, std::move(request)).status().message());
  }
  void Leave(uint32_t worker, uint64_t after_tick) {
    Request leave(pb::LEAVE, kTable);
    pb::Leave body;
    body.set_after_tick(after_tick);
    leave.header().set_body(body.SerializeAsString());
    ASSERT_TRUE(server_.Ask(worker, std::move(leave)).ok());
  }

  ServerHarness server_;
};

TEST_F(DenseRequestsTest, PushPullBringsTheWeightsBackWhenAllHavePushed) {
  Start(pb::Consistency::BSP, 2);
  std::optional<absl::StatusOr<Frame>> answer;
  server_.AskLater(0, PushPull(0).Part(1, 1).Values({1, 1, 1, 1}).Part(0, 1).Values({2, 2, 2, 2}),
                   &answer);
  server_.Run(absl::Seconds(3));
  EXPECT_FALSE(answer.has_value());
  EXPECT_EQ(server_.Count().pushes_accepted(), 2u);  // the push does not wait
  ASSERT_TRUE(server_.Ask(1, Push(0).Part(0, 1).Values({4, 4, 4, 4})).ok());
  server_.Run(absl::Seconds(1));
  EXPECT_FALSE(answer.has_value());  // partition 1 is not there yet
  const auto last = server_.Ask(1, PushPull(0).Part(1, 1).Values({3, 3, 3, 3}));
  EXPECT_THAT(Weights(last), Each(-2));
  server_.Run(absl::Seconds(1));
  ASSERT_TRUE(answer.has_value());
  EXPECT_THAT(Weights(*answer, 0), Each(-2));
  EXPECT_THAT(Weights(*answer, 1), Each(-3));
  EXPECT_EQ((*answer)->header.part(0).partition(), 1u);
  EXPECT_EQ((*answer)->header.part(0).version(), 1u);
  EXPECT_EQ((*answer)->header.tick(), 1u);
}

TEST_F(DenseRequestsTest, APushPullThatIsHeldSaysForWhomAndIsTakenOnce) {
  Start();
  std::vector<pb::FrameHeader> sent;
  server_.Watch(&sent);
  const Request request = PushPull(0).Part(0, 1).Values({1, 1, 1, 1});
  server_.SendAgain(0, request, 900);
  server_.SendAgain(0, request, 900);  // asks if it was lost
  const auto ours = [&] {
    std::erase_if(sent, [](const pb::FrameHeader& frame) { return frame.request_id() != 900; });
    return sent;
  };
  ASSERT_GE(ours().size(), 2u);  // on its own after a while, and when asked
  for (const pb::FrameHeader& frame : ours()) {
    EXPECT_EQ(frame.kind(), pb::PARKED);
    EXPECT_THAT(frame.status_message(), HasSubstr("worker 1 to push step 0"));
  }
  EXPECT_EQ(server_.Count().pushes_duplicate(), 0u);  // it was not looked at again
  ASSERT_TRUE(server_.Ask(1, Push(0).Part(0, 1).Values({3, 3, 3, 3})).ok());
  server_.Run(absl::Seconds(1));
  ASSERT_EQ(ours().back().kind(), pb::REPLY);
  EXPECT_EQ(ours().back().part(0).version(), 1u);
}

TEST_F(DenseRequestsTest, AReplayedPushPullIsReadAgainAndNotAppliedAgain) {
  Start();
  ASSERT_TRUE(server_.Ask(1, Push(0).Part(0, 1).Values({3, 3, 3, 3})).ok());
  const Request request = PushPull(0).Part(0, 1).Values({1, 1, 1, 1});
  const auto first = server_.Ask(0, request);
  const auto again = server_.Ask(0, request);
  EXPECT_THAT(Weights(first), Each(-2));
  EXPECT_THAT(Weights(again), Each(-2));
  const pb::ServerCounts counts = server_.Count();
  EXPECT_EQ(counts.pushes_accepted(), 2u);
  EXPECT_EQ(counts.pushes_applied(), 2u);
  EXPECT_EQ(counts.pushes_duplicate(), 1u);
}

TEST_F(DenseRequestsTest, APushPullWhosePushIsRefusedReadsNothing) {
  Start(pb::Consistency::BSP, 2);
  EXPECT_THAT(Error(0, PushPull(0).Part(0, 1).Values({1, 1, 1, 1}).Part(1, 1).Values({1, 1})),
              HasSubstr("carries 2 elements"));
  Request blind = PushPull(0).Part(0, 1).Values({1, 1, 1, 1});
  blind.header().clear_pull_tick();
  EXPECT_THAT(Error(0, std::move(blind)), HasSubstr("needs the pull_tick"));
  EXPECT_EQ(server_.Count().pushes_accepted(), 0u);
}

TEST_F(DenseRequestsTest, AdjacentPartitionsMayTravelInOneBuffer) {
  Start(pb::Consistency::ASP, 2);
  Request push = Push(0).Part(0, 1).Part(1, 1);
  for (pb::Part& part : *push.header().mutable_part()) part.set_count(4);
  push.frame().payload.push_back(FloatBuffer({1, 2, 3, 4, 5, 6, 7, 8}));
  ASSERT_TRUE(server_.Ask(0, std::move(push)).ok());
  const auto answer = server_.Ask(0, Pull(0).Part(0).Part(1));
  EXPECT_THAT(Weights(answer, 0), ElementsAre(-1, -2, -3, -4));
  EXPECT_THAT(Weights(answer, 1), ElementsAre(-5, -6, -7, -8));
}

TEST_F(DenseRequestsTest, ValuesThatDoNotDecodeAreRefusedAllPartsOrNone) {
  pb::TableSpec* table = server_.AddDense(2);
  table->mutable_compression()->set_push("fp16");
  Start(pb::Consistency::ASP);
  const std::string ones("\x00\x3c\x00\x3c\x00\x3c\x00\x3c", 8);
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Encoded(ones, 4).Part(1, 1).Encoded(ones + "!", 4)),
              HasSubstr("its values are not of codec 'fp16'"));
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Encoded("", 4)), HasSubstr("codec 'fp16'"));
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Encoded(ones, 5)), HasSubstr("carries 5 elements"));
  EXPECT_THAT(Error(0, Push(0, 0).Part(0, 1).Encoded(ones, 0)), HasSubstr("carries 8 bytes"));
  EXPECT_EQ(server_.Count().pushes_accepted(), 0u);
  // The same sequences, then right; and float32 as it is, which is told by its having no length.
  ASSERT_TRUE(
      server_.Ask(0, Push(0).Part(0, 1).Encoded(ones, 4).Part(1, 1).Values({1, 2, 3, 4})).ok());
  const auto answer = server_.Ask(0, Pull(0).Part(0).Part(1));
  EXPECT_THAT(Weights(answer, 0), Each(-1));
  EXPECT_THAT(Weights(answer, 1), ElementsAre(-1, -2, -3, -4));
}

TEST_F(DenseRequestsTest, ATableWithoutACodecTakesNoEncodedValues) {
  Start(pb::Consistency::ASP);
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Encoded("12345678", 4)),
              HasSubstr("carries 8 bytes of values, allowed is 16"));
}

// A worker that follows the changes.
class Follower {
 public:
  explicit Follower(const std::string& codec) : codec_(*PayloadCodec::Create(codec, {})) {}

  void Ask(Request* request) const {
    if (version_) request->Base(*version_);
  }
  void Take(const absl::StatusOr<Frame>& answer) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    const pb::Part& part = answer->header.part(0);
    if (!part.has_base_version()) {
      ASSERT_FALSE(part.has_value_bytes());
      weights_ = FloatsOf(answer->payload[0]);
    } else {
      ASSERT_EQ(part.base_version(), *version_);
      if (part.count() > 0) {
        std::vector<float> change(4);
        ASSERT_TRUE(codec_->Decode(answer->payload[0].view(), 4, change.data()).ok());
        for (size_t i = 0; i < 4; ++i) weights_[i] += change[i];
      } else {
        ASSERT_TRUE(answer->payload.empty());
      }
      ++changes_;
    }
    version_ = part.version();
  }
  const std::vector<float>& weights() const { return weights_; }
  int changes() const { return changes_; }
  uint64_t version() const { return *version_; }

 private:
  const std::unique_ptr<PayloadCodec> codec_;
  std::optional<uint64_t> version_;
  std::vector<float> weights_;
  int changes_ = 0;
};

class ChangesTest : public DenseRequestsTest {
 protected:
  void StartWith(const std::string& codec) {
    server_.AddDense()->mutable_compression()->set_pull(codec);
    Start();
  }
  void PushBoth(uint64_t tick, const std::vector<float>& gradient) {
    for (uint32_t worker : {0, 1}) {
      ASSERT_TRUE(server_.Ask(worker, Push(tick).Part(0, tick + 1).Values(gradient)).ok());
    }
  }
  absl::StatusOr<Frame> PullBy(const Follower& follower, uint32_t worker, uint64_t tick) {
    Request pull = Pull(tick).Part(0);
    follower.Ask(&pull);
    return server_.Ask(worker, std::move(pull));
  }
};

class FollowersTest : public ChangesTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(FollowersTest, HoldTheSameAndEndNearTheTruth) {
  StartWith(GetParam());
  Follower steady(GetParam());
  steady.Take(PullBy(steady, 0, 0));
  for (uint64_t tick = 0; tick < 40; ++tick) {
    PushBoth(tick, tick < 8 ? std::vector<float>{1, -2, 3, -4} : std::vector<float>{0, 0, 0, 0});
    steady.Take(PullBy(steady, 0, tick + 1));
    Follower forgetful(GetParam());
    forgetful.Take(PullBy(forgetful, 1, tick + 1));
    ASSERT_EQ(steady.weights(), forgetful.weights()) << tick;
  }
  EXPECT_EQ(steady.changes(), 40);
  const float truth[] = {-8, 16, -24, 32};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(steady.weights()[i], truth[i], 1) << i;
}

INSTANTIATE_TEST_SUITE_P(Codecs, FollowersTest, ::testing::Values("int8", "one_bit", "top_k"));

TEST_F(ChangesTest, AnAnswerThatWasLostIsGivenAgain) {
  StartWith("one_bit");
  Follower follower("one_bit");
  follower.Take(PullBy(follower, 0, 0));
  PushBoth(0, {1, 2, 3, 4});
  const auto lost = PullBy(follower, 0, 1);
  const auto again = PullBy(follower, 0, 1);
  ASSERT_TRUE(lost.ok() && again.ok());
  EXPECT_EQ(lost->payload[0].view(), again->payload[0].view());
  EXPECT_EQ(again->header.part(0).base_version(), 0u);
  follower.Take(again);
  // Asked once more, now with the version that it led to: there is nothing to send.
  const auto nothing = PullBy(follower, 0, 1);
  ASSERT_TRUE(nothing.ok());
  EXPECT_EQ(nothing->header.part(0).count(), 0u);
  EXPECT_TRUE(nothing->payload.empty());
  follower.Take(nothing);
  EXPECT_EQ(follower.version(), 1u);
}

TEST_F(ChangesTest, VersionsThatAreNotTheLastGetTheWeightsWhole) {
  StartWith("top_k");
  PushBoth(0, {1, 2, 3, 4});
  PushBoth(1, {1, 2, 3, 4});
  for (uint64_t base : {uint64_t{0}, uint64_t{7}, ~uint64_t{0}}) {
    const auto answer = server_.Ask(0, Pull(2).Part(0).Base(base));
    ASSERT_TRUE(answer.ok());
    EXPECT_FALSE(answer->header.part(0).has_base_version());
    EXPECT_EQ(answer->payload[0].size(), 16u);
    EXPECT_EQ(answer->header.part(0).version(), 2u);
  }
}

TEST_F(ChangesTest, TheLastPullHasTheTrueWeights) {
  StartWith("one_bit");
  Follower follower("one_bit");
  follower.Take(PullBy(follower, 0, 0));
  PushBoth(0, {1, 2, 3, 400});
  follower.Take(PullBy(follower, 0, 1));
  Leave(0, 1);
  Leave(1, 1);
  const auto last = server_.Ask(0, Pull(kAfterAllLeft).Part(0).Base(1));
  EXPECT_THAT(Weights(last), ElementsAre(-1, -2, -3, -400));
  EXPECT_FALSE(last->header.part(0).has_base_version());
  EXPECT_NE(follower.weights(), Weights(last));
}

TEST_F(ChangesTest, APushPullBringsTheChange) {
  StartWith("int8");
  Follower follower("int8");
  follower.Take(PullBy(follower, 0, 0));
  ASSERT_TRUE(server_.Ask(1, Push(0).Part(0, 1).Values({1, 2, 3, 4})).ok());
  const auto answer = server_.Ask(0, PushPull(0).Part(0, 1).Values({1, 2, 3, 4}).Base(0));
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->header.part(0).base_version(), 0u);
  follower.Take(answer);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(follower.weights()[i], -(i + 1), 0.05);
}

TEST(AssignmentOfCodecs, IsRefusedWhereItCannotBe) {
  const auto refusal = [](pb::Consistency::Mode mode, bool sparse, const char* push,
                          const char* pull) {
    ServerHarness server;
    server.experiment.mutable_consistency()->set_mode(mode);
    pb::TableSpec* table = sparse ? server.AddSparse() : server.AddDense();
    table->mutable_compression()->set_push(push);
    table->mutable_compression()->set_pull(pull);
    return std::string(server.Start().message());
  };
  EXPECT_THAT(refusal(pb::Consistency::ASP, false, "none", "one_bit"),
              HasSubstr("codec 'one_bit' send changes, allowed is that for dense tables under BSP; "
                        "it is dense under ASP"));
  EXPECT_THAT(refusal(pb::Consistency::BSP, true, "none", "top_k"), HasSubstr("it is sparse"));
  EXPECT_THAT(refusal(pb::Consistency::BSP, false, "zip", "none"),
              HasSubstr("table 'model', compression of a push"));
  EXPECT_EQ(refusal(pb::Consistency::BSP, true, "top_k", "bf16"), "");
}

TEST(AssignmentOfTables, IsLoggedWithWhatIsSpecialAboutThem) {
  ServerHarness server;
  pb::TableSpec* table = server.AddSparse(4);
  table->mutable_sparse()->set_row_type(pb::BF16);
  table->mutable_compression()->set_push("int8");
  table->mutable_compression()->set_pull("fp16");
  ASSERT_TRUE(server.Start().ok());
  EXPECT_THAT(server.log, Contains("table 'rows': 4 of 4 partitions, rows of 2 x BF16, pushes "
                                   "int8, pulls fp16"));
}

}  // namespace
}  // namespace parley
