// Saving and loading: what comes back is the same and goes on the same, changes add up to the
// whole, and what cannot be is refused.
#include <algorithm>
#include <functional>
#include <limits>
#include <new>

#include "gmock/gmock.h"
#include "ps/table/sparse_partition.h"
#include "tests/unit/table/scarce_memory.h"
#include "tests/unit/table/state_testing.h"

namespace parley {
namespace {

using testing::HasSubstr;

uint64_t RowsIn(const TableState& state) { return state.Find("keys")->size() / sizeof(uint64_t); }

TEST(PartitionStateTest, LoadedGoesOnAsIfNothingHadHappened) {
  uint64_t seed = 0;
  for (const pb::TableSpec& spec : AllTables()) {
    SCOPED_TRACE(spec.ShortDebugString());
    BufferPool pool, elsewhere;
    StateHistory history(spec, ++seed), other(spec, seed + 1000);
    const auto saved = history.Create(&pool), loaded = history.Create(&elsewhere);
    for (int i = 0; i < 20; ++i) history.Step({saved.get()});
    const TableState state = saved->Save();
    ASSERT_TRUE(state.Check().ok());
    const std::vector<std::string> contents = Contents(state);

    // Whatever it was before.
    for (int i = 0; i < 3; ++i) other.Step({loaded.get()});
    ASSERT_FALSE(SamePartition(*saved, *loaded));
    const absl::Status status = loaded->Load(CopyState(state));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(SamePartition(*saved, *loaded));
    for (int i = 0; i < 20; ++i) {
      history.Step({saved.get(), loaded.get()});
      ASSERT_EQ(saved->Digest(), loaded->Digest()) << i;
    }
    ASSERT_TRUE(SamePartition(*saved, *loaded));
    const std::vector<uint64_t>& keys = history.keys();
    const KeyList list(reinterpret_cast<const std::byte*>(keys.data()), keys.size());
    ASSERT_EQ(BytesOf(saved->Read(list)), BytesOf(loaded->Read(list)));
    // What was saved stays as it was while its partition goes on.
    ASSERT_EQ(Contents(state), contents);
  }
}

// Neither the way to a state nor the order of rows shows in its bytes.
TEST(PartitionStateTest, EqualStatesAreEqualBytes) {
  const pb::TableSpec spec = SparseTableSpec(
      "dim: 2 partitions: 1 eviction { min_frequency: 2 max_age: 100 }", "lr: 0.1 adam {}");
  BufferPool pool;
  const StateHistory history(spec, 1, 5000);
  std::vector<uint64_t> keys = history.keys();
  std::vector<uint64_t> again(keys.begin() + 100, keys.begin() + 3000);
  const auto forwards = history.Create(&pool), backwards = history.Create(&pool);
  for (TablePartition* partition : {forwards.get(), backwards.get()}) {
    StepGradients many, few;
    many.Add(keys, std::vector<float>(2 * keys.size(), 0.5f));
    few.Add(again, std::vector<float>(2 * again.size(), 0.25f));
    partition->Apply(many.views(), StepInfo());
    partition->Apply(few.views(), StepInfo());
    std::reverse(keys.begin(), keys.end());
    std::reverse(again.begin(), again.end());
  }
  EXPECT_EQ(RowsIn(forwards->Save()), again.size());
  EXPECT_TRUE(SamePartition(*forwards, *backwards));
}

// Rows, candidates and removed keys may be written down in any order.
TEST(PartitionStateTest, OrderOfAFileDoesNotMatter) {
  const pb::TableSpec spec =
      SparseTableSpec("dim: 1 partitions: 1", "lr: 0.1 adagrad { initial_accumulator: 2 }");
  BufferPool pool;
  StateHistory history(spec, 1);
  const auto saved = history.Create(&pool), loaded = history.Create(&pool);
  for (int i = 0; i < 5; ++i) history.Step({saved.get()});
  TableState state = CopyState(saved->Save());
  const uint64_t rows = RowsIn(state);
  ASSERT_GT(rows, 10u);
  const auto reverse = [&](int array, size_t size) {
    std::byte* bytes = state.bytes[array].mutable_data();
    for (uint64_t i = 0; i < rows / 2; ++i) {
      std::swap_ranges(bytes + i * size, bytes + (i + 1) * size, bytes + (rows - 1 - i) * size);
    }
  };
  reverse(0, 8);
  reverse(1, 4);
  ASSERT_EQ(state.header.array(2).name(), "slot0");
  ASSERT_TRUE(loaded->Load(state).ok());
  EXPECT_FALSE(SamePartition(*saved, *loaded));  // slots are other rows' now
  reverse(2, 4);
  ASSERT_TRUE(loaded->Load(state).ok());
  EXPECT_TRUE(SamePartition(*saved, *loaded));
}

TEST(PartitionStateTest, ChangesAddUpToTheWhole) {
  uint64_t seed = 0;
  for (const pb::TableSpec& spec : SparseTables()) {
    SCOPED_TRACE(spec.ShortDebugString());
    BufferPool pool;
    StateHistory history(spec, ++seed, 2000);
    const auto saved = history.Create(&pool), loaded = history.Create(&pool);
    for (int i = 0; i < 20; ++i) history.Step({saved.get()}, 400);
    ASSERT_TRUE(loaded->Load(saved->Save()).ok());
    bool any_removed = false;
    for (int change = 0; change < 3; ++change) {
      saved->MarkSaved();
      for (int i = 0; i < 5; ++i) history.Step({saved.get()}, 20);
      const TableState changes = saved->SaveChanges();
      ASSERT_TRUE(changes.header.changes_only());
      ASSERT_TRUE(changes.Check().ok());
      ASSERT_LE(RowsIn(changes), RowsIn(saved->Save()));
      if (spec.sparse().eviction().max_rows() == 0) {
        ASSERT_LT(RowsIn(changes), RowsIn(saved->Save()));
      }
      any_removed |= changes.Find("removed")->size() > 0;
      ASSERT_NE(saved->Digest(), loaded->Digest());
      const absl::Status status = loaded->Load(CopyState(changes));
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(SamePartition(*saved, *loaded)) << change;
    }
    EXPECT_EQ(any_removed, spec.sparse().has_eviction());
    for (int i = 0; i < 5; ++i) history.Step({saved.get(), loaded.get()});
    EXPECT_TRUE(SamePartition(*saved, *loaded));
  }
}

// Changes between two marks are few: those touched, and an eighth of as many beside.
TEST(PartitionStateTest, ChangesAreSmall) {
  const pb::TableSpec spec = SparseTableSpec("dim: 1 partitions: 1", "sgd {}");
  BufferPool pool;
  const StateHistory history(spec, 1, 20000);
  const auto partition = history.Create(&pool);
  const std::vector<uint64_t>& keys = history.keys();
  StepGradients all, some;
  all.Add(keys, std::vector<float>(keys.size(), 1.0f));
  some.Add({keys.begin(), keys.begin() + 500}, std::vector<float>(500, 1.0f));
  partition->Apply(all.views(), StepInfo());
  const uint64_t before = partition->memory_bytes();
  partition->MarkSaved();
  EXPECT_EQ(RowsIn(partition->SaveChanges()), 0u);
  partition->Apply(some.views(), StepInfo());
  const uint64_t rows = RowsIn(partition->SaveChanges());
  EXPECT_GE(rows, 500u);
  EXPECT_LE(rows, 600u);
  EXPECT_GT(partition->memory_bytes(), before);
  EXPECT_LE(partition->memory_bytes(), before + 2 * keys.size() + 4096);
}

TEST(PartitionStateTest, WhereChangesAreNotKnownTheyAreEverything) {
  const pb::TableSpec spec =
      SparseTableSpec("dim: 1 partitions: 1 eviction { max_rows: 16 }", "sgd {}");
  BufferPool pool;
  StateHistory history(spec, 1);
  const auto partition = history.Create(&pool);
  history.Step({partition.get()});
  const auto is_everything = [&] {
    const TableState changes = partition->SaveChanges();
    return !changes.header.changes_only() && Contents(changes) == Contents(partition->Save());
  };
  EXPECT_TRUE(is_everything());
  partition->MarkSaved();
  EXPECT_FALSE(is_everything());
  ASSERT_TRUE(partition->Load(partition->Save()).ok());
  EXPECT_TRUE(is_everything());
  partition->MarkSaved();
  EXPECT_FALSE(is_everything());
  // More keys come and go than are worth a list.
  for (uint64_t i = 0; i < TouchedRows::kMinGone + 100; i += 1000) {
    StepGradients gradients;
    std::vector<uint64_t> keys;
    for (uint64_t k = 0; k < 1000; ++k) keys.push_back(1000000 + i + k);
    gradients.Add(keys, std::vector<float>(1000, 1.0f));
    partition->Apply(gradients.views(), StepInfo());
    partition->EndStep(i / 1000);
  }
  EXPECT_TRUE(is_everything());
}

TEST(PartitionStateTest, ADenseOneIsSavedWhole) {
  BufferPool pool;
  StateHistory history(DenseTableSpec("lr: 0.1 adam {}", 100), 1);
  const auto partition = history.Create(&pool);
  partition->MarkSaved();
  history.Step({partition.get()});
  const TableState state = partition->SaveChanges();
  EXPECT_FALSE(state.header.changes_only());
  EXPECT_EQ(state.header.version(), 1u);
  ASSERT_EQ(state.header.array_size(), 3);
  EXPECT_EQ(state.header.array(2).name(), "slot1");
  // References, without a copy.
  EXPECT_EQ(state.Find("weights")->data(), partition->Read(KeyList()).data());
  EXPECT_EQ(state.Find("slot0")->data(), partition->Save().Find("slot0")->data());
}

TEST(PartitionStateTest, WithoutMemoryNothingChanges) {
  const auto memory = std::make_shared<ScarceMemory>();
  BufferPool pool(0, memory);
  for (const pb::TableSpec& spec : {DenseTableSpec("lr: 0.1 adam {}", 100),
                                    SparseTableSpec("dim: 4 partitions: 1", "lr: 0.1 adam {}")}) {
    StateHistory history(spec, 1);
    const auto partition = history.Create(&pool), same = history.Create(&pool);
    for (int i = 0; i < 5; ++i) history.Step({partition.get(), same.get()});
    const auto gradients = history.Gradients(3);
    {
      const ScarceMemory::Shortage shortage(memory.get());
      EXPECT_THROW(partition->Sum(gradients.views()), std::bad_alloc);
      if (spec.has_sparse()) {
        EXPECT_THROW(partition->Save(), std::bad_alloc);
      }
    }
    EXPECT_TRUE(SamePartition(*partition, *same));
  }
}

// A state, and what may be wrong with it.
class HostileStateTest : public testing::Test {
 protected:
  void Start(const std::string& sparse, const std::string& optimizer) {
    spec_ = SparseTableSpec(sparse, optimizer);
    history_ = std::make_unique<StateHistory>(spec_, 3);
    partition_ = history_->Create(&pool_);
    for (int i = 0; i < 20; ++i) history_->Step({partition_.get()}, 40);
    partition_->MarkSaved();
    for (int i = 0; i < 9; ++i) history_->Step({partition_.get()}, 40);
  }

