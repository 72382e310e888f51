#include "tools/bench/bench_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "ps/base/dense_layout.h"
#include "ps/base/sparse_layout.h"
#include "ps/config/experiment.h"
#include "tools/bench/suites.h"

namespace parley {
namespace {

BenchPlan ReadBack(const BenchPlan& plan) {
  BenchPlan read;
  read.load = plan.load;
  FlagSet flags("test", "test");
  read.AddFlags(&flags);
  const absl::Status status = flags.Parse(plan.ToArgs());
  EXPECT_TRUE(status.ok()) << status;
  return read;
}

TEST(BenchPlanTest, CrossesToWorkersAsArguments) {
  BenchPlan plan;
  plan.load = "sparse";
  plan.servers = 3;
  plan.workers = 2;
  plan.shards = 4;
  plan.transport = "tcp";
  plan.codec = "int8";
  plan.pull_codec = "fp16";
  plan.spin_us = 33;
  plan.zstd_level = 3;
  plan.bytes = 4096;
  plan.in_flight = 7;
  plan.keys = 123;
  plan.table_keys = 4567;
  plan.dim = 8;
  plan.key_lists = 9;
  plan.distribution = "zipf:1.05";
  plan.row_type = "bf16";
  plan.rounds = 11;
  plan.round_ms = 77;
  plan.partition_kib = 64;
  plan.max_request_kib = 512;
  const BenchPlan read = ReadBack(plan);
  EXPECT_EQ(read.ToArgs(), plan.ToArgs());
  EXPECT_EQ(read.Settings(), plan.Settings());
  EXPECT_EQ(read.distribution, "zipf:1.05");
  EXPECT_EQ(read.round_ms, 77);
}

TEST(BenchPlanTest, ResolvesWhatIsAsUsual) {
  BenchPlan plan;
  plan.bytes = 64 << 20;
  plan.Resolve(2);
  EXPECT_EQ(plan.in_flight, 1);
  BenchPlan small;
  small.Resolve(2);
  EXPECT_EQ(small.bytes, 1 << 20);
  EXPECT_EQ(small.in_flight, 8);
  BenchPlan given;
  given.in_flight = 3;
  given.Resolve(2);
  EXPECT_EQ(given.in_flight, 3);
}

TEST(BenchPlanTest, LoopsSpinOnlyWithACoreEachAndSharedMemory) {
  const auto spin = [](BenchPlan plan, uint32_t cores) {
    plan.Resolve(cores);
    return plan.spin_us;
  };
  EXPECT_GT(spin({.transport = "shm"}, 2), 0);
  EXPECT_EQ(spin({.transport = "shm"}, 1), 0);
  EXPECT_EQ(spin({.transport = "tcp"}, 2), 0);
  EXPECT_EQ(spin({.servers = 2, .workers = 2, .transport = "shm"}, 2), 0);
  EXPECT_EQ(spin({.transport = "tcp", .spin_us = 7}, 1), 7);
}

TEST(BenchPlanTest, RefusesWhatCannotBe) {
  const auto message = [](BenchPlan plan) {
    plan.Resolve(2);
    return std::string(plan.Check().message());
  };
  EXPECT_EQ(message({}), "");
  EXPECT_NE(message({.partition_kib = 6}).find("--partition-kib 6"), std::string::npos);
  EXPECT_NE(message({.bytes = 1022}).find("--bytes 1022"), std::string::npos);
  EXPECT_NE(message({.in_flight = 100}).find("--in-flight 100"), std::string::npos);
  EXPECT_NE(message({.distribution = "even"}).find("'even'"), std::string::npos);
}

TEST(BenchPlanTest, ItsExperimentIsValid) {
  for (const char* transport : {"tcp", "ipc", "shm", "auto"}) {
    BenchPlan plan;
    plan.servers = 2;
    plan.transport = transport;
    const absl::StatusOr<pb::Experiment> experiment =
        LoadExperimentText(ExperimentToText(BenchExperiment(plan)), "bench");
    ASSERT_TRUE(experiment.ok()) << experiment.status();
    EXPECT_EQ(experiment->cluster().servers(), 2);
    EXPECT_EQ(experiment->consistency().mode(), pb::Consistency::ASP);
  }
}

TEST(BenchPlanTest, TablesHaveTheSizesAskedFor) {
  BenchPlan plan;
  plan.bytes = 1 << 20;
  plan.in_flight = 3;
  const std::vector<pb::TableSpec> dense = BenchTables(plan);
  ASSERT_EQ(dense.size(), 3);
  for (const pb::TableSpec& table : dense) {
    const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(layout->elements(), (1 << 20) / sizeof(float));
    EXPECT_FALSE(table.has_compression());
  }
  plan.load = "sparse";
  plan.codec = "fp16";
  const std::vector<pb::TableSpec> sparse = BenchTables(plan);
  ASSERT_EQ(sparse.size(), 1);
  const absl::StatusOr<SparseLayout> layout = SparseLayout::Create(sparse[0]);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->dim(), 16);
  EXPECT_EQ(sparse[0].compression().push(), "fp16");
}

TEST(SuitesTest, PlansOfAllAreValidAndTellApart) {
  std::set<std::string> ids;
  for (const BenchPlan& plan : SuitePlans("all", {})) {
    EXPECT_TRUE(plan.Check().ok()) << PlanId(plan) << ": " << plan.Check();
    EXPECT_TRUE(ids.insert(PlanId(plan)).second) << PlanId(plan);
  }
  EXPECT_TRUE(ids.contains("dense 1MiB x8 shm"));
  EXPECT_TRUE(ids.contains("dense 64MiB shm"));
  EXPECT_TRUE(ids.contains("sparse zipf:1.05 shm"));
}

TEST(SuitesTest, DenseMeasuresLargeAndSmallUnlessToldASize) {
  BenchPlan plan;
  EXPECT_EQ(SuitePlans("dense", plan).size(), 2);
  plan.bytes = 4096;
  ASSERT_EQ(SuitePlans("dense", plan).size(), 1);
  EXPECT_EQ(SuitePlans("dense", plan)[0].bytes, 4096);
  EXPECT_TRUE(SuitePlans("limits", plan).empty());
}

TEST(SuitesTest, ComparesLikeWithLike) {
  BenchPlan plan;
  plan.bytes = 64 << 20;
  plan.transport = "shm";
  EXPECT_EQ(LimitOf(plan, "push"), "memcpy.64MiB.1t");
  EXPECT_EQ(LimitOf(plan, "push_then_pull"), "two_pass.64MiB.1t");
  plan.transport = "tcp";
  EXPECT_EQ(LimitOf(plan, "push"), "zmq_stream.1MiB");
  plan.load = "rate";
  EXPECT_EQ(LimitOf(plan, "update"), "zmq_rate.64B");
  plan.load = "sparse";
  EXPECT_EQ(LimitOf(plan, "pull"), "bare_table.pull");
}

}  // namespace
}  // namespace parley
