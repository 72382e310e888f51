#include "scheduler/run_tally.h"

#include <gtest/gtest.h>

namespace parley {
namespace {

pb::Experiment TwoWorkers() {
  pb::Experiment experiment;
  experiment.mutable_cluster()->set_workers(2);
  experiment.mutable_training()->set_epochs(3);
  experiment.mutable_training()->set_global_batch(10);
  return experiment;
}

pb::Report MakeReport(uint32_t epoch, uint64_t samples, double loss_sum, uint64_t correct) {
  pb::Report report;
  report.set_data_epoch(epoch);
  report.set_tick(7);
  report.set_train_samples(samples);
  report.set_train_loss_sum(loss_sum);
  report.set_train_correct(correct);
  report.set_train_seconds(2);
  return report;
}

TEST(RunTally, AnEpochIsTheSumOfItsWorkersEachOnce) {
  RunTally tally(TwoWorkers());
  EXPECT_FALSE(tally.AddReport(0, MakeReport(0, 30, 60, 10)).has_value());
  EXPECT_FALSE(tally.AddReport(0, MakeReport(0, 30, 60, 10)).has_value());  // came again
  std::optional<EpochMetrics> epoch = tally.AddReport(1, MakeReport(0, 10, 20, 10));
  ASSERT_TRUE(epoch.has_value());
  EXPECT_EQ(epoch->train_samples, 40u);
  EXPECT_DOUBLE_EQ(epoch->train_loss, 2.0);
  EXPECT_DOUBLE_EQ(epoch->train_accuracy, 0.5);
  EXPECT_FALSE(epoch->evaluated);
  EXPECT_FALSE(tally.AddReport(1, MakeReport(0, 10, 20, 10)).has_value());
  EXPECT_DOUBLE_EQ(tally.Summary(absl::Seconds(5)).samples_per_second, 20.0);
}

TEST(RunTally, AcknowledgedButNotAppliedIsNotOk) {
  RunTally tally(TwoWorkers());
  pb::Finished finished;
  finished.set_pushes_acked(5);
  finished.set_weights_sha256("abc");
  tally.AddFinished(0, finished);
  tally.AddFinished(0, finished);
  EXPECT_FALSE(tally.all_finished());
  finished.clear_weights_sha256();
  tally.AddFinished(1, finished);
  EXPECT_TRUE(tally.all_finished());
  pb::ServerCounts counts;
  counts.set_pushes_applied(6);
  counts.set_pushes_dropped(3);
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_FALSE(tally.Summary(absl::Seconds(1)).ok);
  EXPECT_NE(tally.Summary(absl::Seconds(1)).reason.find("10 pushes were acknowledged"),
            std::string::npos);
  counts.set_pushes_applied(7);
  tally.AddCounts(NodeId{1}, counts);  // again: replaces
  EXPECT_TRUE(tally.Summary(absl::Seconds(1)).ok);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).weights_sha256, "abc");
}

pb::ServerCounts::Rows MakeRows(uint32_t table, uint64_t rows, uint64_t low, uint64_t high) {
  pb::ServerCounts::Rows counted;
  counted.set_table(table);
  counted.set_rows(rows);
  counted.set_evicted(1);
  counted.set_bytes(rows * 72);
  counted.set_digest_low(low);
  counted.set_digest_high(high);
  return counted;
}

TEST(RunTally, SparseTablesAreSummedOverServers) {
  RunTally tally(TwoWorkers());
  pb::Register tables;
  tables.add_table()->set_name("model");
  pb::TableSpec* sparse = tables.add_table();
  sparse->set_id(3);
  sparse->set_name("embedding");
  sparse->mutable_sparse()->set_dim(4);
  tally.SetTables(tables);
  EXPECT_TRUE(tally.Summary(absl::Seconds(1)).tables.empty());  // nobody has counted
  pb::ServerCounts counts;
  counts.set_refused(2);
  *counts.add_rows() = MakeRows(3, 10, ~uint64_t{0}, 0x10);
  tally.AddCounts(NodeId{1}, counts);
  *counts.mutable_rows(0) = MakeRows(3, 5, 2, 0xa000000000000000);
  *counts.add_rows() = MakeRows(9, 1000, 7, 7);  // nobody's table
  tally.AddCounts(NodeId{2}, counts);
  const RunSummary summary = tally.Summary(absl::Seconds(1));
  ASSERT_EQ(summary.tables.size(), 1u);
  EXPECT_EQ(summary.tables[0].name, "embedding");
  EXPECT_EQ(summary.tables[0].rows, 15u);
  EXPECT_EQ(summary.tables[0].evicted, 2u);
  EXPECT_EQ(summary.tables[0].bytes, 15u * 72);
  EXPECT_EQ(summary.tables[0].digest, "a0000000000000100000000000000001");  // modulo 2^64 each
  EXPECT_EQ(summary.frames_refused, 4u);
}

