// Pushes and pulls of rows through a whole server shard: keys by list and by digest, and what
// strangers may try with them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/server/server_harness.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kTable = ServerHarness::kSparse;

Request Pull(uint64_t tick = 0) { return Request(pb::PULL, kTable).Tick(tick); }
Request Push(uint64_t tick, double weight = 1) {
  return Request(pb::PUSH, kTable).Tick(tick).Weight(weight);
}

class SparseRequestsTest : public ::testing::Test {
 protected:
  void Start(const std::string& mode = "ASP", uint32_t partitions = 2, int bits = 1) {
    pb::Consistency::Mode parsed;
    ASSERT_TRUE(pb::Consistency::Mode_Parse(mode, &parsed));
    server_.experiment.mutable_consistency()->set_mode(parsed);
    if (server_.tables.empty()) server_.AddSparse(partitions);
    const absl::Status status = server_.Start();
    ASSERT_TRUE(status.ok()) << status;
    first_ = KeysOf(0, bits, 3);
    if (bits > 0) second_ = KeysOf(1, bits, 3);
  }
  // The rows of a part of an answer, or its error's message.
  std::vector<float> Rows(const absl::StatusOr<Frame>& answer, int part = 0) {
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (!answer.ok()) return {};
    return FloatsOf(SplitPayload(*answer)[static_cast<size_t>(part)].values);
  }
  std::string Error(uint32_t worker, Request request) {
    return std::string(server_.Ask(worker, std::move(request)).status().message());
  }

  ServerHarness server_;
  std::vector<uint64_t> first_, second_;  // keys of partitions 0 and 1
};

TEST_F(SparseRequestsTest, UnderBspAStepNeedsEveryWorkerKeysOrNot) {
  Start("BSP");
  ASSERT_TRUE(
      server_.Ask(0, Push(0, 3).Part(0, 1).Keys({first_[0]}).Values({3, 6}).Part(1, 1)).ok());
  EXPECT_THAT(server_.Ask(0, Pull(1).Part(0).Keys({first_[0]})).status().message(),
              HasSubstr("worker 1"));
  // No rows, but a sample: it counts in the mean.
  ASSERT_TRUE(server_.Ask(1, Push(0, 1).Part(0, 1).Part(1, 1)).ok());
  const auto answer =
      server_.Ask(0, Pull(1).Part(1).Keys({second_[0]}).Part(0).Keys({first_[1], first_[0]}));
  EXPECT_THAT(Rows(answer, 0), ElementsAre(0, 0));
  EXPECT_THAT(Rows(answer, 1), ElementsAre(0, 0, -0.75, -1.5));
  EXPECT_EQ(answer->header.part(1).partition(), 0u);
  EXPECT_EQ(answer->header.part(1).count(), 4u);
  EXPECT_EQ(answer->header.part(1).keys(), 2u);
  EXPECT_EQ(answer->header.part(1).min_clock(), 1u);
  // A step in which nobody had a sample.
  ASSERT_TRUE(server_.Ask(0, Push(1, 0).Part(0, 2).Part(1, 2)).ok());
  ASSERT_TRUE(server_.Ask(1, Push(1, 0).Part(0, 2).Part(1, 2)).ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull(2).Part(0).Keys({first_[0]}))), ElementsAre(-0.75, -1.5));
}

TEST_F(SparseRequestsTest, APullOfNoKeysIsAnsweredWithoutPayload) {
  Start();
  const auto answer = server_.Ask(0, Pull().Part(0).Part(1).Keys({second_[0]}));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->header.part(0).count(), 0u);
  EXPECT_EQ(answer->payload.size(), 1u);
  EXPECT_THAT(Rows(answer, 1), ElementsAre(0, 0));
}

