#include "ps/net/sim_network.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr NodeId kA{10}, kB{20}, kC{30};

Frame Numbered(uint64_t tick) {
  Frame frame;
  frame.header.set_kind(pb::HEARTBEAT);
  frame.header.set_tick(tick);
  return frame;
}

// A node that keeps the ticks of what it receives.
struct Peer {
  Peer(SimWorld* world, SimNetwork* network, NodeId id, const std::string& name)
      : env(world, name), transport(network->CreateTransport(&env, id, "sim://" + name)) {
    transport->SetReceiver([this](NodeId from, Frame frame) {
      senders.push_back(from);
      ticks.push_back(frame.header.tick());
      frames.push_back(std::move(frame));
    });
  }

  SimEnv env;
  std::unique_ptr<Transport> transport;
  std::vector<NodeId> senders;
  std::vector<uint64_t> ticks;
  std::vector<Frame> frames;
};

class SimNetworkTest : public ::testing::Test {
 protected:
  SimNetworkTest()
      : world_(5),
        network_(&world_, {}),
        a_(&world_, &network_, kA, "a"),
        b_(&world_, &network_, kB, "b") {
    EXPECT_TRUE(a_.transport->Connect(kB, "sim://b").ok());
  }

  void Run() {
    while (world_.RunOne()) {
    }
  }
  void SendMany(int count) {
    for (int i = 0; i < count; ++i) EXPECT_TRUE(a_.transport->Send(kB, Numbered(i)).ok());
    Run();
  }

  SimWorld world_;
  SimNetwork network_;
  Peer a_, b_;
};

TEST_F(SimNetworkTest, DeliversWithTheSendersName) {
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(1)).ok());
  EXPECT_THAT(b_.ticks, IsEmpty());
  Run();
  ASSERT_THAT(b_.ticks, ElementsAre(1));
  EXPECT_EQ(b_.senders[0], kA);
  EXPECT_EQ(b_.frames[0].header.sender(), Value(kA));
  EXPECT_EQ(b_.frames[0].header.protocol(), kProtocolVersion);
}

TEST_F(SimNetworkTest, AnswersNeedNoConnectButStrangersDo) {
  EXPECT_EQ(b_.transport->Send(kA, Numbered(1)).code(), absl::StatusCode::kUnavailable);
  SendMany(1);
  EXPECT_TRUE(b_.transport->Send(kA, Numbered(2)).ok());
  Run();
  EXPECT_THAT(a_.ticks, ElementsAre(2));
  a_.transport->Disconnect(kB);
  a_.transport->Disconnect(kC);
  EXPECT_TRUE(a_.transport->Send(kB, Numbered(3)).ok());  // heard from
}