TEST(RunTally, ProgressIsTheSlowestWorkers) {
  RunTally tally(TwoWorkers());
  pb::Heartbeat fast, slow;
  fast.set_tick(12);
  fast.set_data_epoch(2);
  fast.set_samples(100);
  fast.set_loss(1.0);
  slow.set_tick(9);
  slow.set_data_epoch(1);
  slow.set_samples(60);
  slow.set_loss(2.0);
  slow.set_waiting_for("worker 0");
  RunProgress progress = tally.ProgressOf({fast, slow}, 45, absl::Seconds(1));
  EXPECT_EQ(progress.step, 9u);
  EXPECT_EQ(progress.epoch, 1u);
  EXPECT_EQ(progress.steps, 15u);  // 5 steps an epoch, the last of 5 samples
  EXPECT_DOUBLE_EQ(progress.loss, 1.5);
  EXPECT_EQ(progress.waiting_for, "worker 0");
  fast.set_samples(140);
  EXPECT_DOUBLE_EQ(tally.ProgressOf({fast, slow}, 45, absl::Seconds(3)).samples_per_second, 20.0);
}

pb::Finished Done(uint32_t rank, uint64_t pushes, uint64_t generation) {
  pb::Finished finished;
  finished.set_rank(rank);
  finished.set_steps(6);
  finished.set_pushes_acked(pushes);
  finished.set_generation(generation);
  return finished;
}

TEST(RunTally, PushesAreComparedByWorkerWhereServersCountThem) {
  RunTally tally(TwoWorkers());
  tally.BeginGeneration(1, 0);
  tally.AddFinished(9, Done(0, 5, 1));
  tally.AddFinished(9, Done(1, 2, 1));  // its predecessor had pushed 3 more
  pb::ServerCounts counts;
  counts.set_pushes_accepted(10);
  counts.set_pushes_applied(9);
  counts.set_pushes_dropped(1);
  counts.add_acknowledged(5);
  counts.add_acknowledged(2);
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_TRUE(tally.Summary(absl::Seconds(1)).ok);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).pushes_acknowledged, 10u);
  counts.set_acknowledged(1, 1);  // one that it saw acknowledged is not there
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_FALSE(tally.Summary(absl::Seconds(1)).ok);
  counts.set_acknowledged(1, 2);
  counts.set_pushes_applied(8);
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_FALSE(tally.Summary(absl::Seconds(1)).ok);
}

TEST(RunTally, EachSampleIsInEachPartitionOnce) {
  RunTally tally(TwoWorkers());  // 3 epochs of batches of 10
  pb::Register tables;
  tables.set_train_samples(15);  // 2 steps an epoch
  tally.SetTables(tables);
  tally.BeginGeneration(2, 3);  // from a checkpoint in the middle of the second epoch
  tally.AddFinished(0, Done(0, 0, 2));
  tally.AddFinished(1, Done(1, 0, 2));
  pb::ServerCounts counts;
  counts.set_partitions(4);
  counts.set_samples(4 * (5 + 15));
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_TRUE(tally.Summary(absl::Seconds(1)).ok) << tally.Summary(absl::Seconds(1)).reason;
  counts.set_samples(4 * (5 + 15) - 1);
  tally.AddCounts(NodeId{1}, counts);
  EXPECT_NE(tally.Summary(absl::Seconds(1)).reason.find("steps 3 to 6 have 20"), std::string::npos);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).samples_left_out, 0.25);  // of a partition
  tally.CountReplaced(/*exact=*/false);                               // and so left some out
  EXPECT_TRUE(tally.Summary(absl::Seconds(1)).ok);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).samples_left_out, 0.25);
}

TEST(RunTally, WhatFollowsACheckpointIsForgottenByARollBack) {
  RunTally tally(TwoWorkers());
  tally.BeginGeneration(1, 0);
  pb::Report report = MakeReport(0, 10, 10, 5);
  report.set_generation(1);
  for (uint32_t rank : {0, 1}) {
    report.set_rank(rank);
    tally.AddReport(0, report);
  }
  report.set_data_epoch(1);
  report.set_tick(14);
  for (uint32_t rank : {0, 1}) {
    report.set_rank(rank);
    tally.AddReport(0, report);
  }
  tally.AddFinished(0, Done(0, 1, 1));
  EXPECT_EQ(tally.Save(7).epoch_size(), 1);
  RunTally resumed(TwoWorkers());
  resumed.Load(tally.Save());
  EXPECT_EQ(resumed.Save().SerializeAsString(), tally.Save().SerializeAsString());
  tally.BeginGeneration(2, 9);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).epochs.size(), 1u);
  EXPECT_TRUE(tally.finished_ranks().empty());
  tally.AddFinished(0, Done(0, 1, 1));  // of the generation before
  EXPECT_TRUE(tally.finished_ranks().empty());
  report.set_generation(2);
  report.set_rank(0);
  EXPECT_FALSE(tally.AddReport(0, report).has_value());
  report.set_rank(1);
  EXPECT_TRUE(tally.AddReport(0, report).has_value());
}

TEST(RunTally, AnEpochThatSomebodyDiedBeforeReportingIsToldWithWhatThereIs) {
  RunTally tally(TwoWorkers());
  pb::Report report = MakeReport(0, 10, 10, 5);
  tally.AddReport(0, report);
  report.set_data_epoch(1);
  tally.AddReport(0, report);
  EXPECT_TRUE(tally.TakeIncomplete().empty());
  EXPECT_TRUE(tally.AddReport(1, report).has_value());
  const std::vector<EpochMetrics> taken = tally.TakeIncomplete();
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].epoch, 0u);
  EXPECT_EQ(taken[0].train_samples, 10u);
  EXPECT_EQ(tally.Summary(absl::Seconds(1)).epochs[0].epoch, 0u);
}

}  // namespace
}  // namespace parley