TEST_F(SparseRequestsTest, AListIsRememberedUnderItsDigestForItsSenderAlone) {
  Start();
  ASSERT_TRUE(
      server_.Ask(0, Push(0).Part(0, 1).Digest(first_).Keys(first_).Values({1, 1, 2, 2, 3, 3}))
          .ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull().Part(0).Digest(first_))),
              ElementsAre(-1, -1, -2, -2, -3, -3));
  // Pushes go by it as well.
  ASSERT_TRUE(server_.Ask(0, Push(1).Part(0, 2).Digest(first_).Values({1, 0, 1, 0, 1, 0})).ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull().Part(0).Digest(first_))),
              ElementsAre(-2, -1, -3, -2, -4, -3));
  const absl::Status other = server_.Ask(1, Pull().Part(0).Digest(first_)).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kNotFound) << other;
  // Nor is it known for another partition.
  EXPECT_EQ(server_.Ask(0, Pull().Part(1).Digest(first_)).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SparseRequestsTest, AMissTakesNothingAndHealsWithTheLists) {
  Start();
  const auto push = [&](bool lists) {
    Request request = Push(0).Part(0, 1).Digest(first_);
    if (lists) request.Keys(first_);
    request.Values({1, 1, 1, 1, 1, 1}).Part(1, 1).Keys({second_[0]}).Values({5, 5});
    return request;
  };
  const absl::Status miss = server_.Ask(0, push(false)).status();
  EXPECT_EQ(miss.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(miss.message()), HasSubstr("partition 0"));
  EXPECT_EQ(server_.Count().pushes_accepted(), 0u);
  ASSERT_TRUE(server_.Ask(0, push(true)).ok());
  EXPECT_EQ(server_.Count().pushes_accepted(), 2u);
  EXPECT_THAT(Rows(server_.Ask(0, Pull().Part(1).Keys({second_[0]}))), ElementsAre(-5, -5));
}

TEST_F(SparseRequestsTest, DigestsThatLieAreRefusedAndNotRemembered) {
  Start();
  EXPECT_THAT(Error(0, Pull().Part(0).Digest({first_[0]}).Keys({first_[1]})),
              HasSubstr("the digest is not that of the list"));
  EXPECT_EQ(server_.Ask(0, Pull().Part(0).Digest({first_[0]})).status().code(),
            absl::StatusCode::kNotFound);
  // A known list, and another number of keys than it has.
  ASSERT_TRUE(server_.Ask(0, Pull().Part(0).Digest(first_).Keys(first_)).ok());
  Request fewer = Pull().Part(0).Digest(first_);
  fewer.last().set_keys(2);
  EXPECT_THAT(Error(0, std::move(fewer)), HasSubstr("2 keys, but the list of this digest has 3"));
  Request more = Pull().Part(0).Digest(first_);
  more.last().set_keys(1u << 31);
  EXPECT_THAT(Error(0, std::move(more)), HasSubstr("has 3"));
}

TEST_F(SparseRequestsTest, KeysOfAnotherPartitionAreRefusedAndNotRemembered) {
  Start();
  const std::vector<uint64_t> mixed = {first_[0], second_[0]};
  EXPECT_THAT(Error(0, Pull().Part(0).Digest(mixed).Keys(mixed)),
              HasSubstr("whose hash is of partition 1"));
  EXPECT_EQ(server_.Ask(0, Pull().Part(0).Digest(mixed)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(Error(0, Push(0)
                           .Part(0, 1)
                           .Keys(first_)
                           .Values({1, 1, 1, 1, 1, 1})
                           .Part(1, 1)
                           .Keys({first_[0]})
                           .Values({1, 1})),
              HasSubstr("key 0 of the list"));
  EXPECT_EQ(server_.Count().pushes_accepted(), 0u);
}

TEST_F(SparseRequestsTest, ListsThatDoNotComeAreRefused) {
  Start();
  Request neither = Pull().Part(0);
  neither.last().set_keys(4);
  EXPECT_THAT(Error(0, std::move(neither)), HasSubstr("neither a list nor its digest"));
  // The codec lets a PULL name bytes without carrying any.
  Request absent = Pull().Part(0);
  absent.last().set_keys(1 << 20);
  absent.last().set_key_bytes(8 << 20);
  EXPECT_THAT(Error(0, std::move(absent)), HasSubstr("of which 0 have come"));
}

TEST_F(SparseRequestsTest, SizesThatDoNotFitAreRefused) {
  Start();
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Keys(first_).Values({1, 1})),
              HasSubstr("carries 2 elements for 3 keys with weight 1, allowed is 6"));
  EXPECT_THAT(Error(0, Push(0).Part(0, 1).Values({1, 1})), HasSubstr("allowed is 0"));
  EXPECT_THAT(Error(0, Push(0, 0).Part(0, 1).Keys(first_)), HasSubstr("names 3 keys"));
  EXPECT_THAT(Error(0, Pull().Part(0).Keys(first_).Values({1})), HasSubstr("carries values"));
  EXPECT_THAT(Error(0, Pull().Part(0).Part(0)), HasSubstr("named twice"));
  EXPECT_THAT(Error(0, Pull().Part(2)), HasSubstr("not on this shard"));
  Request many = Pull();
  for (uint32_t i = 0; i < 40; ++i) many.Part(i % 39 == 1 ? 1 : 0);
  EXPECT_THAT(Error(0, std::move(many)), HasSubstr("named twice"));
  EXPECT_EQ(server_.Count().pushes_accepted(), 0u);
}

