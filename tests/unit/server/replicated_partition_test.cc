// What must hold of a partition with a backup, over random histories: lost, doubled and late
// messages, primaries that die at any moment, backups that join at any moment, workers that are
// replaced. Nothing is applied twice, nothing that was acknowledged is lost, a backup equals its
// primary after the same operations, and under BSP every reader reads what it reads in a run in
// which nothing happened.
#include "tests/unit/server/replicated_partition.h"

namespace parley {
namespace {

class History {
 public:
  History(const ReplicatedSetup& setup, uint64_t seed)
      : setup_(setup), table_(setup), choices_(seed), incarnations_(setup.workers, 1) {
    for (uint32_t w = 0; w < setup.workers; ++w) clients_.emplace_back();
    primary_ = MakeNode();
    if (deterministic()) MakeReference();
  }

  void Run() {
    for (int event = 0; event < 20000 && !finished(); ++event) {
      Happen();
      Answer();
      if (::testing::Test::HasFailure()) return;
    }
    ASSERT_TRUE(finished()) << "stuck: " << primary_->WaitsFor(HostedPartition::kAfterAllLeft);
    DeliverAll();
    CheckEnd();
  }

  int promotions = 0, replaced = 0, loaded = 0, superseded = 0;

 private:
  struct Client {
    uint64_t tick = 0, sequence = 0, acked_below = 1, updates = 0;
    std::map<uint64_t, TestPush> unanswered;  // by sequence
    std::set<uint64_t> acked;
    bool leave_sent = false, left = false;
  };
  struct Waiting {
    HostedPartition::Ticket ticket;
    uint32_t incarnation;
    uint64_t sequence;
  };
  struct OnItsWay {
    pb::ReplicaOp op;
    SummedGradient sum;
  };

  bool deterministic() const {
    return setup_.consistency.mode() == pb::Consistency::BSP &&
           setup_.consistency.backup_workers() == 0;
  }
  bool finished() const {
    for (const Client& client : clients_) {
      if (!client.left) return false;
    }
    return primary_->MayRead(HostedPartition::kAfterAllLeft);
  }

  std::unique_ptr<HostedPartition> MakeNode() {
    auto node =
        table_.MakePartition(incarnations_, [this](uint32_t, NormGroup group, double share) {
          norms_.emplace_back(group, 2 * share);  // there is one more partition, alike
        });
    node->SetOpSink([this](uint32_t, pb::ReplicaOp op, SummedGradient sum) {
      const uint64_t index = op.index();
      wire_.push_back({std::move(op), std::move(sum)});
      // Nobody has to have it: durable at once, inside the operation.
      if (!synced_) primary_->OnDurable(index);
    });
    return node;
  }

  // What tick t reads if nothing ever happens, by t.
  void MakeReference() {
    auto plain = table_.MakePartition(
        incarnations_,
        [this](uint32_t, NormGroup group, double share) { norms_.emplace_back(group, 2 * share); });
    for (uint64_t tick = 0; tick <= setup_.ticks; ++tick) {
      reference_.push_back(table_.Read(plain.get(), tick));
      for (uint32_t w = 0; w < setup_.workers; ++w) {
        if (tick == table_.Ticks(w)) plain->OnLeave(w, tick);
        if (tick >= table_.Ticks(w)) continue;
        TestPush push = table_.Make(w, tick);
        push.sequence = tick + 1;
        ASSERT_TRUE(GivePush(plain.get(), push).ok());
      }
      while (!norms_.empty()) AnswerNorm(plain.get());
    }
    last_ = table_.Read(plain.get(), HostedPartition::kAfterAllLeft);
  }

  void AnswerNorm(HostedPartition* node) {
    const auto [group, total] = norms_.front();
    norms_.pop_front();
    node->OnNorm(group, total);
  }

