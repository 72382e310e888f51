// A scripted server shard: records what it is sent and answers as the test says.
#ifndef PARLEY_TESTS_UNIT_WORKER_FAKE_SERVER_H_
#define PARLEY_TESTS_UNIT_WORKER_FAKE_SERVER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"
#include "ps/base/sim_env.h"
#include "ps/net/rpc.h"
#include "ps/net/sim_network.h"

namespace parley {

class FakeServer {
 public:
  using Handler = std::function<void(FakeServer& server, NodeId from, Frame request)>;

  FakeServer(SimWorld* world, SimNetwork* network, uint32_t index, Handler handler)
      : node_(NodeId{100 + index}),
        endpoint_(absl::StrCat("sim://server", index)),
        env_(world, endpoint_),
        transport_(network->CreateTransport(&env_, node_, endpoint_)),
        rpc_(&env_, transport_.get()),
        handler_(std::move(handler)) {
    for (pb::Kind kind : {pb::PUSH, pb::PULL, pb::PUSH_PULL, pb::LEAVE}) {
      rpc_.Handle(kind, [this](NodeId from, Frame request) {
        requests.push_back(request.header);
        handler_(*this, from, std::move(request));
      });
    }
  }

  Rpc& rpc() { return rpc_; }
  NodeId node() const { return node_; }
  const std::string& endpoint() const { return endpoint_; }

  std::vector<pb::FrameHeader> requests;  // in order of arrival

 private:
  const NodeId node_;
  const std::string endpoint_;
  SimEnv env_;
  std::unique_ptr<Transport> transport_;
  Rpc rpc_;
  Handler handler_;
};

// A node that talks to fake servers.
struct FakeClientNode {
  FakeClientNode(SimWorld* world, SimNetwork* network, uint32_t rank)
      : env(world, absl::StrCat("worker", rank)),
        transport(network->CreateTransport(&env, NodeId{200 + rank}, "")),
        rpc(&env, transport.get()) {
    rpc.SetIdentity(/*job=*/1, /*incarnation=*/10 + rank, rank);
  }
  SimEnv env;
  std::unique_ptr<Transport> transport;
  Rpc rpc;
};

// `table` on `servers`, partition p on server p % servers.
inline pb::Assignment AssignRoundRobin(const pb::TableSpec& table, uint32_t partitions,
                                       const std::vector<std::unique_ptr<FakeServer>>& servers) {
  pb::Assignment assignment;
  *assignment.add_table() = table;
  assignment.mutable_map()->set_epoch(3);
  for (size_t i = 0; i < servers.size(); ++i) {
    pb::ShardAddress* shard = assignment.mutable_map()->add_shard();
    shard->set_node(Value(servers[i]->node()));
    shard->set_server_rank(static_cast<uint32_t>(i));
    shard->set_shard(0);
    shard->set_endpoint(servers[i]->endpoint());
  }
  pb::TableMap* map = assignment.mutable_map()->add_table();
  map->set_table(table.id());
  for (uint32_t p = 0; p < partitions; ++p) {
    map->add_owner(p % static_cast<uint32_t>(servers.size()));
  }
  return assignment;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_FAKE_SERVER_H_