// 8 bytes of key ask for a row of up to 16 KiB.
TEST_F(SparseRequestsTest, ARequestForMoreThanAMessageHoldsIsRefused) {
  server_.AddSparse(1)->mutable_sparse()->set_dim(4096);
  Start("ASP", 1, 0);
  std::vector<uint64_t> keys((size_t{1} << 30) / (4096 * 4) + 1);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = i;
  EXPECT_THAT(Error(0, Pull().Part(0).Keys(keys)), HasSubstr("more than 1073741824 bytes of rows"));
}

// Alone, each occurrence is an update of its own; with others' gradients they are summed. Honest
// workers send none.
TEST_F(SparseRequestsTest, DuplicateKeysHarmNobody) {
  Start("BSP");
  ASSERT_TRUE(
      server_
          .Ask(0, Push(0).Part(0, 1).Keys({first_[0], first_[0]}).Values({1, 1, 2, 2}).Part(1, 1))
          .ok());
  ASSERT_TRUE(
      server_
          .Ask(1, Push(0).Part(0, 1).Keys({first_[1], first_[0]}).Values({4, 4, 8, 8}).Part(1, 1))
          .ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull(1).Part(0).Keys({first_[0], first_[1], first_[0]}))),
              ElementsAre(-5.5, -5.5, -2, -2, -5.5, -5.5));
}

TEST_F(SparseRequestsTest, UpdatesOfNoStepComeInOnceEach) {
  Start("ASP");
  const auto update = [&](uint64_t sequence) {
    return Request(pb::PUSH, kTable).Weight(1).Part(0, sequence).Keys({first_[0]}).Values({1, 2});
  };
  ASSERT_TRUE(server_.Ask(0, update(1)).ok());
  ASSERT_TRUE(server_.Ask(0, update(2)).ok());
  ASSERT_TRUE(server_.Ask(0, update(1)).ok());
  ASSERT_TRUE(server_.Ask(1, update(1)).ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull().Part(0).Keys({first_[0]}))), ElementsAre(-3, -6));
  const pb::ServerCounts counts = server_.Count();
  EXPECT_EQ(counts.pushes_applied(), 3u);
  EXPECT_EQ(counts.pushes_duplicate(), 1u);
}

// Nothing would ever be evicted, since no step ends.
TEST_F(SparseRequestsTest, UpdatesOfNoStepAreRefusedWhereRowsAreEvicted) {
  const auto refusal = [](void (*set)(pb::Eviction*)) {
    ServerHarness server;
    server.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
    set(server.AddSparse(1)->mutable_sparse()->mutable_eviction());
    EXPECT_TRUE(server.Start().ok());
    const absl::Status status =
        server.Ask(0, Request(pb::PUSH, kTable).Weight(1).Part(0, 1).Keys({7}).Values({1, 2}))
            .status();
    EXPECT_EQ(server.Count().rows(0).rows(), status.ok() ? 1u : 0u);
    // Within a step they may come.
    EXPECT_TRUE(server.Ask(0, Push(0).Part(0, 2).Keys({7}).Values({1, 2})).ok());
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([](pb::Eviction* e) { e->set_min_frequency(2); }), HasSubstr("eviction"));
  EXPECT_THAT(refusal([](pb::Eviction* e) { e->set_max_age(9); }), HasSubstr("eviction"));
  EXPECT_THAT(refusal([](pb::Eviction* e) { e->set_max_rows(9); }), HasSubstr("eviction"));
  EXPECT_EQ(refusal([](pb::Eviction* e) { e->set_min_frequency(1); }), "");
}