TEST_F(SimNetworkTest, RefusesEndpointsOfOtherTransports) {
  for (const char* endpoint : {"", "sim://", "tcp://127.0.0.1:1", "server-0"}) {
    EXPECT_EQ(a_.transport->Connect(kB, endpoint).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(SimNetworkTest, DelaysStayInBoundsAndReorder) {
  network_.SetOptions({.min_delay = absl::Milliseconds(2), .max_delay = absl::Milliseconds(5)});
  std::vector<absl::Duration> arrivals;
  b_.transport->SetReceiver([&](NodeId, Frame frame) {
    b_.ticks.push_back(frame.header.tick());
    arrivals.push_back(world_.Now());
  });
  SendMany(100);
  ASSERT_EQ(b_.ticks.size(), 100u);
  EXPECT_FALSE(std::is_sorted(b_.ticks.begin(), b_.ticks.end()));
  EXPECT_GE(arrivals.front(), absl::Milliseconds(2));
  EXPECT_LE(arrivals.back(), absl::Milliseconds(5));
}

TEST_F(SimNetworkTest, LosesAndDuplicatesAtTheGivenRates) {
  network_.SetOptions({.loss = 0.25});
  SendMany(1000);
  EXPECT_NEAR(b_.ticks.size(), 750, 60);
  EXPECT_EQ(network_.counters().lost, 1000 - b_.ticks.size());
  b_.ticks.clear();
  network_.SetOptions({.duplicate = 0.5});
  SendMany(1000);
  EXPECT_NEAR(b_.ticks.size(), 1500, 70);
  b_.ticks.clear();
  network_.SetOptions({.loss = 1});
  SendMany(100);
  EXPECT_THAT(b_.ticks, IsEmpty());
}

TEST_F(SimNetworkTest, CutStopsFramesUnderWayAndHealMends) {
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(1)).ok());
  network_.Cut(kB, kA);  // either order
  SendMany(3);
  EXPECT_THAT(b_.ticks, IsEmpty());
  EXPECT_EQ(network_.counters().cut, 4u);

  Peer c(&world_, &network_, kC, "c");
  ASSERT_TRUE(c.transport->Connect(kB, "sim://b").ok());
  ASSERT_TRUE(c.transport->Send(kB, Numbered(5)).ok());  // others are not affected
  Run();
  EXPECT_THAT(b_.ticks, ElementsAre(5));

  network_.Isolate(kB);
  ASSERT_TRUE(c.transport->Send(kB, Numbered(6)).ok());
  Run();
  EXPECT_THAT(b_.ticks, ElementsAre(5));
  network_.Heal();
  SendMany(1);
  EXPECT_THAT(b_.ticks, ElementsAre(5, 0));
}

TEST_F(SimNetworkTest, SlowNodesAreSlow) {
  network_.SetOptions({.min_delay = absl::Milliseconds(1), .max_delay = absl::Milliseconds(1)});
  network_.SetSlow(kB, 50);
  SendMany(1);
  EXPECT_EQ(world_.Now(), absl::Milliseconds(50));
  network_.SetSlow(kB, 1);
  SendMany(1);
  EXPECT_EQ(world_.Now(), absl::Milliseconds(51));
}

TEST_F(SimNetworkTest, FramesGoToWhoeverHasTheEndpointNow) {
  auto old_b = std::make_unique<Peer>(&world_, &network_, NodeId{21}, "restarting");
  ASSERT_TRUE(a_.transport->Connect(NodeId{21}, "sim://restarting").ok());
  ASSERT_TRUE(a_.transport->Send(NodeId{21}, Numbered(1)).ok());
  old_b.reset();
  Run();
  EXPECT_EQ(network_.counters().undeliverable, 1u);
  Peer new_b(&world_, &network_, NodeId{22}, "restarting");
  ASSERT_TRUE(a_.transport->Send(NodeId{21}, Numbered(2)).ok());
  Run();
  EXPECT_THAT(new_b.ticks, ElementsAre(2));
}

TEST_F(SimNetworkTest, TheKilledNeitherSendNorReceive) {
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(1)).ok());
  b_.env.Kill();
  Run();
  EXPECT_THAT(b_.ticks, IsEmpty());
  EXPECT_FALSE(b_.transport->Send(kA, Numbered(1)).ok());
}

TEST_F(SimNetworkTest, PayloadIsReadAtDeliveryAndThenTheReceiversOwn) {
  Frame frame = Numbered(1);
  frame.header.set_kind(pb::PUSH);
  frame.header.add_part()->set_count(1);
  Buffer bytes = Buffer::Copy("good");
  frame.payload.push_back(bytes);
  ASSERT_TRUE(a_.transport->Send(kB, std::move(frame)).ok());
  EXPECT_FALSE(bytes.unique());                  // still being sent
  std::memcpy(bytes.mutable_data(), "evil", 4);  // so this is a bug, and must show
  Run();
  EXPECT_TRUE(bytes.unique());
  EXPECT_EQ(b_.frames[0].payload[0].view(), "evil");
  std::memcpy(bytes.mutable_data(), "late", 4);
  EXPECT_EQ(b_.frames[0].payload[0].view(), "evil");
  EXPECT_TRUE(b_.frames[0].payload[0].unique());
}

TEST_F(SimNetworkTest, WhatIsNoFrameReachesNobody) {
  Frame frame = Numbered(1);
  frame.payload.push_back(Buffer::Copy("no part for this"));
  ASSERT_TRUE(a_.transport->Send(kB, std::move(frame)).ok());
  Run();
  EXPECT_THAT(b_.ticks, IsEmpty());
  EXPECT_EQ(b_.transport->counters().refused, 1u);
  EXPECT_EQ(b_.transport->counters().frames_in, 0u);
}

TEST_F(SimNetworkTest, CountsFramesAndBytes) {
  Frame frame = Numbered(1);
  frame.header.add_part()->set_count(25);
  frame.payload.push_back(Buffer::Copy(std::string(100, 'x')));
  ASSERT_TRUE(a_.transport->Send(kB, std::move(frame)).ok());
  Run();
  const TransportCounters out = a_.transport->counters(), in = b_.transport->counters();
  EXPECT_EQ(out.frames_out, 1u);
  EXPECT_EQ(in.frames_in, 1u);
  EXPECT_EQ(out.bytes_out, in.bytes_in);
  EXPECT_GT(out.bytes_out, 116u);
}

TEST_F(SimNetworkTest, TheTapSeesDeliveriesBeforeTheReceiver) {
  std::vector<std::string> seen;
  network_.SetTap([&](NodeId from, NodeId to, const Frame& frame) {
    seen.push_back(absl::StrCat("tap ", Value(from), "->", Value(to), " ", frame.header.tick()));
  });
  b_.transport->SetReceiver([&](NodeId, Frame) { seen.push_back("receiver"); });
  SendMany(1);
  EXPECT_THAT(seen, ElementsAre("tap 10->20 0", "receiver"));
}