  void Happen() {
    const uint64_t what = choices_.Below(100);
    const uint32_t w = static_cast<uint32_t>(choices_.Below(setup_.workers));
    if (what < 35) {
      Step(w);
    } else if (what < 55) {
      SendAgain(w);
    } else if (what < 60) {
      Stray();
    } else if (what < 80) {
      DeliverOp();
    } else if (what < 88) {
      if (!norms_.empty() && !choices_.OneIn(3)) AnswerNorm(primary_.get());
    } else if (what < 92) {
      Join();
    } else if (what < 95) {
      Fail();
    } else if (what < 97) {
      if (setup_.replaces_workers && choices_.OneIn(3)) Replace(w);
    } else if (what < 98) {
      LoseBackup();
    } else {
      primary_->Resume();  // a new map, with the same primary
    }
  }

  // The next tick, or leaving. One push in two is lost on its way for now.
  void Step(uint32_t w) {
    Client& client = clients_[w];
    if (setup_.updates_without_tick && client.updates < 5 && !client.leave_sent) {
      Send(w, table_.Make(w, client.updates++, false));
    }
    if (client.tick >= table_.Ticks(w)) {
      if (!client.unanswered.empty() || client.left) return;
      client.leave_sent = true;
      if (!choices_.OneIn(4)) primary_->OnLeave(w, table_.Ticks(w));
      return;
    }
    if (!primary_->MayRead(client.tick)) return;
    if (deterministic()) {
      ASSERT_EQ(table_.Read(primary_.get(), client.tick), reference_[client.tick])
          << "worker " << w << " reads for tick " << client.tick << " of "
          << primary_->applied_clock() << " applied; " << promotions << " promotions, " << replaced
          << " replaced, " << loaded << " loaded";
    }
    Send(w, table_.Make(w, client.tick++));
  }

  void Send(uint32_t w, TestPush push) {
    Client& client = clients_[w];
    push.incarnation = incarnations_[w];
    push.sequence = ++client.sequence;
    push.acked_below = client.acked_below;
    client.unanswered[push.sequence] = push;
    sent_.push_back(push);
    if (!choices_.OneIn(2)) Give(push);
  }

  void SendAgain(uint32_t w) {
    const Client& client = clients_[w];
    if (client.unanswered.empty()) return;
    auto push = client.unanswered.begin();
    std::advance(push, choices_.Below(client.unanswered.size()));
    Give(push->second);
  }

  // Something old comes late.
  void Stray() {
    if (!sent_.empty()) Give(sent_[choices_.Below(sent_.size())]);
  }

  void Give(const TestPush& push) {
    const auto ticket = GivePush(primary_.get(), push);
    if (push.incarnation != incarnations_[push.worker]) {
      ASSERT_EQ(ticket.status().code(), absl::StatusCode::kFailedPrecondition);
      return;
    }
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    waiting_.push_back({*ticket, push.incarnation, push.sequence});
  }

  // Acknowledges what may be.
  void Answer() {
    std::erase_if(waiting_, [&](const Waiting& w) {
      if (!primary_->MayAcknowledge(w.ticket)) return false;
      if (w.incarnation != incarnations_[w.ticket.worker]) return true;
      Client& client = clients_[w.ticket.worker];
      client.acked.insert(w.sequence);
      client.unanswered.erase(w.sequence);
      while (client.acked.contains(client.acked_below)) ++client.acked_below;
      return true;
    });
    for (uint32_t w = 0; w < setup_.workers; ++w) {
      Client& client = clients_[w];
      // As a server knows it that has been asked: a LEAVE that was lost is said again.
      if (client.leave_sent && !client.left && choices_.OneIn(2)) {
        primary_->OnLeave(w, table_.Ticks(w));
        client.left = primary_->MayAcknowledgeLeave(w);
      }
    }
  }

  void DeliverOp() {
    if (backup_ == nullptr || wire_.empty()) return;
    const absl::Status status =
        backup_->ApplyOp(wire_.front().op, wire_.front().sum.keys, wire_.front().sum.values);
    ASSERT_TRUE(status.ok()) << status << " " << wire_.front().op.ShortDebugString();
    wire_.pop_front();
    if (backup_->last_index() == primary_->last_index()) {
      synced_ = true;
      CompareCopies();
    }
    if (synced_) primary_->OnDurable(backup_->last_index());
  }
  void DeliverAll() {
    while (backup_ != nullptr && !wire_.empty()) DeliverOp();
  }

