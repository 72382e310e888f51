// Digests: the same for the same state, another for any other.
#include "ps/table/state_digest.h"

#include <numeric>

#include "tests/unit/table/state_testing.h"

namespace parley {
namespace {

TEST(StateDigestTest, EveryBitOfBytesShows) {
  std::set<uint64_t> seen;
  size_t digests = 0;
  for (const size_t size : {0, 1, 3, 4, 7, 8, 9, 31, 32, 33, 40, 63, 64, 65, 100, 200}) {
    std::vector<char> bytes(size, 0);
    const auto add = [&] {
      seen.insert(DigestBytes(bytes.data(), size, 1));
      ++digests;
    };
    add();
    for (size_t bit = 0; bit < 8 * size; ++bit) {
      bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
      add();
      bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    }
  }
  EXPECT_EQ(seen.size(), digests);
}

TEST(StateDigestTest, AlignmentDoesNotShowAndWhatCameBeforeDoes) {
  const std::vector<float> values = RandomVector(1, 1000);
  const uint64_t digest = DigestBytes(values.data(), values.size() * sizeof(float), 5);
  for (size_t shift = 0; shift < 9; ++shift) {
    const ShiftedFloats shifted(values, shift);
    EXPECT_EQ(DigestBytes(shifted.get(), values.size() * sizeof(float), 5), digest);
  }
  for (int bit = 0; bit < 64; ++bit) {
    EXPECT_NE(DigestBytes(values.data(), values.size() * sizeof(float), 5 ^ uint64_t{1} << bit),
              digest);
  }
  std::vector<float> swapped = values;
  std::swap(swapped[8], swapped[16]);  // of one lane
  EXPECT_NE(DigestBytes(swapped.data(), values.size() * sizeof(float), 5), digest);
  swapped = values;
  std::swap(swapped[0], swapped[2]);  // of two
  EXPECT_NE(DigestBytes(swapped.data(), values.size() * sizeof(float), 5), digest);
}

// Loads the state with each bit flipped that `chosen` takes. A state that is refused has no digest.
void ExpectBitsShow(const pb::TableSpec& spec, uint64_t every) {
  SCOPED_TRACE(spec.ShortDebugString());
  BufferPool pool;
  StateHistory history(spec, 2, 12);
  const auto partition = history.Create(&pool), other = history.Create(&pool);
  for (int i = 0; i < 10; ++i) history.Step({partition.get()}, 4);
  const uint64_t digest = partition->Digest();
  const TableState state = partition->Save();
  uint64_t tried = 0, loaded = 0;
  for (size_t a = 0; a < state.bytes.size(); ++a) {
    for (uint64_t bit = 0; bit < 8 * state.bytes[a].size(); bit += every) {
      TableState flipped = state;
      flipped.bytes[a] = Buffer::Copy(BytesOf(state.bytes[a]));
      flipped.bytes[a].mutable_data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      ++tried;
      if (!other->Load(flipped).ok()) continue;
      ++loaded;
      ASSERT_NE(other->Digest(), digest) << state.header.array(a).name() << " bit " << bit;
    }
  }
  EXPECT_GT(loaded, tried * 3 / 4);
  TableState later = state;
  later.header.set_version(state.header.version() + 1);
  ASSERT_TRUE(other->Load(later).ok());
  EXPECT_NE(other->Digest(), digest);
  ASSERT_TRUE(other->Load(state).ok());
  EXPECT_EQ(other->Digest(), digest);
}

TEST(StateDigestTest, EveryBitOfAStateShows) {
  ExpectBitsShow(DenseTableSpec("lr: 0.1 adam { amsgrad: true }", 37), 1);
  ExpectBitsShow(DenseTableSpec("lr: 0.1 sgd { momentum: 0.9 }", 3000), 67);
  ExpectBitsShow(SparseTableSpec("dim: 3 partitions: 1 row_type: FP16 eviction { min_frequency: 3 "
                                 "max_age: 100 }",
                                 "lr: 0.1 adam {}"),
                 1);
  ExpectBitsShow(SparseTableSpec("dim: 16 partitions: 1", "lr: 0.1 row_adagrad {}"), 1);
}

// What one row has is not what another has.
TEST(StateDigestTest, RowsBelongToTheirKeys) {
  const pb::TableSpec spec = SparseTableSpec("dim: 2 partitions: 1 init: ZERO", "lr: 1 sgd {}");
  BufferPool pool;
  const StateHistory history(spec, 1);
  const auto digest = [&](const std::vector<uint64_t>& keys, const std::vector<float>& values) {
    const auto partition = history.Create(&pool);
    StepGradients gradients;
    gradients.Add(keys, values);
    partition->Apply(gradients.views(), StepInfo());
    return partition->Digest();
  };
  const uint64_t once = digest({5, 6}, {1, 2, 3, 4});
  EXPECT_EQ(digest({6, 5}, {3, 4, 1, 2}), once);
  EXPECT_NE(digest({6, 5}, {1, 2, 3, 4}), once);
  EXPECT_NE(digest({5, 7}, {1, 2, 3, 4}), once);
  EXPECT_NE(digest({5, 6}, {1, 2, 4, 3}), once);
}

}  // namespace
}  // namespace parley