// Everything that can be seen of a busy, faulty network, as one line per delivery.
std::vector<std::string> Trace(uint64_t seed) {
  SimWorld world(seed);
  SimNetwork network(&world, {.loss = 0.1, .duplicate = 0.1});
  std::vector<std::unique_ptr<Peer>> peers;
  for (uint64_t i = 0; i < 5; ++i) {
    peers.push_back(std::make_unique<Peer>(&world, &network, NodeId{i + 1}, absl::StrCat("p", i)));
  }
  for (auto& peer : peers) {
    for (uint64_t i = 0; i < 5; ++i) {
      EXPECT_TRUE(peer->transport->Connect(NodeId{i + 1}, absl::StrCat("sim://p", i)).ok());
    }
  }
  std::vector<std::string> trace;
  network.SetTap([&](NodeId from, NodeId to, const Frame& frame) {
    trace.push_back(absl::StrCat(absl::FormatDuration(world.Now()), " ", Value(from), "->",
                                 Value(to), " ", frame.header.tick()));
    // Gossip: each frame causes another, to a peer that the receiver draws.
    if (trace.size() > 2000) return;
    Peer& peer = *peers[Value(to) - 1];
    peer.env.Post([&peer, tick = frame.header.tick()] {
      peer.transport->Send(NodeId{peer.env.Random() % 5 + 1}, Numbered(tick + 1)).IgnoreError();
    });
  });
  for (uint64_t i = 0; i < 200; ++i) {
    EXPECT_TRUE(peers[i % 5]->transport->Send(NodeId{i / 5 % 5 + 1}, Numbered(1000 * i)).ok());
  }
  world.RunUntil([] { return false; }, absl::Seconds(10));
  const SimNetworkCounters& c = network.counters();
  EXPECT_EQ(c.sent + c.duplicated, c.lost + c.cut + c.undeliverable + c.delivered);
  return trace;
}

TEST(SimNetworkDeterminismTest, TheSeedDecidesEverything) {
  const std::vector<std::string> first = Trace(77);
  EXPECT_GT(first.size(), 500u);
  EXPECT_EQ(first, Trace(77));
  EXPECT_NE(first, Trace(78));
}

TEST_F(SimNetworkTest, ACutOfOneWayLeavesTheOther) {
  ASSERT_TRUE(b_.transport->Connect(kA, "sim://a").ok());
  network_.CutOneWay(kA, kB);
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(1)).ok());
  ASSERT_TRUE(b_.transport->Send(kA, Numbered(2)).ok());
  Run();
  EXPECT_THAT(b_.ticks, IsEmpty());
  EXPECT_THAT(a_.ticks, ElementsAre(2));
  network_.Heal();
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(3)).ok());
  Run();
  EXPECT_THAT(b_.ticks, ElementsAre(3));
}

TEST_F(SimNetworkTest, ANodeThatStandsStillReceivesAfterwards) {
  b_.env.Stall(absl::Seconds(1));
  ASSERT_TRUE(a_.transport->Send(kB, Numbered(1)).ok());
  world_.RunUntil([this] { return !b_.ticks.empty(); }, absl::Seconds(5));
  EXPECT_THAT(b_.ticks, ElementsAre(1));
  EXPECT_EQ(world_.Now(), absl::Seconds(1));
}

// Whoever has connected to it can tell who it was; one that it had connected to cannot.
TEST_F(SimNetworkTest, PeersHearOfADeathAsARule) {
  int named = 0, unnamed = 0, none = 0;
  for (int i = 0; i < 100; ++i) {
    Peer dead(&world_, &network_, NodeId{100 + static_cast<uint64_t>(i)}, absl::StrCat("dead", i));
    ASSERT_TRUE(a_.transport->Connect(dead.transport->self(), dead.transport->endpoint()).ok());
    ASSERT_TRUE(dead.transport->Connect(kB, "sim://b").ok());
    a_.transport->SetPeerGone(
        [&, id = dead.transport->self()](NodeId peer) { named += peer == id ? 1 : 1000; });
    b_.transport->SetPeerGone([&](NodeId peer) { unnamed += peer == kNoNode ? 1 : 1000; });
    const int before = named + unnamed;
    dead.env.Kill();
    network_.TellGone(dead.transport->self());
    Run();
    none += named + unnamed == before;
  }
  EXPECT_GT(named, 50);
  EXPECT_LT(named, 100);
  EXPECT_GT(unnamed, 50);
  EXPECT_LT(unnamed, 100);
  EXPECT_GT(none, 0);
}

}  // namespace
}  // namespace parley