  void CompareCopies() {
    ASSERT_EQ(backup_->Digest(), primary_->Digest());
    for (uint64_t tick : {uint64_t{0}, backup_->applied_clock() + 1}) {
      ASSERT_EQ(table_.Read(backup_.get(), tick), table_.Read(primary_.get(), tick));
    }
    if (deterministic() && backup_->applied_clock() > 0) {
      const uint64_t before = backup_->applied_clock() - 1;
      ASSERT_EQ(table_.Read(backup_.get(), before), table_.Read(primary_.get(), before));
    }
    ASSERT_EQ(backup_->counts().applied, primary_->counts().applied);
    ASSERT_EQ(backup_->counts().dropped, primary_->counts().dropped);
    ASSERT_EQ(backup_->counts().samples, primary_->counts().samples);
    ASSERT_EQ(backup_->KnownNorms(), primary_->KnownNorms());
  }

  // A backup that begins with the state of this moment.
  void Join() {
    if (backup_ != nullptr) return;
    wire_.clear();
    synced_ = false;
    primary_->SetReplicated(true);
    backup_ = MakeNode();
    PartitionSnapshot snapshot = primary_->Save();
    const absl::Status status = backup_->Load(std::move(snapshot));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(backup_->last_index(), primary_->last_index());
    CompareCopies();
    synced_ = choices_.OneIn(2);
    ++loaded;
  }

  void LoseBackup() {
    if (backup_ == nullptr) return;
    backup_ = nullptr;
    synced_ = false;
    wire_.clear();
    primary_->SetReplicated(false);
  }

  // The primary dies with all that it held; what was on its way to the backup may still come.
  void Fail() {
    if (backup_ == nullptr || !synced_) return;
    while (!wire_.empty() && !choices_.OneIn(3)) DeliverOp();
    wire_.clear();
    norms_.clear();
    waiting_.clear();
    primary_ = std::move(backup_);
    synced_ = false;
    // The new map names another backup, or none; the workers' incarnations are the map's.
    primary_->SetReplicated(false);
    for (uint32_t w = 0; w < setup_.workers; ++w) primary_->OnWorker(w, incarnations_[w]);
    primary_->Resume();
    ++promotions;
  }

  void Replace(uint32_t w) {
    Client& client = clients_[w];
    if (client.left) return;
    primary_->OnWorker(w, ++incarnations_[w]);
    const uint64_t begun = client.tick;
    client = Client();
    client.tick = primary_->Missing(w);
    // Another partition may lack one step more, so it has to be computed again: unless the worker
    // has computed the next one, for which it must have read there.
    if (client.tick > 0 && begun <= client.tick && choices_.OneIn(2)) --client.tick;
    ++replaced;
  }

  void CheckEnd() {
    const PushCounters& counts = primary_->counts();
    superseded += static_cast<int>(counts.superseded);
    EXPECT_EQ(counts.accepted, counts.applied + counts.dropped);
    const std::vector<float> weights = table_.Read(primary_.get(), HostedPartition::kAfterAllLeft);
    if (deterministic()) {
      EXPECT_EQ(weights, last_);
    }
    uint64_t applied = 0, acknowledged = 0, none = 0;
    for (uint32_t w = 0; w < setup_.workers; ++w) {
      EXPECT_EQ(primary_->acknowledged()[w], clients_[w].acked.size()) << "worker " << w;
      acknowledged += clients_[w].acked.size();
      for (uint64_t tick = 0; tick < table_.Ticks(w); ++tick) {
        if (table_.Make(w, tick).weight == 0) {
          ++none;
          continue;
        }
        applied += IsApplied(weights, w, tick, true) ? 1 : 0;
      }
      for (uint64_t update = 0; update < clients_[w].updates; ++update) {
        if (table_.Make(w, update, false).weight == 0) continue;
        EXPECT_TRUE(IsApplied(weights, w, update, false)) << "update " << update << " of " << w;
      }
    }
    uint64_t all = 0, updates = 0;
    for (uint32_t w = 0; w < setup_.workers; ++w) {
      all += table_.Ticks(w);
      updates += clients_[w].updates;
    }
    if (setup_.consistency.backup_workers() == 0) {
      EXPECT_EQ(applied + none, all);
    }
    // Nothing is both applied and dropped.
    EXPECT_LE(counts.accepted, all + updates);
    if (replaced == 0) {
      EXPECT_EQ(acknowledged, counts.accepted + counts.superseded);
    }
  }

