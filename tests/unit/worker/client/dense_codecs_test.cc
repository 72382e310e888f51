// Dense tables with codecs, push-pull and what servers answer them: against fake servers, so that
// what travels can be looked at, and against real ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "ps/wire/payload.h"
#include "tests/unit/worker/client/client_cluster.h"
#include "tests/unit/worker/fake_server.h"
#include "worker/client/dense_codecs.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kTable = 2, kElements = 40, kPerPartition = 16;  // 16, 16, 8

pb::TableSpec Spec(const std::string& push, const std::string& pull) {
  pb::TableSpec table;
  table.set_id(kTable);
  table.set_partition_elements(kPerPartition);
  table.add_tensor()->add_shape(kElements);
  table.mutable_compression()->set_push(push);
  table.mutable_compression()->set_pull(pull);
  table.mutable_compression()->set_block(16);
  return table;
}

Buffer Gradients(float scale) {
  Buffer gradients = Buffer::Allocate(kElements * sizeof(float));
  for (uint32_t i = 0; i < kElements; ++i) {
    gradients.mutable_floats()[i] = scale * (static_cast<float>(i % 11) - 5);
  }
  return gradients;
}

TEST(DensePushEncoderTest, WithoutACodecAdjacentPartitionsAreOneSliceOfTheArena) {
  const pb::TableSpec spec = Spec("none", "none");
  const DenseLayout layout = *DenseLayout::Create(spec);
  BufferPool pool;
  auto encoder = DensePushEncoder::Create(spec, &layout, &pool);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const Buffer gradients = Gradients(1);
  pb::FrameHeader header;
  for (int i = 0; i < 3; ++i) header.add_part();
  std::vector<Buffer> payload = encoder->Encode({1, 2, 0}, gradients, &header);
  ASSERT_EQ(payload.size(), 2u);
  EXPECT_EQ(payload[0].data(), gradients.data() + kPerPartition * sizeof(float));
  EXPECT_EQ(payload[0].size(), 24 * sizeof(float));
  EXPECT_EQ(payload[1].data(), gradients.data());
  EXPECT_EQ(header.part(1).count(), 8u);
  EXPECT_TRUE(encoder->residual().empty());
}

TEST(DensePushEncoderTest, TheResidualIsWhatTheServersHaveNotBeenTold) {
  const pb::TableSpec spec = Spec("int8", "none");
  const DenseLayout layout = *DenseLayout::Create(spec);
  BufferPool pool;
  auto encoder = DensePushEncoder::Create(spec, &layout, &pool);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  auto codec = PayloadCodec::Create("int8", spec.compression());
  ASSERT_TRUE(codec.ok());
  const Buffer gradients = Gradients(0.37f);
  std::vector<float> told(kElements), decoded(kElements);
  for (int step = 0; step < 5; ++step) {
    for (uint32_t partition : {2u, 0u, 1u}) {
      Frame frame;
      frame.header.set_kind(pb::PUSH);
      pb::Part* part = frame.header.add_part();
      part->set_partition(partition);
      frame.payload = encoder->Encode({partition}, gradients, &frame.header);
      const Range range = layout.partition(partition);
      ASSERT_TRUE(CheckPayload(frame.header, frame.payload).ok());
      EXPECT_EQ(part->count(), range.size());
      EXPECT_LT(part->value_bytes(), range.size() * sizeof(float));
      ASSERT_TRUE(
          (*codec)->Decode(frame.payload[0].view(), range.size(), &decoded[range.begin]).ok());
    }
    for (uint32_t i = 0; i < kElements; ++i) told[i] += decoded[i];
    for (uint32_t i = 0; i < kElements; ++i) {
      EXPECT_NEAR(told[i] + encoder->residual().floats()[i],
                  static_cast<float>(step + 1) * gradients.floats()[i], 1e-4);
    }
  }
}

