// An operation for the copies, too large for one buffer of a transport.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ps/server/replica_sender.h"
#include "tests/unit/server/failover_testing.h"

namespace parley {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(FailoverTest, AnOperationTravelsInPiecesThatATransportTakes) {
  constexpr uint64_t kElements = (ReplicaSender::kMaxPieceBytes / sizeof(float)) * 5 / 4;
  cluster_.AddDense();
  cluster_.table.mutable_tensor(0)->set_shape(0, kElements);
  cluster_.table.set_partition_elements(kElements);
  StartWithCopies(pb::Consistency::ASP);
  int parts = 0;
  cluster_.network.SetTap([&](NodeId, NodeId, const Frame& frame) {
    if (frame.header.kind() != pb::REPLICATE) return;
    parts = frame.header.part_size();
    for (const Buffer& buffer : frame.payload) {
      EXPECT_LE(buffer.size(), ReplicaSender::kMaxPieceBytes);
    }
  });
  std::vector<float> values(kElements);
  for (uint64_t i = 0; i < kElements; ++i) values[i] = static_cast<float>(i % 1009);
  Request push(pb::PUSH, kTable);
  push.Tick(0).Weight(1).Part(0, 1).Values(values);
  ASSERT_TRUE(cluster_.AskAs(0, 0, push).ok());
  EXPECT_EQ(parts, 2);
  EXPECT_EQ(cluster_.news.size(), 1u);  // that it is complete
  cluster_.Kill(0);
  cluster_.AssignTo({1}, cluster_.Map(3, {1}));
  const std::vector<float> weights = Weights(1, 0);
  ASSERT_EQ(weights.size(), kElements);
  for (uint64_t i = 0; i < kElements; ++i) ASSERT_EQ(weights[i], -values[i]) << i;
}

// A copy is told keys and values by themselves, whatever pieces they come in.
TEST_F(FailoverTest, PiecesOfKeysAndValuesArePutTogether) {
  cluster_.AddSparse();
  StartWithCopies(pb::Consistency::ASP);
  Frame cut;
  cluster_.network.SetTap([&](NodeId, NodeId, const Frame& frame) {
    if (frame.header.kind() == pb::REPLICATE) cut = frame;
  });
  cluster_.network.CutOneWay(NodeId{ServerCluster::kFirstServer + 1},
                             NodeId{ServerCluster::kFirstServer});
  const auto row = [](uint64_t tick, std::initializer_list<uint64_t> keys,
                      std::initializer_list<float> values) {
    Request push(pb::PUSH, kTable);
    return push.Tick(tick).Weight(1).Part(0, tick + 1).Keys(keys).Values(values);
  };
  ServerCluster::Later never;
  cluster_.AskLater(0, 0, row(0, {5, 6, 7}, {1, 2, 3, 4, 5, 6}), &never);
  cluster_.Run(absl::Milliseconds(100));
  // The next one, as it came but in other pieces, and from the one that is believed.
  pb::ReplicaOp op;
  ASSERT_TRUE(op.ParseFromString(cut.header.body()));
  op.set_index(op.index() + 1);
  op.clear_digest();
  op.mutable_push(0)->set_sequence(2);
  op.set_tick(1);
  cut.header.set_body(op.SerializeAsString());
  const Buffer keys = cut.payload[0], values = cut.payload[1];
  cut.payload.clear();
  cut.header.clear_part();
  const auto piece = [&](uint64_t first_key, uint32_t n_keys, uint64_t first, uint64_t n) {
    pb::Part* part = cut.header.add_part();
    if (n_keys > 0) {
      part->set_keys(n_keys);
      part->set_key_bytes(n_keys * sizeof(uint64_t));
      cut.payload.push_back(keys.Slice(first_key * sizeof(uint64_t), n_keys * sizeof(uint64_t)));
    }
    if (n == 0) return;
    part->set_count(n);
    cut.payload.push_back(values.Slice(first * sizeof(float), n * sizeof(float)));
  };
  piece(0, 1, 0, 1);
  piece(1, 0, 1, 3);
  piece(1, 2, 4, 0);
  piece(3, 0, 4, 2);
  const auto send = [&] {
    cut.header.set_request_id(cut.header.request_id() + 1000);
    ASSERT_TRUE(
        cluster_.servers[0]->transport->Send(NodeId{ServerCluster::kFirstServer + 1}, cut).ok());
    cluster_.Run(absl::Milliseconds(100));
  };
  send();
  cut.header.mutable_part(3)->set_partition(1);  // and one that cannot be
  op.set_index(op.index() + 1);
  cut.header.set_body(op.SerializeAsString());
  send();
  cluster_.Kill(0);
  cluster_.AssignTo({1}, cluster_.Map(3, {1}));
  Request pull(pb::PULL, kTable);
  const auto answer = cluster_.AskAs(0, 1, pull.Tick(0).Part(0).Keys({5, 6, 7}));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(FloatsOf(SplitPayload(*answer)[0].values), ElementsAre(-2, -4, -6, -8, -10, -12));
}

}  // namespace
}  // namespace parley
