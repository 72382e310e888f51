// Who connected, or was connected to, and is gone: real transports tell of it.
#include <set>

#include "gtest/gtest.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

constexpr NodeId kServer{0x51}, kFirst{0xf1}, kSecond{0xf2};

class PeerGone : public ::testing::TestWithParam<const char*> {
 protected:
  // What `id` is told, from now on.
  void Listen(NodeId id, std::set<NodeId>* told) {
    rig_->Do(id, [told](Transport& transport) {
      transport.SetPeerGone([told](NodeId peer) { told->insert(peer); });
    });
  }
  bool IsTold(NodeId id, const std::set<NodeId>& told, NodeId of) {
    return rig_->WaitFor([&] {
      bool found = false;
      rig_->Do(id, [&](Transport&) { found = told.contains(of) || told.contains(kNoNode); });
      return found;
    });
  }
  void Join(NodeId id, const std::string& endpoint) {
    rig_->Start(id, {.listens = false});
    ASSERT_TRUE(rig_->Connect(id, kServer, endpoint).ok());
    const size_t before = rig_->ReceivedCount(kServer);
    ASSERT_TRUE(rig_->Send(id, kServer, MakeFrame(1)).ok());
    ASSERT_TRUE(rig_->WaitForFrames(kServer, before + 1));
  }

  std::set<NodeId> of_server_, of_first_;
  std::unique_ptr<TransportRig> rig_ = MakeTransportRig(GetParam());
};

TEST_P(PeerGone, WhoListensHearsOfOneThatEnds) {
  const std::string endpoint = rig_->Start(kServer);
  Listen(kServer, &of_server_);
  Join(kFirst, endpoint);
  Join(kSecond, endpoint);
  rig_->End(kFirst);
  EXPECT_TRUE(IsTold(kServer, of_server_, kFirst));
  // Those that are there can still be told apart from it by asking.
  EXPECT_TRUE(rig_->Send(kServer, kSecond, MakeFrame(2)).ok());
  EXPECT_TRUE(rig_->WaitForFrames(kSecond, 1));
  EXPECT_TRUE(rig_->WaitFor([&] { return !rig_->Send(kServer, kFirst, MakeFrame(3)).ok(); }));
}

TEST_P(PeerGone, WhoConnectedHearsOfTheEnd) {
  const std::string endpoint = rig_->Start(kServer);
  Join(kFirst, endpoint);
  Listen(kFirst, &of_first_);
  rig_->End(kServer);
  EXPECT_TRUE(IsTold(kFirst, of_first_, kServer));
}

INSTANTIATE_TEST_SUITE_P(Real, PeerGone, ::testing::Values("tcp", "ipc", "shm", "path", "curve"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace parley