class DensePullDecoderTest : public ::testing::Test {
 protected:
  void Create(const std::string& pull) {
    spec_ = Spec("none", pull);
    layout_ = *DenseLayout::Create(spec_);
    auto decoder = DensePullDecoder::Create(spec_, &layout_, &pool_);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = std::make_unique<DensePullDecoder>(*std::move(decoder));
    codec_ = *PayloadCodec::Create(pull, spec_.compression());
  }
  pb::Part Asked(uint32_t partition, bool raw = false) {
    pb::Part part;
    part.set_partition(partition);
    decoder_->Ask(raw, &part);
    return part;
  }
  static pb::Part Answer(uint32_t partition, uint64_t version, uint64_t count) {
    pb::Part part;
    part.set_partition(partition);
    part.set_version(version);
    part.set_count(count);
    return part;
  }
  absl::Status Take(const pb::Part& part, const std::string& values, bool raw = false) {
    return decoder_->Take(raw, part, Buffer::Copy(values), parameters_.data());
  }
  // What one value repeated travels as.
  static std::string Raw(std::vector<float> values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
  }
  std::string Encoded(std::vector<float> values) {
    std::vector<float> residual(values.size());
    std::string bytes(codec_->MaxEncodedBytes(values.size()), '\0');
    bytes.resize(codec_->Encode(values.data(), values.size(), residual.data(),
                                reinterpret_cast<std::byte*>(bytes.data())));
    return bytes;
  }

  BufferPool pool_;
  pb::TableSpec spec_;
  DenseLayout layout_;
  std::unique_ptr<DensePullDecoder> decoder_;
  std::unique_ptr<PayloadCodec> codec_;
  std::vector<float> parameters_ = std::vector<float>(kElements, -1);
};

TEST_F(DensePullDecoderTest, ChangesAddToTheVersionHeldWhateverTheCallerDoesToItsCopy) {
  Create("int8");
  EXPECT_FALSE(Asked(2).has_base_version());
  ASSERT_TRUE(Take(Answer(2, 7, 8), Raw(std::vector<float>(8, 3))).ok());
  EXPECT_EQ(parameters_[32], 3);
  EXPECT_EQ(parameters_[31], -1);
  EXPECT_EQ(Asked(2).base_version(), 7u);
  EXPECT_FALSE(Asked(0).has_base_version());

  std::fill(parameters_.begin(), parameters_.end(), -5.0f);
  pb::Part delta = Answer(2, 8, 8);
  delta.set_base_version(7);
  const std::string bytes = Encoded(std::vector<float>(8, 0.25f));
  delta.set_value_bytes(bytes.size());
  ASSERT_TRUE(Take(delta, bytes).ok());
  EXPECT_EQ(parameters_[32], 3.25f);
  EXPECT_EQ(parameters_[39], 3.25f);

  // Nothing has changed since: the held weights are given once more.
  std::fill(parameters_.begin(), parameters_.end(), -5.0f);
  pb::Part same = Answer(2, 8, 0);
  same.set_base_version(8);
  ASSERT_TRUE(Take(same, "").ok());
  EXPECT_EQ(parameters_[35], 3.25f);

  // The true weights at the end are not those that changes add to.
  EXPECT_FALSE(Asked(2, /*raw=*/true).has_base_version());
  ASSERT_TRUE(Take(Answer(2, 9, 8), Raw(std::vector<float>(8, 100)), /*raw=*/true).ok());
  EXPECT_EQ(parameters_[32], 100);
  EXPECT_EQ(Asked(2).base_version(), 8u);
}

TEST_F(DensePullDecoderTest, AnswersThatDoNotFitAreRefusedByName) {
  Create("int8");
  const std::string raw = Raw(std::vector<float>(8, 3));
  const auto message = [&](const pb::Part& part, const std::string& values) {
    return std::string(Take(part, values).message());
  };
  pb::Part delta = Answer(2, 8, 8);
  delta.set_base_version(7);
  EXPECT_THAT(message(delta, Encoded(std::vector<float>(8, 1))),
              HasSubstr("partition 2 in the answer adds to version 7, expected is the version "
                        "held, none"));
  EXPECT_THAT(message(Answer(2, 7, 7), raw), HasSubstr("has count 7 and 32 bytes, expected is 8"));
  EXPECT_THAT(message(Answer(2, 7, 8), raw.substr(4)), HasSubstr("28 bytes, expected is 8 and 32"));
  ASSERT_TRUE(Take(Answer(2, 7, 8), raw).ok());
  delta.set_base_version(6);
  EXPECT_THAT(message(delta, ""), HasSubstr("adds to version 6, expected is the version held, 7"));
  delta.set_base_version(7);
  delta.set_count(0);
  EXPECT_THAT(message(delta, ""), HasSubstr("has count 0 and leads from version 7 to 8"));
  delta.set_count(8);
  EXPECT_THAT(message(delta, "x"), HasSubstr("partition 2 in the answer: "));
  EXPECT_EQ(Asked(2).base_version(), 7u);

  Create("fp16");
  EXPECT_FALSE(Asked(2).has_base_version());
  EXPECT_THAT(message(Answer(2, 7, 8), "xyz"), HasSubstr("partition 2 in the answer: "));
  EXPECT_TRUE(Take(Answer(2, 7, 8), Encoded(std::vector<float>(8, 1.5f))).ok());
  EXPECT_EQ(parameters_[39], 1.5f);
}

