// The operations of a partition one at a time: what waits for whom, what a backup refuses, what a
// replaced worker and a checkpoint get.
#include <gmock/gmock.h>

#include <limits>

#include "tests/unit/server/replicated_partition.h"

namespace parley {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;
using Ticket = HostedPartition::Ticket;

ReplicatedSetup Workers(pb::Consistency::Mode mode, uint32_t number = 0) {
  ReplicatedSetup setup;
  setup.consistency = Mode(mode, number);
  setup.workers = 2;
  return setup;
}

class HostedPartitionOpsTest : public ::testing::Test {
 protected:
  struct Op {
    pb::ReplicaOp op;
    SummedGradient sum;
  };

  void Make(const ReplicatedSetup& setup, bool replicated = true) {
    table_ = std::make_unique<TestTable>(setup);
    primary_ = MakeNode();
    backup_ = MakeNode();
    primary_->SetReplicated(replicated);
  }
  std::unique_ptr<HostedPartition> MakeNode() {
    auto node = table_->MakePartition({1, 1}, [this](uint32_t, NormGroup group, double share) {
      norms_.emplace_back(group, share);
    });
    node->SetOpSink([this](uint32_t, pb::ReplicaOp op, SummedGradient sum) {
      ops_.push_back({std::move(op), std::move(sum)});
    });
    return node;
  }

  absl::StatusOr<Ticket> Push(HostedPartition* node, uint32_t worker, uint64_t tick,
                              uint64_t sequence, uint32_t incarnation = 1) {
    TestPush push = table_->Make(worker, tick);
    push.sequence = sequence;
    push.incarnation = incarnation;
    return GivePush(node, push);
  }
  Ticket Push(uint32_t worker, uint64_t tick, uint64_t sequence, uint32_t incarnation = 1) {
    const auto ticket = Push(primary_.get(), worker, tick, sequence, incarnation);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return ticket.ok() ? *ticket : Ticket();
  }
  void Step(uint64_t tick) {
    for (uint32_t w : {0, 1}) Push(w, tick, tick + 1);
  }
  absl::Status Deliver(const Op& op) { return backup_->ApplyOp(op.op, op.sum.keys, op.sum.values); }
  void DeliverAll() {
    while (!ops_.empty()) {
      const absl::Status status = Deliver(ops_.front());
      ASSERT_TRUE(status.ok()) << status;
      ops_.pop_front();
    }
  }

