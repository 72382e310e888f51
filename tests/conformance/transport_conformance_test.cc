// What every Transport promises, asked of the simulated one, of ZeroMQ over tcp and
// ipc, and of shared memory.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/net/address.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr NodeId kA{0xa0a0a0a0a0a0a0a0}, kB{0xb0b0b0b0b0b0b0b0}, kC{0xc0c0c0c0c0c0c0c0};

class TransportConformance : public ::testing::TestWithParam<std::string> {
 protected:
  bool real() const { return GetParam() != "sim"; }

  std::unique_ptr<TransportRig> rig_ = MakeTransportRig(GetParam());
};

INSTANTIATE_TEST_SUITE_P(, TransportConformance,
                         ::testing::Values("sim", "tcp", "ipc", "shm", "path", "curve"),
                         [](const auto& info) { return info.param; });

TEST_P(TransportConformance, AFrameArrivesWholeWithItsSenderNamed) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  const Buffer first = Noise(1, 1024), second = Noise(2, 12);
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(7, {first, second})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  const ReceivedFrame got = rig_->Received(kB)[0];
  EXPECT_EQ(got.from, kA);
  EXPECT_EQ(got.frame.header.sender(), Value(kA));
  EXPECT_EQ(got.frame.header.protocol(), kProtocolVersion);
  EXPECT_EQ(got.frame.header.kind(), pb::PUSH);
  EXPECT_EQ(got.frame.header.tick(), 7);
  ASSERT_EQ(got.frame.payload.size(), 2);
  EXPECT_EQ(got.frame.payload[0].view(), first.view());
  EXPECT_EQ(got.frame.payload[1].view(), second.view());
}

TEST_P(TransportConformance, ANodeHeardFromCanBeAnsweredWithoutConnect) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  rig_->Start(kC, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Connect(kC, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->Send(kC, kB, MakeFrame(2)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 2));
  ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(10, {Noise(3, 64)})).ok());
  ASSERT_TRUE(rig_->Send(kB, kC, MakeFrame(20)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kA, 1));
  ASSERT_TRUE(rig_->WaitForFrames(kC, 1));
  EXPECT_EQ(rig_->Received(kA)[0].from, kB);
  EXPECT_EQ(rig_->Received(kA)[0].frame.header.tick(), 10);
  EXPECT_EQ(rig_->Received(kA)[0].frame.payload[0].view(), Noise(3, 64).view());
  EXPECT_EQ(rig_->Received(kC)[0].frame.header.tick(), 20);
}

TEST_P(TransportConformance, AReceiverMayAnswerAtOnceAndForgetThePeer) {
  const std::string endpoint = rig_->Start(kB);
  const std::string back = rig_->Start(kA);
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Connect(kB, kA, back).ok());
  rig_->Do(kA, [](Transport& transport) {
    // Replaces the rig's receiver: whatever comes, B is dropped in the middle of receiving from it.
    transport.SetReceiver([&transport](NodeId from, Frame frame) {
      transport.Send(from, std::move(frame)).IgnoreError();
      transport.Disconnect(from);
    });
  });
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(i)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
}

TEST_P(TransportConformance, AReceiverMayForgetItsPeerInTheMiddleOfABurst) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  std::atomic<int> heard = 0;
  rig_->Do(kA, [&](Transport& transport) {
    transport.SetReceiver([&](NodeId from, Frame) {
      ++heard;
      transport.Disconnect(from);
    });
  });
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  rig_->Do(kB, [](Transport& transport) {
    for (int i = 0; i < 200; ++i) transport.Send(kA, MakeFrame(i)).IgnoreError();
  });
  ASSERT_TRUE(rig_->WaitFor([&] { return heard > 0; }));
  // And meets it again.
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(2)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 2));
  EXPECT_EQ(rig_->Counters(kA).refused, 0);
  EXPECT_EQ(rig_->Counters(kB).refused, 0);
}

TEST_P(TransportConformance, EmptyAndHugePayloadsArriveByteForByte) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  const Buffer huge = Noise(4, size_t{4} << 20);
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(0)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, {Noise(5, 4), huge, Noise(6, 516)})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 2));
  EXPECT_TRUE(rig_->Received(kB)[0].frame.payload.empty());
  const std::vector<Buffer> payload = rig_->Received(kB)[1].frame.payload;
  ASSERT_EQ(payload.size(), 3);
  EXPECT_EQ(payload[0].view(), Noise(5, 4).view());
  EXPECT_TRUE(payload[1].view() == huge.view());  // not printed if it fails
  EXPECT_EQ(payload[2].view(), Noise(6, 516).view());
}