// A push that is lost on the way comes again with the same bytes, though the residual has moved on.
TEST(DenseResendTest, AMessageThatIsSentAgainIsTheSame) {
  SimWorld world(3);
  SimNetwork network(&world, {});
  std::vector<std::string> first, second;  // as they came, by sequence
  std::vector<std::unique_ptr<FakeServer>> servers;
  servers.push_back(std::make_unique<FakeServer>(
      &world, &network, 0, [&](FakeServer& server, NodeId from, Frame request) {
        std::string bytes = request.header.part(0).SerializeAsString();
        for (const Buffer& buffer : request.payload) bytes += std::string(buffer.view());
        const bool is_first = request.header.part(0).sequence() == 1;
        (is_first ? first : second).push_back(bytes);
        // The first is heard when it comes for the third time.
        if (!is_first || first.size() == 3) {
          server.rpc().Reply(from, request.header, Frame());
        }
      }));
  FakeClientNode node(&world, &network, 0);
  ASSERT_TRUE(node.transport->Connect(servers[0]->node(), servers[0]->endpoint()).ok());
  auto client = PsClient::Create(&node.env, &node.rpc,
                                 AssignRoundRobin(Spec("one_bit", "none"), 3, servers), {});
  ASSERT_TRUE(client.ok()) << client.status();
  DenseTable* table = (*client)->dense(kTable);
  table->Push(0, 1, {1}, Gradients(1));
  table->Push(1, 1, {1}, Gradients(2));
  bool acked = false;
  (*client)->WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(world.RunUntil([&] { return acked; }, absl::Minutes(1)));
  ASSERT_EQ(first.size(), 3u);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_NE(first[0], second[0]);
  EXPECT_EQ(first[0], first[1]);
  EXPECT_EQ(first[0], first[2]);
}

// Two workers, three shards, a network that loses and doubles: the weights that both read are the
// naive sums, whichever way they are asked for. A table in the lane of small messages and one in
// that of bulk.
TEST(DensePushPullTest, BringsEveryStepsWeightsWhateverTheCredit) {
  for (const int variant : {0, 1, 2, 3}) {
    const char* pull = variant % 2 == 0 ? "none" : "int8";
    const uint32_t per_partition = variant / 2 == 0 ? 1 : 200;  // elements
    ClientCluster cluster(pb::Consistency::BSP);
    constexpr uint32_t kMany = 300;  // partitions: far more than the credit
    pb::TableSpec* spec = cluster.AddDense(kTable, kMany * per_partition, per_partition);
    spec->mutable_compression()->set_pull(pull);
    cluster.max_request_bytes = 8;
    cluster.network.SetOptions(
        {.max_delay = absl::Milliseconds(5), .loss = 0.02, .duplicate = 0.02});
    cluster.Start(3, 2);
    const DenseLayout& layout = cluster.client(0).dense(kTable)->layout();
    std::vector<std::vector<float>> parameters(2, std::vector<float>(layout.elements()));
    for (uint32_t w = 0; w < 2; ++w) {
      bool pulled = false;
      cluster.client(w).dense(kTable)->Pull(
          0, parameters[w].data(), [](auto) {}, [&](const PullResult&) { pulled = true; });
      ASSERT_TRUE(cluster.Run([&] { return pulled; })) << cluster.error;
    }
    std::vector<float> expected = parameters[0];
    for (uint64_t tick = 0; tick < 3; ++tick) {
      int pulled = 0;
      size_t arrived = 0;
      for (uint32_t w = 0; w < 2; ++w) {
        Buffer gradients = Buffer::Allocate(layout.elements() * sizeof(float));
        for (uint64_t i = 0; i < layout.elements(); ++i) {
          gradients.mutable_floats()[i] = static_cast<float>((i + tick) % 5) * (w == 0 ? 1 : -3);
          expected[i] -= gradients.floats()[i] / 2;
        }
        DenseTable* table = cluster.client(w).dense(kTable);
        table->BeginPull(
            tick + 1, parameters[w].data(),
            [&](absl::Span<const uint32_t> partitions) { arrived += partitions.size(); },
            [&](const PullResult& result) {
              ++pulled;
              EXPECT_EQ(result.min_clock, tick + 1);
            });
        // The workers begin at opposite ends: each one's credit is full of what waits for the
        // other.
        std::vector<uint32_t> order(layout.partitions());
        std::iota(order.begin(), order.end(), 0);
        if (w == 1) std::reverse(order.begin(), order.end());
        for (uint32_t partition : order) table->PushPull(tick, 1, {partition}, gradients);
      }
      ASSERT_TRUE(cluster.Run([&] { return pulled == 2; })) << cluster.error;
      EXPECT_EQ(arrived, 2 * layout.partitions());
      for (uint32_t w = 0; w < 2; ++w) {
        for (uint64_t i = 0; i < layout.elements(); ++i) {
          ASSERT_NEAR(parameters[w][i], expected[i], std::string(pull) == "none" ? 0 : 0.1);
        }
      }
      EXPECT_EQ(parameters[0], parameters[1]);
    }
  }
}