  std::unique_ptr<TestTable> table_;
  std::unique_ptr<HostedPartition> primary_, backup_;
  std::deque<Op> ops_;
  std::vector<std::pair<NormGroup, double>> norms_;
};

TEST_F(HostedPartitionOpsTest, WithoutBackupsNothingWaitsAndNoOperationIsMade) {
  Make(Workers(pb::Consistency::BSP), /*replicated=*/false);
  EXPECT_TRUE(primary_->MayAcknowledge(Push(0, 0, 1)));  // held is enough
  Push(1, 0, 1);
  EXPECT_TRUE(primary_->MayRead(1));
  EXPECT_EQ(primary_->last_index(), 1u);
  EXPECT_EQ(primary_->durable_index(), 1u);
  EXPECT_THAT(ops_, SizeIs(0));
}

TEST_F(HostedPartitionOpsTest, ReadersAndAcknowledgementsWaitUntilAStepIsDurable) {
  Make(Workers(pb::Consistency::BSP));
  const Ticket first = Push(0, 0, 1);
  EXPECT_FALSE(primary_->MayAcknowledge(first));
  const Ticket again = Push(0, 0, 1);
  EXPECT_FALSE(primary_->MayAcknowledge(again));
  const Ticket second = Push(1, 0, 1);
  ASSERT_THAT(ops_, SizeIs(1));
  EXPECT_EQ(primary_->applied_clock(), 1u);
  EXPECT_FALSE(primary_->MayRead(1));
  EXPECT_EQ(primary_->WaitsFor(1), "the copies of partition 0");
  EXPECT_FALSE(primary_->MayAcknowledge(second));
  DeliverAll();
  primary_->OnDurable(backup_->last_index());
  EXPECT_TRUE(primary_->MayRead(1));
  for (const Ticket& ticket : {first, again, second}) {
    EXPECT_TRUE(primary_->MayAcknowledge(ticket));
  }
  EXPECT_EQ(backup_->Digest(), primary_->Digest());
}

TEST_F(HostedPartitionOpsTest, WithoutItsLastBackupEverythingIsDurable) {
  Make(Workers(pb::Consistency::BSP));
  Step(0);
  EXPECT_FALSE(primary_->MayRead(1));
  primary_->SetReplicated(false);
  EXPECT_TRUE(primary_->MayRead(1));
  EXPECT_EQ(primary_->durable_index(), 1u);
}

TEST_F(HostedPartitionOpsTest, ALatePushAndALeaveWaitForTheirOperations) {
  Make(Workers(pb::Consistency::BSP, 1));
  Push(0, 0, 1);
  primary_->OnDurable(1);
  const Ticket late = Push(1, 0, 1);
  EXPECT_EQ(primary_->counts().dropped, 1u);
  EXPECT_FALSE(primary_->MayAcknowledge(late));
  EXPECT_FALSE(primary_->MayAcknowledge(Push(1, 0, 1)));  // seen before, but that may be lost
  primary_->OnLeave(1, 1);
  EXPECT_FALSE(primary_->MayAcknowledgeLeave(1));
  primary_->OnDurable(2);
  EXPECT_TRUE(primary_->MayAcknowledge(late));
  EXPECT_FALSE(primary_->MayAcknowledgeLeave(1));
  primary_->OnDurable(3);
  EXPECT_TRUE(primary_->MayAcknowledgeLeave(1));
  primary_->OnLeave(1, 1);  // asked twice, done once
  EXPECT_EQ(primary_->last_index(), 3u);
  DeliverAll();
  EXPECT_EQ(backup_->counts().dropped, 1u);
  // The backup knows both pushes and the leaver.
  EXPECT_EQ(Push(backup_.get(), 1, 0, 1).ok(), true);
  EXPECT_EQ(backup_->counts().duplicate, 1u);
  EXPECT_THAT(Push(backup_.get(), 1, 1, 2).status().message(), HasSubstr("which left"));
}

TEST_F(HostedPartitionOpsTest, WhatAReplacedWorkerHasPushedBeforeIsNotTakenAgain) {
  Make(Workers(pb::Consistency::BSP));
  Step(0);
  Push(1, 1, 2);  // held
  primary_->OnWorker(1, 2);
  primary_->OnWorker(1, 2);
  EXPECT_EQ(primary_->last_index(), 2u);
  EXPECT_EQ(Push(primary_.get(), 1, 1, 3).status().code(), absl::StatusCode::kFailedPrecondition);
  // Neither is durable, and what is held may be lost.
  EXPECT_EQ(primary_->Missing(1), 0u);
  primary_->OnDurable(2);
  EXPECT_EQ(primary_->Missing(1), 1u);
  Push(1, 0, 1, 2);                      // in the weights
  const Ticket held = Push(1, 1, 2, 2);  // held
  EXPECT_EQ(primary_->counts().superseded, 2u);
  EXPECT_EQ(primary_->acknowledged()[1], 2u);  // of this incarnation
  primary_->OnDurable(4);
  EXPECT_FALSE(primary_->MayAcknowledge(held));  // its step may still be lost
  Push(0, 1, 2);
  primary_->OnDurable(5);
  EXPECT_TRUE(primary_->MayAcknowledge(held));
  // The predecessor's sequence 2 stands for nothing at the backup: its successor's 3 does not.
  DeliverAll();
  EXPECT_EQ(backup_->counts().superseded, 2u);
  EXPECT_EQ(backup_->acknowledged(), primary_->acknowledged());
  ASSERT_TRUE(Push(backup_.get(), 1, 2, 3, 2).ok());
  EXPECT_EQ(backup_->counts().duplicate, 0u);
  EXPECT_EQ(backup_->counts().accepted, 5u);
}

TEST_F(HostedPartitionOpsTest, OfOneTickASuccessorsPushIsSupersededOnce) {
  Make(Workers(pb::Consistency::BSP));
  Push(1, 0, 1);                         // held
  for (uint32_t incarnation : {2, 3}) {  // the second one begins as the first did
    primary_->OnWorker(1, incarnation);
    Push(1, 0, 1, incarnation);
    EXPECT_EQ(Push(primary_.get(), 1, 0, 2, incarnation).status().code(),
              absl::StatusCode::kInvalidArgument);
    Push(1, 0, 1, incarnation);  // the same one again is a duplicate
    EXPECT_EQ(primary_->counts().superseded, 1u);
  }
  EXPECT_EQ(primary_->counts().duplicate, 2u);
  EXPECT_EQ(primary_->acknowledged()[1], 1u);
  Push(0, 0, 1);
  // Of a tick that is closed nothing waits: each is an operation, and told at once.
  Push(1, 0, 2, 3);
  DeliverAll();
  EXPECT_EQ(backup_->acknowledged(), primary_->acknowledged());
}

// What was superseded travels with the gradient that it was superseded by, not with another
// worker's step of the same tick: that gradient may be lost yet.
TEST_F(HostedPartitionOpsTest, ASupersededPushIsToldWithItsOwnWorkersStep) {
  Make(Workers(pb::Consistency::SSP, 4));
  Push(1, 1, 2);  // ahead of tick 0, which is lost: held
  primary_->OnWorker(1, 2);
  Push(1, 1, 1, 2);
  EXPECT_EQ(primary_->counts().superseded, 1u);
  Push(0, 0, 1);
  Push(0, 1, 2);
  ASSERT_THAT(ops_, SizeIs(3));
  EXPECT_EQ(ops_[2].op.tick(), 1u);
  EXPECT_THAT(ops_[2].op.push(), SizeIs(1));
  Push(1, 0, 2, 2);
  ASSERT_THAT(ops_, SizeIs(5));
  EXPECT_THAT(ops_[4].op.push(), SizeIs(2));
  EXPECT_TRUE(ops_[4].op.push(1).superseded());
  DeliverAll();
  EXPECT_EQ(backup_->counts().superseded, 1u);
}

TEST_F(HostedPartitionOpsTest, APromotedBackupTakesWhatItsPrimaryOnlyHeld) {
  Make(Workers(pb::Consistency::BSP));
  Push(0, 0, 1);
  primary_->OnWorker(1, 2);
  DeliverAll();
  backup_->Resume();
  backup_->SetReplicated(false);
  ASSERT_TRUE(Push(backup_.get(), 0, 0, 1).ok());  // again, since nobody has acknowledged it
  ASSERT_TRUE(Push(backup_.get(), 1, 0, 1, 2).ok());
  EXPECT_EQ(backup_->counts().applied, 2u);
  EXPECT_EQ(backup_->counts().superseded, 0u);
}

// A step that waits for its norm is no operation yet, but what is late for it is: a copy may have
// the one without the other. The successor of a worker whose gradient was dropped brings it again.
TEST_F(HostedPartitionOpsTest, WhatWasDroppedIsNotTakenWhenItsStepWasLostWithThePrimary) {
  ReplicatedSetup setup = Workers(pb::Consistency::BSP, 1);
  setup.clip_norm = 1;
  Make(setup);
  Push(0, 0, 1);
  const Ticket late = Push(1, 0, 1);
  ASSERT_THAT(ops_, SizeIs(1));  // the DROP alone
  auto copy = MakeNode();
  ASSERT_TRUE(copy->Load(primary_->Save()).ok());  // which holds the gradient of worker 0
  DeliverAll();
  primary_->OnDurable(1);
  EXPECT_FALSE(primary_->MayAcknowledge(late));
  for (HostedPartition* next : {backup_.get(), copy.get()}) {
    SCOPED_TRACE(next == copy.get() ? "by its state" : "by its operations");
    next->SetReplicated(true);
    next->OnWorker(1, 2);
    next->Resume();
    EXPECT_EQ(next->Missing(1), 0u);
    const auto again = Push(next, 1, 0, 1, 2);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(next->counts().superseded, 1u);
    ASSERT_TRUE(Push(next, 0, 0, 1).ok());
    next->OnNorm({0, 0}, 1);
    EXPECT_EQ(next->counts().applied, 1u);
    EXPECT_EQ(next->counts().dropped, 1u);
    EXPECT_EQ(next->counts().accepted, 2u);
    next->OnDurable(next->last_index());
    EXPECT_TRUE(next->MayAcknowledge(*again));
    // The next step is another matter.
    ASSERT_TRUE(Push(next, 1, 1, 2, 2).ok());
    EXPECT_EQ(next->counts().accepted, 3u);
  }
}

TEST_F(HostedPartitionOpsTest, AReplacedWorkerReadsWhatTheLastStepOverwrote) {
  for (const bool sparse : {false, true}) {
    ReplicatedSetup setup = Workers(pb::Consistency::BSP);
    setup.sparse = sparse;
    Make(setup, /*replicated=*/false);
    std::vector<std::vector<float>> reads;
    for (uint64_t tick = 0; tick < 8; ++tick) {
      reads.push_back(table_->Read(primary_.get(), tick));
      Step(tick);
      if (tick > 0) {
        EXPECT_NE(reads[tick], reads[tick - 1]);
      }
      EXPECT_EQ(table_->Read(primary_.get(), tick), reads[tick]) << "tick " << tick;
    }
    pb::Part asked, before, now;
    primary_->Read(0, 7, asked, Buffer(), &before);
    primary_->Read(0, 8, asked, Buffer(), &now);
    EXPECT_EQ(before.version() + 1, now.version());
  }
}

TEST_F(HostedPartitionOpsTest, AnotherDigestIsDataLoss) {
  Make(Workers(pb::Consistency::BSP));
  Step(0);
  ops_.front().op.set_digest(ops_.front().op.digest() + 1);
  const absl::Status status = Deliver(ops_.front());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("partition 0 after operation 1"));
}

