// ReplayGuard: by hand, and against a set that remembers everything.
#include "ps/sync/replay_guard.h"

#include <set>

#include "gmock/gmock.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {
namespace {

using testing::HasSubstr;
using Verdict = ReplayGuard::Verdict;
constexpr uint64_t kWindow = ReplayGuard::kWindow;

// Checks and, if new, commits; an error is a failure.
Verdict Take(ReplayGuard* guard, uint32_t worker, uint32_t incarnation, uint64_t sequence,
             uint64_t acked_below) {
  Verdict verdict = Verdict::kDuplicate;
  const absl::Status status = guard->Check(worker, incarnation, sequence, acked_below, &verdict);
  EXPECT_TRUE(status.ok()) << status;
  if (status.ok() && verdict == Verdict::kNew) guard->Commit(worker, sequence, acked_below);
  return verdict;
}

absl::Status CheckOnly(const ReplayGuard& guard, uint32_t worker, uint32_t incarnation,
                       uint64_t sequence, uint64_t acked_below) {
  Verdict verdict;
  return guard.Check(worker, incarnation, sequence, acked_below, &verdict);
}

TEST(ReplayGuardTest, OvertakingPushesAreEachTakenOnce) {
  ReplayGuard guard({1, 1});
  EXPECT_EQ(Take(&guard, 0, 1, 2, 1), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 0, 1, 1, 1), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 0, 1, 2, 1), Verdict::kDuplicate);
  EXPECT_EQ(Take(&guard, 0, 1, 1, 0), Verdict::kDuplicate);
  EXPECT_EQ(Take(&guard, 1, 1, 1, 1), Verdict::kNew);
}

TEST(ReplayGuardTest, CheckAloneRemembersNothing) {
  ReplayGuard guard({1});
  EXPECT_TRUE(CheckOnly(guard, 0, 1, 1, 1).ok());
  EXPECT_EQ(Take(&guard, 0, 1, 1, 1), Verdict::kNew);
}

TEST(ReplayGuardTest, RefusalsNameWhatIsWrong) {
  ReplayGuard guard({7, 8});
  const absl::Status other = CheckOnly(guard, 1, 7, 1, 1);
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), HasSubstr("incarnation is 7, but the current one is 8"));
  const absl::Status nobody = CheckOnly(guard, 2, 7, 1, 1);
  EXPECT_EQ(nobody.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(nobody.message(), HasSubstr("worker is 2; allowed: below 2"));
  EXPECT_THAT(CheckOnly(guard, 0, 7, 0, 0).message(), HasSubstr("sequence is 0"));
  const absl::Status ahead = CheckOnly(guard, 0, 7, 4, 5);
  EXPECT_EQ(ahead.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ahead.message(), HasSubstr("acked_below is 5; allowed: up to its sequence, 4"));
}

TEST(ReplayGuardTest, TheWindowIsBoundedToTheElement) {
  ReplayGuard guard({1});
  for (const uint64_t acked : {uint64_t{0}, uint64_t{1}}) {
    EXPECT_TRUE(CheckOnly(guard, 0, 1, kWindow, acked).ok());
    EXPECT_EQ(CheckOnly(guard, 0, 1, kWindow + 1, acked).code(),
              absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(Take(&guard, 0, 1, 1, 1), Verdict::kNew);
  // Sequence kWindow + 1 falls on the place of 1, which is acknowledged.
  EXPECT_EQ(Take(&guard, 0, 1, kWindow + 1, 2), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 0, 1, 1, 1), Verdict::kDuplicate);
  EXPECT_EQ(Take(&guard, 0, 1, 2, 2), Verdict::kNew);
  // A leap forgets the whole window, and nothing in it comes back as new.
  EXPECT_EQ(Take(&guard, 0, 1, 10 * kWindow, 10 * kWindow), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 0, 1, kWindow + 1, 2), Verdict::kDuplicate);
  EXPECT_EQ(Take(&guard, 0, 1, 3, 2), Verdict::kDuplicate);
  constexpr uint64_t kLast = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(Take(&guard, 0, 1, kLast, kLast), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 0, 1, kLast, kLast), Verdict::kDuplicate);
}

TEST(ReplayGuardTest, ANewIncarnationStartsAgainAndTheOldOneIsRefused) {
  ReplayGuard guard({1, 1});
  EXPECT_EQ(Take(&guard, 0, 1, 1, 1), Verdict::kNew);
  EXPECT_EQ(Take(&guard, 1, 1, 1, 1), Verdict::kNew);
  guard.OnNewIncarnation(0, 2);
  EXPECT_EQ(CheckOnly(guard, 0, 1, 2, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Take(&guard, 0, 2, 1, 1), Verdict::kNew);
  guard.OnNewIncarnation(0, 2);  // said twice
  EXPECT_EQ(Take(&guard, 0, 2, 1, 1), Verdict::kDuplicate);
  EXPECT_EQ(Take(&guard, 1, 1, 1, 1), Verdict::kDuplicate);
}

// A client with many pushes in flight over a network that duplicates, delays and reorders: every
// arrival is compared with a set that never forgets.
TEST(ReplayGuardTest, AgreesWithASetThatNeverForgets) {
  struct Push {
    uint32_t incarnation;
    uint64_t sequence, acked_below;
  };
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Choices choices(seed);
    const uint64_t in_flight = seed % 3 == 0 ? kWindow : 1 + choices.Below(40);
    ReplayGuard guard({1});
    uint32_t incarnation = 1;
    std::set<uint64_t> seen, acked;
    uint64_t sent = 0, acked_below = 1;
    std::vector<Push> network;  // what was ever sent may arrive again at any time
    for (int event = 0; event < 2500; ++event) {
      if (choices.OneIn(700)) {
        guard.OnNewIncarnation(0, ++incarnation);
        seen.clear(), acked.clear(), sent = 0, acked_below = 1;
      }
      if (sent + 1 - acked_below < in_flight && !choices.OneIn(3)) {
        network.push_back({incarnation, ++sent, acked_below});
      }
      if (network.empty()) continue;
      // Mostly something recent, sometimes anything.
      const uint64_t age = choices.OneIn(4) ? choices.Below(network.size())
                                            : choices.Below(std::min<uint64_t>(network.size(), 30));
      const Push push = network[network.size() - 1 - age];
      Verdict verdict;
      const absl::Status status =
          guard.Check(0, push.incarnation, push.sequence, push.acked_below, &verdict);
      if (push.incarnation != incarnation) {
        ASSERT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << "seed " << seed;
        continue;
      }
      ASSERT_TRUE(status.ok()) << status << " seed " << seed << " event " << event;
      ASSERT_EQ(verdict == Verdict::kNew, !seen.contains(push.sequence))
          << "seed " << seed << " event " << event << " sequence " << push.sequence;
      if (verdict == Verdict::kNew) guard.Commit(0, push.sequence, push.acked_below);
      seen.insert(push.sequence);
      if (!choices.OneIn(3)) acked.insert(push.sequence);  // else the acknowledgement is lost
      while (acked.contains(acked_below)) ++acked_below;
    }
    ASSERT_GT(seen.size(), 0u);
  }
}

}  // namespace
}  // namespace parley