// A small table is pushed and pulled while all credit for bulk is taken by answers that are held
// back.
TEST(DenseLanesTest, ASmallTableNeverWaitsBehindABigOne) {
  SimWorld world(3);
  SimNetwork network(&world, {});
  std::vector<uint32_t> arrived;  // tables, as their messages came
  std::vector<std::unique_ptr<FakeServer>> servers;
  servers.push_back(std::make_unique<FakeServer>(
      &world, &network, 0, [&](FakeServer& server, NodeId from, Frame request) {
        arrived.push_back(request.header.table());
        if (request.header.table() == kTable) server.rpc().Reply(from, request.header, Frame());
      }));
  FakeClientNode node(&world, &network, 0);
  ASSERT_TRUE(node.transport->Connect(servers[0]->node(), servers[0]->endpoint()).ok());
  pb::Assignment assignment = AssignRoundRobin(Spec("none", "none"), 3, servers);
  constexpr uint32_t kBig = kTable + 1, kBigElements = 8 << 20;
  pb::TableSpec* big = assignment.add_table();
  big->set_id(kBig);
  big->set_partition_elements(kBigElements / 8);
  big->add_tensor()->add_shape(kBigElements);
  pb::TableMap* owners = assignment.mutable_map()->add_table();
  owners->set_table(kBig);
  for (int p = 0; p < 8; ++p) owners->add_owner(0);
  auto client = PsClient::Create(&node.env, &node.rpc, assignment, {});
  ASSERT_TRUE(client.ok()) << client.status();
  const Buffer gradients = Buffer::Allocate(kBigElements * sizeof(float));
  (*client)->dense(kBig)->Push(0, 1, {0, 1, 2, 3, 4, 5, 6, 7}, gradients);
  for (uint64_t tick = 0; tick < 3; ++tick) {
    (*client)->dense(kTable)->Push(tick, 1, {0, 1, 2}, Gradients(1));
  }
  // Less than the silence after which a message would be sent again.
  world.RunUntil([] { return false; }, absl::Milliseconds(100));
  EXPECT_THAT(arrived, ::testing::UnorderedElementsAre(kBig, kTable, kTable, kTable));
}

TEST(DensePushPullTest, APushPullOfNoSamplesBringsTheWeightsToo) {
  ClientCluster cluster(pb::Consistency::BSP);
  cluster.AddDense(kTable, kElements, kPerPartition);
  cluster.Start(1, 1);
  DenseTable* table = cluster.client(0).dense(kTable);
  std::vector<float> parameters(kElements, -1);
  bool pulled = false;
  table->BeginPull(
      1, parameters.data(), [](auto) {}, [&](const PullResult&) { pulled = true; });
  table->PushPull(0, 0, {0, 1, 2}, Buffer());
  ASSERT_TRUE(cluster.Run([&] { return pulled; })) << cluster.error;
  EXPECT_EQ(parameters, std::vector<float>(kElements, 0));
}

}  // namespace
}  // namespace parley