TEST_F(HostedPartitionOpsTest, OperationsThatCannotBeAreRefusedAndChangeNothing) {
  Make(Workers(pb::Consistency::BSP));
  Step(0);
  const Op good = ops_.front();
  const uint64_t digest = backup_->Digest();
  const auto refused = [&](const char* why, auto spoil) {
    Op bad = good;
    spoil(&bad);
    const absl::Status status = Deliver(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(why));
  };
  refused("allowed is the one after 0", [](Op* bad) { bad->op.set_index(2); });
  refused("allowed is the one after 0", [](Op* bad) { bad->op.set_index(0); });
  refused("worker is 2", [](Op* bad) { bad->op.set_worker(2); });
  refused("for worker 9", [](Op* bad) { bad->op.set_closed(0, 9); });
  refused("the oldest open one, 0", [](Op* bad) { bad->op.set_tick(1); });
  refused("names none", [](Op* bad) { bad->op.clear_tick(); });
  refused("of worker 7", [](Op* bad) { bad->op.mutable_push(0)->set_worker(7); });
  refused("weight -1", [](Op* bad) { bad->op.mutable_push(0)->set_weight(-1); });
  refused("past acked_below", [](Op* bad) { bad->op.mutable_push(0)->set_sequence(5000); });
  refused("inverse_weight is -1", [](Op* bad) { bad->op.set_inverse_weight(-1); });
  refused("bytes of values", [](Op* bad) { bad->sum.values = Buffer::Copy("abc"); });
  refused("is dense", [](Op* bad) { bad->sum.keys = Buffer::Copy("01234567"); });
  refused("only a STEP", [](Op* bad) { bad->op.set_kind(pb::ReplicaOp::LEAVE); });
  refused("a DROP is of 2", [](Op* bad) {
    bad->op.set_kind(pb::ReplicaOp::DROP);
    bad->sum = SummedGradient();
  });
  EXPECT_EQ(backup_->Digest(), digest);
  EXPECT_EQ(backup_->last_index(), 0u);
  EXPECT_EQ(backup_->counts().accepted, 0u);
  EXPECT_TRUE(Deliver(good).ok());
  EXPECT_THAT(Deliver(good).message(), HasSubstr("allowed is the one after 1"));
}