TEST_F(SparseRequestsTest, RowsMayTravelAsHalves) {
  pb::TableSpec* table = server_.AddSparse();
  table->mutable_compression()->set_pull("fp16");
  table->mutable_compression()->set_push("fp16");
  Start();
  // 1.0, 2.0 and -0.5, 1/1024 as IEEE half precision.
  const std::string halves("\x00\x3c\x00\x40\x00\xb8\x00\x14", 8);
  ASSERT_TRUE(
      server_.Ask(0, Push(0).Part(0, 1).Keys({first_[0], first_[1]}).Encoded(halves, 4)).ok());
  const auto answer = server_.Ask(0, Pull().Part(0).Keys({first_[0], first_[1]}));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->header.part(0).count(), 4u);
  EXPECT_EQ(answer->header.part(0).value_bytes(), 8u);
  EXPECT_EQ(answer->payload[0].view(), std::string("\x00\xbc\x00\xc0\x00\x38\x00\x94", 8));
  // After the last step the rows as they are.
  Request leave(pb::LEAVE, kTable);
  pb::Leave body;
  body.set_after_tick(1);
  leave.header().set_body(body.SerializeAsString());
  ASSERT_TRUE(server_.Ask(0, leave).ok());
  ASSERT_TRUE(server_.Ask(1, leave).ok());
  EXPECT_THAT(Rows(server_.Ask(0, Pull(~uint64_t{0}).Part(0).Keys({first_[0], first_[1]}))),
              ElementsAre(-1, -2, 0.5, -1 / 1024.0));
}

TEST_F(SparseRequestsTest, CountsRowsOfEachSparseTable) {
  server_.AddDense();
  server_.AddSparse();
  Start("ASP");
  EXPECT_EQ(server_.Count().rows(0).rows(), 0u);
  ASSERT_TRUE(server_
                  .Ask(0, Push(0)
                              .Part(0, 1)
                              .Keys(first_)
                              .Values({1, 1, 1, 1, 1, 1})
                              .Part(1, 1)
                              .Keys({second_[0]})
                              .Values({1, 1}))
                  .ok());
  const pb::ServerCounts counts = server_.Count();
  ASSERT_EQ(counts.rows_size(), 1);
  EXPECT_EQ(counts.rows(0).table(), kTable);
  EXPECT_EQ(counts.rows(0).rows(), 4u);
  EXPECT_GE(counts.rows(0).bytes(), 4 * (2 * sizeof(float) + sizeof(uint64_t)));
  EXPECT_NE(counts.rows(0).digest_low(), 0u);
  EXPECT_NE(counts.rows(0).digest_high(), 0u);
  EXPECT_THAT(server_.log, ::testing::Contains(HasSubstr("table 'rows': 2 of 2 partitions, rows of "
                                                         "2 x FP32")));
}

TEST_F(SparseRequestsTest, ADenseTableHasNoKeys) {
  server_.AddDense();
  Start();
  EXPECT_THAT(Error(0, Request(pb::PULL, ServerHarness::kDense).Part(0).Keys({1})),
              HasSubstr("is dense; allowed are no keys"));
  EXPECT_THAT(Error(0, Request(pb::PULL, ServerHarness::kDense).Part(0).Digest({})),
              HasSubstr("is dense"));
}

TEST_F(SparseRequestsTest, StrangersAreNotServed) {
  Start();
  Request stale = Pull().Part(0).Keys({first_[0]});
  stale.header().set_epoch(2);
  EXPECT_THAT(Error(0, std::move(stale)), HasSubstr("routed by epoch 2"));
  EXPECT_THAT(Error(0, Request(pb::PULL, 77).Part(0)), HasSubstr("there is no table 77"));
  EXPECT_THAT(Error(0, Pull()), HasSubstr("names no partition"));
}

}  // namespace
}  // namespace parley