  // What Load says to this; the partition is as before.
  std::string Refusal(TablePartition& partition, const TableState& state) {
    const std::vector<std::string> before = Contents(partition.Save());
    const absl::Status status = partition.Load(state);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Contents(partition.Save()), before);
    return std::string(status.message());
  }
  std::string Refusal(const std::function<void(TableState*)>& spoil) {
    TableState state = CopyState(partition_->Save());
    spoil(&state);
    return Refusal(*partition_, state);
  }

  static int IndexOf(const TableState& state, const std::string& name) {
    for (int i = 0; i < state.header.array_size(); ++i) {
      if (state.header.array(i).name() == name) return i;
    }
    ADD_FAILURE() << name;
    return 0;
  }
  static void SetAt(TableState* state, const std::string& name, size_t i, uint64_t value,
                    size_t size) {
    std::memcpy(state->bytes[IndexOf(*state, name)].mutable_data() + i * size, &value, size);
  }
  static void Drop(TableState* state, const std::string& name) {
    const int i = IndexOf(*state, name);
    state->header.mutable_array()->DeleteSubrange(i, 1);
    state->bytes.erase(state->bytes.begin() + i);
  }

  BufferPool pool_;
  pb::TableSpec spec_;
  std::unique_ptr<StateHistory> history_;
  std::unique_ptr<TablePartition> partition_;
};

TEST_F(HostileStateTest, EveryArrayMustBeThereAndFit) {
  Start("dim: 3 partitions: 2 row_type: FP16 eviction { min_frequency: 3 max_age: 8 }",
        "lr: 0.1 adam {}");
  const TableState state = partition_->Save();
  std::set<std::string> names;
  for (const pb::StateArray& array : state.header.array()) {
    const std::string& name = array.name();
    names.insert(name);
    EXPECT_THAT(Refusal([&](TableState* s) { Drop(s, name); }), HasSubstr("'" + name + "'"));
    EXPECT_THAT(
        Refusal([&](TableState* s) {
          s->header.mutable_array(IndexOf(*s, name))->set_dtype("U8");
          s->header.mutable_array(IndexOf(*s, name))->clear_shape();
          s->header.mutable_array(IndexOf(*s, name))->add_shape(s->bytes[IndexOf(*s, name)].size());
        }),
        HasSubstr("'" + name + "' is U8 ["));
    EXPECT_THAT(Refusal([&](TableState* s) {
                  Buffer& bytes = s->bytes[IndexOf(*s, name)];
                  bytes = bytes.Slice(0, bytes.size() - 1);
                }),
                HasSubstr("'" + name + "'"));
    // One more than there are others.
    EXPECT_THAT(Refusal([&](TableState* s) {
                  const int i = IndexOf(*s, name);
                  pb::StateArray* changed = s->header.mutable_array(i);
                  changed->set_shape(0, changed->shape(0) + 1);
                  uint64_t bytes = 0;
                  ASSERT_TRUE(ArrayBytes(*changed, &bytes).ok());
                  s->bytes[i] = Buffer::Copy(std::string(bytes, '\1'));
                }),
                HasSubstr("table 'rows', partition 0: "));
  }
  EXPECT_EQ(names, (std::set<std::string>{"keys", "rows", "slot0", "slot1", "updates", "ticks",
                                          "counters", "candidates", "candidate_counts"}));
  EXPECT_THAT(Refusal([](TableState* s) { s->Add("slot2", "U8", {1}, Buffer::Copy("x")); }),
              HasSubstr("'slot2' (U8 [1]) is not one of this table's"));
  EXPECT_THAT(Refusal([](TableState* s) { s->header.clear_version(); }), HasSubstr("no version"));
  EXPECT_THAT(Refusal([](TableState* s) { s->bytes.pop_back(); }), HasSubstr("9 arrays"));
  EXPECT_THAT(Refusal([](TableState* s) { s->header.mutable_array(0)->set_name("rows"); }),
              HasSubstr("twice"));
  EXPECT_THAT(Refusal([](TableState* s) {
                s->header.mutable_array(0)->set_shape(0, std::numeric_limits<uint64_t>::max());
              }),
              HasSubstr("'keys' is of shape [18446744073709551615]"));
  EXPECT_TRUE(partition_->Load(state).ok());
}

TEST_F(HostileStateTest, KeysMustBeOfThisPartitionAndDistinct) {
  Start("dim: 3 partitions: 2 eviction { min_frequency: 3 max_age: 8 }", "lr: 0.1 adam {}");
  uint64_t foreign = 1;
  while (SparseLayout::Create(spec_)->PartitionOf(foreign) != 1) ++foreign;
  for (const std::string name : {"keys", "candidates"}) {
    EXPECT_THAT(Refusal([&](TableState* s) { SetAt(s, name, 1, foreign, 8); }),
                HasSubstr("array '" + name + "': "));
    const auto repeat = [&](TableState* s) {
      const std::byte* first = s->bytes[IndexOf(*s, name)].data();
      std::memcpy(s->bytes[IndexOf(*s, name)].mutable_data() + 16, first, 8);
    };
    EXPECT_THAT(Refusal(repeat), HasSubstr("array '" + name + "' has key"));
  }
  for (const uint64_t count : {0, 3, 1000000, -1}) {
    EXPECT_THAT(Refusal([&](TableState* s) { SetAt(s, "candidate_counts", 1, count, 4); }),
                HasSubstr("allowed are 1 to 2"));
  }
}

TEST_F(HostileStateTest, ChangesMustFitToo) {
  Start("dim: 3 partitions: 2 eviction { max_age: 8 }", "lr: 0.1 sgd {}");
  const TableState changes = partition_->SaveChanges();
  ASSERT_TRUE(changes.header.changes_only());
  ASSERT_GT(changes.Find("removed")->size(), 16u);
  TableState state = CopyState(changes);
  std::memcpy(state.bytes[IndexOf(state, "removed")].mutable_data(), state.Find("keys")->data(), 8);
  EXPECT_THAT(Refusal(*partition_, state), HasSubstr("in 'keys' and in 'removed'"));
  state = CopyState(changes);
  std::memcpy(state.bytes[IndexOf(state, "removed")].mutable_data(),
              state.Find("removed")->data() + 8, 8);
  EXPECT_THAT(Refusal(*partition_, state), HasSubstr("'removed' has key"));
  state = CopyState(changes);
  state.header.set_version(state.header.version() - 1);
  EXPECT_THAT(Refusal(*partition_, state), HasSubstr("changes up to version 28"));
  state = CopyState(changes);
  state.header.clear_changes_only();
  EXPECT_THAT(Refusal(*partition_, state), HasSubstr("'removed'"));

  BufferPool pool;
  const auto dense = StateHistory(DenseTableSpec("sgd {}", 4), 1).Create(&pool);
  state = CopyState(dense->Save());
  state.header.set_changes_only(true);
  EXPECT_THAT(Refusal(*dense, state), HasSubstr("holds changes only"));
}

TEST_F(HostileStateTest, DenseArraysMustFit) {
  BufferPool pool;
  const auto four = StateHistory(DenseTableSpec("adam {}", 4), 1).Create(&pool);
  const auto five = StateHistory(DenseTableSpec("adam {}", 5), 1).Create(&pool);
  const auto sgd = StateHistory(DenseTableSpec("sgd {}", 4), 1).Create(&pool);
  EXPECT_THAT(Refusal(*four, five->Save()),
              HasSubstr("table 'weights', partition 0: array 'weights' is F32 [5], allowed here is "
                        "F32 [4]"));
  EXPECT_THAT(Refusal(*sgd, four->Save()), HasSubstr("'slot0' (F32 [4]) is not one"));
  EXPECT_THAT(Refusal(*four, sgd->Save()), HasSubstr("no array 'slot0', wanted is F32 [4]"));
  EXPECT_THAT(Refusal(*four, TableState()), HasSubstr("no version"));
}

// Whatever is spoilt: refused, or loaded into a partition that works.
TEST_F(HostileStateTest, RandomDamage) {
  Start("dim: 3 partitions: 2 row_type: BF16 eviction { min_frequency: 3 max_age: 8 max_rows: 50 }",
        "lr: 0.1 adam {}");
  std::mt19937_64 random(5);
  const TableState whole = partition_->Save(), changes = partition_->SaveChanges();
  int refused = 0, loaded = 0;
  for (int round = 0; round < 3000; ++round) {
    TableState state = CopyState(round % 2 == 0 ? whole : changes);
    for (uint64_t damage = 0; damage <= random() % 2; ++damage) {
      const int i = static_cast<int>(random() % state.bytes.size());
      pb::StateArray* const array = state.header.mutable_array(i);
      Buffer& bytes = state.bytes[i];
      switch (random() % 5) {
        case 0:
          array->mutable_shape()->Set(0, random() >> random() % 64);
          break;
        case 1:
          array->add_shape(random() % 3);
          break;
        case 2:
          bytes = bytes.Slice(0, random() % (bytes.size() + 1));
          break;
        case 3:
          array->set_name(state.header.array(random() % state.bytes.size()).name());
          break;
        default:
          if (bytes.size() > 0) bytes.mutable_data()[random() % bytes.size()] ^= std::byte{0x40};
      }
    }
    ASSERT_TRUE(partition_->Load(whole).ok());
    const absl::Status status = partition_->Load(state);
    ++(status.ok() ? loaded : refused);
    ASSERT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument) << status;
    history_->Step({partition_.get()});
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(loaded, 100);
}

}  // namespace
}  // namespace parley