TEST_P(TransportConformance, ManyFramesOfOnePeerAllArriveInOrderWhereThatIsPromised) {
  constexpr uint64_t kFrames = 2000, kBurst = 400;
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  const Buffer payload = Noise(8, 2048);
  for (uint64_t at = 0; at < kFrames; at += kBurst) {
    rig_->Do(kA, [&](Transport& transport) {
      for (uint64_t i = at; i < at + kBurst; ++i) {
        ASSERT_TRUE(transport.Send(kB, MakeFrame(i, {payload})).ok());
      }
    });
    ASSERT_TRUE(rig_->WaitForFrames(kB, at + kBurst));
  }
  const std::vector<ReceivedFrame> received = rig_->Received(kB);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < kFrames; ++i) {
    const Frame& frame = received[i].frame;
    if (real()) {
      ASSERT_EQ(frame.header.tick(), i);
    }
    ASSERT_EQ(frame.payload[0].view(), payload.view());
    sum += frame.header.tick();
  }
  EXPECT_EQ(sum, kFrames * (kFrames - 1) / 2);
}

TEST_P(TransportConformance, BothWaysAtOnce) {
  const std::string a = rig_->Start(kA), b = rig_->Start(kB);
  ASSERT_TRUE(rig_->Connect(kA, kB, b).ok());
  ASSERT_TRUE(rig_->Connect(kB, kA, a).ok());
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(i, {Noise(i, 40)})).ok());
    ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(i, {Noise(i, 40)})).ok());
  }
  EXPECT_TRUE(rig_->WaitForFrames(kA, 100));
  EXPECT_TRUE(rig_->WaitForFrames(kB, 100));
}

TEST_P(TransportConformance, AnUnknownPeerIsUnavailable) {
  rig_->Start(kA);
  rig_->Start(kB, {.listens = false});
  for (const NodeId node : {kA, kB}) {
    const absl::Status status = rig_->Send(node, kC, MakeFrame(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("c0c0c0c0c0c0c0c0"));
  }
  EXPECT_EQ(rig_->Counters(kA).frames_out, 0);
}

TEST_P(TransportConformance, EndpointsOthersCanUse) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  rig_->Do(kA, [](Transport& transport) {
    EXPECT_EQ(transport.self(), kA);
    EXPECT_EQ(transport.endpoint(), "");
  });
  if (!real()) return;
  if (GetParam() == "path") {
    const absl::StatusOr<std::vector<Endpoint>> list = ParseEndpointList(endpoint);
    ASSERT_TRUE(list.ok()) << list.status();
    EXPECT_EQ(list->size(), 3);
    return;
  }
  const absl::StatusOr<Endpoint> parsed = ParseRemoteEndpoint(endpoint);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  if (GetParam() == "tcp") {
    EXPECT_EQ(parsed->host, "127.0.0.1");
    EXPECT_GT(parsed->port, 0);
  }
}

TEST_P(TransportConformance, AnEndpointThatIsNoneIsRefused) {
  rig_->Start(kA, {.listens = false});
  for (const char* bad : {"", "nonsense", "tcp://", "http://127.0.0.1:80"}) {
    const absl::Status status = rig_->Connect(kA, kB, bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("allowed")) << bad;
  }
  EXPECT_EQ(rig_->Send(kA, kB, MakeFrame(1)).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportConformance, APeerThatIsNotThereIsSilenceAndItsQueueIsBounded) {
  // An endpoint where nobody is any more.
  const std::string endpoint = rig_->Start(kB);
  rig_->End(kB);
  rig_->Start(kA, {.listens = false, .queue_frames = 10});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(i)).ok());
  EXPECT_TRUE(rig_->Received(kA).empty());
  if (!real()) return;  // the simulated network takes everything and loses it
  int refused = 0;
  for (int i = 0; i < 10; ++i) {
    const absl::Status status = rig_->Send(kA, kB, MakeFrame(i));
    if (status.ok()) continue;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("b0b0b0b0b0b0b0b0"));
    ++refused;
  }
  EXPECT_GE(refused, 8);
  EXPECT_EQ(rig_->Counters(kA).dropped, refused);
  EXPECT_EQ(rig_->Counters(kA).frames_out, 20 - refused);
}