  // Once, at most: alone, a gradient moves its place by 1; with others by its part of the step.
  bool IsApplied(const std::vector<float>& weights, uint32_t w, uint64_t tick, bool has_tick) {
    const uint64_t place = table_.PlaceOf(w, tick, has_tick);
    const float value = weights[setup_.sparse ? place * TestTable::kDim : place];
    if (setup_.consistency.mode() != pb::Consistency::BSP && setup_.clip_norm == 0) {
      EXPECT_TRUE(value == 0 || value == -1)
          << "tick " << tick << " of worker " << w << ": " << value;
    }
    return value != 0;
  }

  const ReplicatedSetup setup_;
  TestTable table_;
  Choices choices_;
  std::vector<uint32_t> incarnations_;
  std::vector<Client> clients_;
  std::vector<TestPush> sent_;
  std::vector<Waiting> waiting_;
  std::deque<OnItsWay> wire_;
  std::deque<std::pair<NormGroup, double>> norms_;
  std::unique_ptr<HostedPartition> primary_, backup_;
  bool synced_ = false;
  std::vector<std::vector<float>> reference_;
  std::vector<float> last_;
};

struct Case {
  const char* name;
  ReplicatedSetup setup;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class ReplicatedPartitionTest : public ::testing::TestWithParam<Case> {};

TEST_P(ReplicatedPartitionTest, NothingIsLostOrDoubledWhateverHappens) {
  int promotions = 0, replaced = 0, loaded = 0, superseded = 0;
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    History history(GetParam().setup, seed);
    history.Run();
    if (HasFailure()) return;
    promotions += history.promotions;
    replaced += history.replaced;
    loaded += history.loaded;
    superseded += history.superseded;
  }
  // Or it would show nothing.
  EXPECT_GT(promotions, 50);
  EXPECT_GT(loaded, 100);
  if (GetParam().setup.replaces_workers) {
    EXPECT_GT(replaced, 50);
    EXPECT_GT(superseded, 10);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, pb::Consistency consistency) -> ReplicatedSetup& {
    cases.push_back({name, {}});
    cases.back().setup.consistency = consistency;
    return cases.back().setup;
  };
  add("Bsp", Mode(pb::Consistency::BSP));
  add("BspAdam", Mode(pb::Consistency::BSP)).adam = true;
  add("BspRows", Mode(pb::Consistency::BSP)).sparse = true;
  add("BspClipped", Mode(pb::Consistency::BSP)).clip_norm = 0.5;
  add("BspPublished", Mode(pb::Consistency::BSP)).pull = "int8";
  add("BackupWorkers", Mode(pb::Consistency::BSP, 1));
  add("BackupWorkersClipped", Mode(pb::Consistency::BSP, 1)).clip_norm = 0.5;
  add("Ssp", Mode(pb::Consistency::SSP, 2));
  add("SspRows", Mode(pb::Consistency::SSP, 2)).sparse = true;
  add("Asp", Mode(pb::Consistency::ASP));
  ReplicatedSetup& updates = add("AspUpdates", Mode(pb::Consistency::ASP));
  updates.updates_without_tick = true;
  updates.replaces_workers = false;
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Modes, ReplicatedPartitionTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace parley
