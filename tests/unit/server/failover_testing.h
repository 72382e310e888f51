// Several servers, of which one holds copies of another's partitions.
#ifndef PARLEY_TESTS_UNIT_SERVER_FAILOVER_TESTING_H_
#define PARLEY_TESTS_UNIT_SERVER_FAILOVER_TESTING_H_

#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/server/server_cluster.h"

namespace parley {

constexpr uint32_t kTable = ServerCluster::kTable;

inline Request Pull(uint64_t tick) {
  Request pull(pb::PULL, kTable);
  return pull.Tick(tick).Part(0);
}
inline Request Push(uint64_t tick, uint64_t sequence, float value, uint32_t partition = 0) {
  Request push(pb::PUSH, kTable);
  return push.Tick(tick).Weight(1).Part(partition, sequence).Values({value, value, value, value});
}
inline absl::StatusCode CodeOf(const ServerCluster::Later& answer) {
  return answer ? answer->status().code() : absl::StatusCode::kUnknown;
}

class FailoverTest : public ::testing::Test {
 protected:
  // Server 0 is primary of all `partitions`, server 1 has complete copies of them.
  void StartWithCopies(pb::Consistency::Mode mode, uint32_t partitions = 1) {
    cluster_.experiment.mutable_consistency()->set_mode(mode);
    if (cluster_.table.name().empty()) cluster_.AddDense(partitions);
    cluster_.AddServer();
    cluster_.AddServer();
    const std::vector<uint32_t> owners(partitions, 0);
    pb::Assignment map = cluster_.Map(1, owners);
    for (uint32_t p = 0; p < partitions; ++p) cluster_.AddBackup(&map, p, 1, false);
    cluster_.AssignTo({0, 1}, map);
    ASSERT_TRUE(cluster_.RunUntilNews(partitions));
    map = cluster_.Map(2, owners);
    for (uint32_t p = 0; p < partitions; ++p) cluster_.AddBackup(&map, p, 1, true);
    cluster_.AssignTo({0, 1}, map);
  }
  std::vector<float> Weights(size_t server, uint64_t tick, size_t worker = 0) {
    const auto answer = cluster_.AskAs(worker, server, Pull(tick));
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? FloatsOf(SplitPayload(*answer)[0].values) : std::vector<float>();
  }

  ServerCluster cluster_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SERVER_FAILOVER_TESTING_H_