TEST_P(TransportConformance, FramesSentBeforeThePeerListensArriveWhenItDoes) {
  if (!real()) GTEST_SKIP() << "the simulated network loses what nobody is there for";
  const std::string endpoint = rig_->Start(kB);
  rig_->End(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(3)).ok());
  rig_->Start(kB, {.endpoint = endpoint});
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
}

TEST_P(TransportConformance, APeerRestartedAtTheSameEndpointIsReachedAgain) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  rig_->End(kB);
  ASSERT_EQ(rig_->Start(kB, {.endpoint = endpoint}), endpoint);
  // A frame may be lost with the old connection; one that is sent again comes through, and so does
  // the answer.
  bool reached = false;
  for (uint64_t i = 2; i < 200 && !reached; ++i) {
    rig_->Send(kA, kB, MakeFrame(i)).IgnoreError();
    int looks = 0;
    rig_->WaitFor([&] {
      reached = rig_->ReceivedCount(kB) > 1;
      return reached || ++looks > 4;
    });
  }
  ASSERT_TRUE(reached);
  ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(9)).ok());
  EXPECT_TRUE(rig_->WaitForFrames(kA, 1));
}

TEST_P(TransportConformance, ADisconnectedPeerIsForgottenAndOthersAreNot) {
  const std::string b = rig_->Start(kB), c = rig_->Start(kC);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, b).ok());
  ASSERT_TRUE(rig_->Connect(kA, kC, c).ok());
  rig_->Do(kA, [](Transport& transport) {
    transport.Disconnect(kB);
    transport.Disconnect(kB);  // again: ignored
  });
  EXPECT_EQ(rig_->Send(kA, kB, MakeFrame(1)).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(rig_->Send(kA, kC, MakeFrame(2)).ok());
  EXPECT_TRUE(rig_->WaitForFrames(kC, 1));
  ASSERT_TRUE(rig_->Connect(kA, kB, b).ok());  // and back
  EXPECT_TRUE(rig_->Send(kA, kB, MakeFrame(3)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  EXPECT_EQ(rig_->Received(kB)[0].frame.header.tick(), 3);
}

TEST_P(TransportConformance, ConnectToAnotherEndpointMovesThePeer) {
  const std::string old_place = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, old_place).ok());
  ASSERT_TRUE(rig_->Connect(kA, kB, old_place).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  rig_->End(kB);
  const std::string new_place = rig_->Start(kB);
  ASSERT_NE(new_place, old_place);
  ASSERT_TRUE(rig_->Connect(kA, kB, new_place).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(2)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 2));
}

TEST_P(TransportConformance, BothEndsCountTheSame) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(i, {Noise(1, 1000)})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 5));
  ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(0)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kA, 1));
  const TransportCounters a = rig_->Counters(kA), b = rig_->Counters(kB);
  EXPECT_EQ(a.frames_out, 5);
  EXPECT_EQ(b.frames_in, 5);
  EXPECT_EQ(b.frames_out, 1);
  EXPECT_EQ(a.frames_in, 1);
  EXPECT_GT(a.bytes_out, 5 * 1000);
  EXPECT_LT(a.bytes_out, 5 * 1200);
  EXPECT_EQ(a.bytes_out, b.bytes_in);
  EXPECT_EQ(b.bytes_out, a.bytes_in);
  EXPECT_EQ(a.refused + a.dropped + b.refused + b.dropped, 0);
}

TEST_P(TransportConformance, ASentBufferIsReleasedOnceItsBytesAreGone) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  std::atomic<int> released = 0;
  std::vector<std::string> bytes;
  for (const size_t size : {8, 4096, 1 << 20}) bytes.emplace_back(size, 'x');
  std::vector<Buffer> payload;
  for (std::string& of : bytes) {
    payload.push_back(Buffer::Wrap(of.data(), of.size(), [&] { ++released; }));
  }
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, std::move(payload))).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  EXPECT_TRUE(rig_->WaitFor([&] { return released == 3; }));
}

TEST_P(TransportConformance, ReceivedPayloadOutlivesBothTransports) {
  const std::string endpoint = rig_->Start(kB);
  rig_->Start(kA, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kA, kB, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, {Noise(1, 32), Noise(2, 100'000)})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  rig_->End(kA);
  rig_->End(kB);
  const std::vector<Buffer> payload = rig_->Received(kB)[0].frame.payload;
  EXPECT_EQ(payload[0].view(), Noise(1, 32).view());
  EXPECT_TRUE(payload[1].view() == Noise(2, 100'000).view());
}

}  // namespace
}  // namespace parley