TEST_F(HostedPartitionOpsTest, StateThatCannotBeIsRefused) {
  ReplicatedSetup setup = Workers(pb::Consistency::BSP);
  setup.pull = "int8";
  Make(setup);
  Step(0);
  Push(0, 1, 2);  // held
  const PartitionSnapshot good = primary_->Save();
  pb::HostedState state;
  ASSERT_TRUE(state.ParseFromString(good.server_state));
  ASSERT_EQ(state.held_size(), 1);
  const auto load = [&](auto spoil) {
    PartitionSnapshot bad = good;
    pb::HostedState own = state;
    spoil(&bad, &own);
    if (bad.server_state == good.server_state) bad.server_state = own.SerializeAsString();
    return MakeNode()->Load(std::move(bad));
  };
  EXPECT_TRUE(load([](auto*, auto*) {}).ok());
  const auto refused = [&](const char* why, auto spoil) {
    const absl::Status status = load(spoil);
    EXPECT_FALSE(status.ok()) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  using Bad = PartitionSnapshot*;
  using Own = pb::HostedState*;
  refused("no message of its kind", [](Bad bad, Own) { bad->server_state = "\xff\xff"; });
  refused("has the digest", [](Bad bad, Own) { ++bad->digest; });
  refused("index is", [](Bad bad, Own) { bad->index = ~uint64_t{0}; });
  refused("is of 1 workers", [](Bad, Own own) { own->mutable_worker()->RemoveLast(); });
  refused("window of worker 0", [](Bad, Own own) { own->mutable_worker(0)->set_seen_below(0); });
  refused("window of worker 1",
          [](Bad, Own own) { own->mutable_worker(1)->set_seen(std::string(200, 'x')); });
  refused("clock is", [](Bad, Own own) { own->mutable_worker(0)->set_clock(~uint64_t{0}); });
  refused("oldest open tick is",
          [](Bad, Own own) { own->mutable_worker(0)->set_next_tick(~uint64_t{0}); });
  refused("tick is 5000", [](Bad, Own own) { own->mutable_held(0)->set_tick(5000); });
  refused("worker is 2", [](Bad, Own own) { own->mutable_held(0)->set_worker(2); });
  refused("weight is inf", [](Bad, Own own) {
    own->mutable_held(0)->set_weight(std::numeric_limits<double>::infinity());
  });
  refused("bytes for 0 keys", [](Bad, Own own) { own->mutable_held(0)->set_weight(0); });
  refused("a second gradient", [](Bad, Own own) {
    *own->add_held() = own->held(0);
    own->mutable_held(1)->set_weight(0);
  });
  refused("dropped push of worker 2",
          [](Bad, Own own) { own->add_dropped_ahead()->set_worker(2); });
  refused("samples", [](Bad, Own own) { own->set_samples(-1); });
  refused("server.published.change", [](Bad bad, Own) {
    for (int i = 0; i < bad->values.header.array_size(); ++i) {
      pb::StateArray* array = bad->values.header.mutable_array(i);
      if (array->name() == "server.published.change") array->set_name("server.nothing");
    }
  });
  // Bytes of which any may be wrong: an error or not, but nothing worse.
  for (size_t i = 0; i < good.server_state.size(); ++i) {
    for (const int bit : {0, 3, 7}) {
      PartitionSnapshot bad = good;
      bad.server_state[i] = static_cast<char>(bad.server_state[i] ^ (1 << bit));
      auto node = MakeNode();
      if (node->Load(std::move(bad)).ok()) node->Resume();
    }
  }
}

TEST_F(HostedPartitionOpsTest, ACheckpointIsSavedBeforeItsStepAndBeginsThere) {
  for (const char* pull : {"", "one_bit"}) {
    ReplicatedSetup setup = Workers(pb::Consistency::BSP);
    setup.adam = true;
    setup.pull = pull;
    Make(setup, /*replicated=*/false);
    for (uint64_t tick = 0; tick < 3; ++tick) Step(tick);
    EXPECT_TRUE(primary_->HasApplied(2));
    EXPECT_FALSE(primary_->HasApplied(3));
    std::vector<TableState> saved;
    primary_->BeforeStep(2, [] { FAIL() << "step 2 is in the weights already"; });
    primary_->BeforeStep(4, [&] {
      EXPECT_TRUE(primary_->HasApplied(3));
      EXPECT_FALSE(primary_->HasApplied(4));
      saved.push_back(primary_->SaveCheckpoint(false));
    });
    Step(3);
    EXPECT_THAT(saved, SizeIs(0));
    for (uint64_t tick = 4; tick < 8; ++tick) Step(tick);
    ASSERT_THAT(saved, SizeIs(1));
    // Sequences and counts begin again.
    const absl::Status status = backup_->LoadCheckpoint(std::move(saved), 4);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_FALSE(backup_->MayRead(5));
    EXPECT_EQ(backup_->Missing(1), 4u);
    for (uint64_t tick = 4; tick < 8; ++tick) {
      EXPECT_TRUE(backup_->MayRead(tick));
      for (uint32_t w : {0, 1}) ASSERT_TRUE(Push(backup_.get(), w, tick, tick - 3).ok());
    }
    EXPECT_EQ(backup_->counts().applied, 8u);
    EXPECT_EQ(table_->Read(backup_.get(), 8), table_->Read(primary_.get(), 8));
    EXPECT_EQ(backup_->Digest(), primary_->Digest());
  }
}

TEST_F(HostedPartitionOpsTest, NormsThatLackAreAskedForAgainAndTotalsAreKnownAtABackup) {
  ReplicatedSetup setup = Workers(pb::Consistency::BSP);
  setup.clip_norm = 1;
  Make(setup);
  Step(0);
  ASSERT_THAT(norms_, SizeIs(1));
  primary_->Resume();
  ASSERT_THAT(norms_, SizeIs(2));
  EXPECT_EQ(norms_[1], norms_[0]);
  // A copy of this moment has the step open, and asks by itself once it is the primary.
  auto copy = MakeNode();
  ASSERT_TRUE(copy->Load(primary_->Save()).ok());
  ASSERT_THAT(norms_, SizeIs(2));
  copy->Resume();
  ASSERT_THAT(norms_, SizeIs(3));
  EXPECT_EQ(norms_[2], norms_[0]);

  primary_->OnNorm(norms_[0].first, 36);
  DeliverAll();
  EXPECT_THAT(primary_->KnownNorms(), ::testing::ElementsAre(Pair(NormGroup{0, 0}, 36)));
  EXPECT_EQ(backup_->KnownNorms(), primary_->KnownNorms());
  copy->OnNorm(norms_[0].first, 36);
  EXPECT_EQ(table_->Read(copy.get(), 1), table_->Read(primary_.get(), 1));
  for (uint64_t tick = 1; tick < 4; ++tick) {
    Step(tick);
    primary_->OnNorm({tick, 0}, static_cast<double>(tick));
    primary_->OnDurable(primary_->last_index());
  }
  EXPECT_THAT(primary_->KnownNorms(),
              ::testing::ElementsAre(Pair(NormGroup{2, 0}, 2), Pair(NormGroup{3, 0}, 3)));
}

}  // namespace
}  // namespace parley
