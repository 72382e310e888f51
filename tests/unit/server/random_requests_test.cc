// Requests drawn at random, most of them wrong in some way, against a whole server shard: each is
// answered, each push that is acknowledged counts once, and whoever behaves is still served.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "ps/base/philox.h"
#include "tests/unit/server/server_harness.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

class Draw {
 public:
  explicit Draw(uint64_t seed) : seed_(seed) {}
  uint64_t Below(uint64_t n) {
    const auto block = Philox(seed_, 17, index_++);
    return (uint64_t{block[0]} << 32 | block[1]) % n;
  }
  bool OneIn(uint64_t n) { return Below(n) == 0; }
  // Mostly small, now and then of any size.
  uint64_t Number(uint64_t n) { return OneIn(12) ? Below(~uint64_t{0}) >> Below(64) : Below(n); }

 private:
  const uint64_t seed_;
  uint64_t index_ = 0;
};

class RandomRequests {
 public:
  explicit RandomRequests(uint64_t seed) : draw_(seed) {
    server_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
    server_.AddDense(3)->mutable_compression()->set_push("top_k");
    pb::TableSpec* rows = server_.AddSparse(2);
    rows->mutable_compression()->set_push("int8");
    rows->mutable_compression()->set_pull("bf16");
    EXPECT_TRUE(server_.Start().ok());
  }

  void Run(int requests) {
    for (int i = 0; i < requests; ++i) {
      const auto worker = static_cast<uint32_t>(draw_.Below(2));
      Request request = Make();
      // What does not hold together is the codec's to refuse, and never gets here.
      if (!CheckPayload(request.header(), request.frame().payload).ok()) continue;
      const pb::FrameHeader header = request.header();
      const absl::StatusOr<Frame> answer = server_.Ask(worker, std::move(request));
      // A sequence beyond the guard's window may come again later, and does until the deadline.
      if (absl::IsDeadlineExceeded(answer.status())) {
        ASSERT_THAT(std::string(answer.status().message()), HasSubstr("RESOURCE_EXHAUSTED"))
            << header.ShortDebugString();
      }
      if (!answer.ok()) continue;
      ++good_;
      if (header.kind() == pb::PULL) continue;
      for (const pb::Part& part : header.part()) {
        ++acknowledged_;
        sequences_.emplace(header.table(), part.partition(), worker, part.sequence());
      }
    }
  }

  // More than nothing was right, and exactly what was acknowledged was taken.
  void Check() {
    const pb::ServerCounts counts = server_.Count();
    EXPECT_GT(good_, 0);
    EXPECT_GT(counts.pushes_accepted(), 0u);
    EXPECT_LE(counts.pushes_accepted(), sequences_.size());  // acked_below may void a sequence
    EXPECT_EQ(counts.pushes_accepted() + counts.pushes_duplicate(), acknowledged_);
    EXPECT_LE(counts.pushes_applied(), counts.pushes_accepted());
    const auto pull = server_.Ask(1, Request(pb::PULL, ServerHarness::kDense).Part(2).Part(0));
    ASSERT_TRUE(pull.ok()) << pull.status();
    EXPECT_EQ(pull->payload[1].size(), 16u);
  }

 private:
  Request Make() {
    static constexpr pb::Kind kKinds[] = {pb::PUSH, pb::PULL, pb::PUSH_PULL};
    const bool sparse = draw_.OneIn(2);
    Request request(kKinds[draw_.Below(3)],
                    sparse ? ServerHarness::kSparse : ServerHarness::kDense);
    const bool push = request.header().kind() != pb::PULL;
    if (push && !draw_.OneIn(3)) request.Tick(draw_.Number(4));
    if (!draw_.OneIn(10)) request.PullTick(draw_.Number(4) >> 1);
    if (push) request.Weight(draw_.OneIn(8) ? 0 : 1);
    const uint64_t parts = draw_.OneIn(20) ? 0 : 1 + draw_.Below(2);
    for (uint64_t i = 0; i < parts; ++i) AddPart(&request, sparse, push);
    return request;
  }

  void AddPart(Request* request, bool sparse, bool push) {
    const auto partition = static_cast<uint32_t>(draw_.Below(sparse ? 2 : 3));
    request->Part(draw_.OneIn(15) ? static_cast<uint32_t>(draw_.Number(5)) : partition);
    pb::Part& part = request->last();
    if (push) {
      part.set_sequence(draw_.Number(20));
      part.set_acked_below(draw_.OneIn(6) ? draw_.Number(20) : 1);
    }
    uint64_t count = push ? 4 : 0;
    if (sparse != draw_.OneIn(20)) {
      std::vector<uint64_t> keys = KeysOf(partition % 2, 1, draw_.Below(4), draw_.Below(3));
      if (draw_.OneIn(10) && !keys.empty()) keys[0] = draw_.Number(100);
      if (draw_.OneIn(2)) request->Digest(keys);
      if (!part.has_key_digest() || draw_.OneIn(2)) request->Keys(keys);
      if (part.has_key_digest() && draw_.OneIn(10)) part.mutable_key_digest()->at(3) ^= 1;
      if (draw_.OneIn(15)) part.set_keys(static_cast<uint32_t>(draw_.Number(5)));
      if (push) count = keys.size() * 2;
    }
    if (request->header().weight() == 0 && !draw_.OneIn(5)) count = 0;
    if (draw_.OneIn(20)) count = draw_.Number(9);
    if (draw_.OneIn(3) || count > 100) {
      std::string bytes(draw_.Below(40), '\0');
      for (char& byte : bytes) byte = static_cast<char>(draw_.Below(256));
      request->Encoded(bytes, count);
    } else {
      request->Values(std::vector<float>(count, 0.5f));
    }
    if (draw_.OneIn(4)) part.set_base_version(draw_.Number(3));
  }

  Draw draw_;
  ServerHarness server_;
  int good_ = 0;
  uint64_t acknowledged_ = 0;  // parts
  std::set<std::tuple<uint32_t, uint32_t, uint32_t, uint64_t>> sequences_;
};

TEST(RandomRequestsTest, AreAnsweredAndHarmNobody) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    RandomRequests requests(seed);
    requests.Run(400);
    if (testing::Test::HasFatalFailure()) return;
    requests.Check();
  }
}

}  // namespace
}  // namespace parley
