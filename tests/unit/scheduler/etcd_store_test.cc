#include "scheduler/etcd_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "scheduler/etcd_client.h"
#include "tests/unit/scheduler/etcd_testing.h"
#include "tests/unit/scheduler/store_testing.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(EtcdStoreTest, KeepsWhatWasSavedLastUnderTheJobsKeys) {
  const std::string binary("one\0\n\xff\"", 7);
  EtcdStore store(Options("host:1"));
  auto opened = OpenAndWait(&store);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(*opened, std::nullopt);
  ASSERT_TRUE(SaveAndWait(&store, "zero").ok());
  ASSERT_TRUE(SaveAndWait(&store, binary).ok());
  EXPECT_EQ(OpenAndWait(&store).value(), binary);
  EXPECT_EQ(client().Get(Key("state")).value(), binary);
  EXPECT_EQ(client().Get(Key("leader")).value(), "host:1");
}

TEST_F(EtcdStoreTest, AStateOfAMebibyte) {
  EtcdStore store(Options("host:1"));
  ASSERT_TRUE(OpenAndWait(&store).ok());
  const std::string large(1 << 20, '\xfe');
  const absl::Status saved = SaveAndWait(&store, large);
  ASSERT_TRUE(saved.ok()) << saved;
  EXPECT_EQ(OpenAndWait(&store).value(), large);
  const absl::Status refused = SaveAndWait(&store, std::string(2 << 20, 'x'));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2097152 bytes"));
}

TEST_F(EtcdStoreTest, TheSecondWaitsUntilTheFirstHasForgotten) {
  EtcdStore first(Options("host:1"));
  ASSERT_TRUE(OpenAndWait(&first).ok());
  ASSERT_TRUE(SaveAndWait(&first, "of the first").ok());
  std::vector<std::string> log;
  EtcdStore::Options options = Options("host:2");
  bool released = false;
  // Only once it waits does the first let go.
  options.log = [&](const std::string& line) {
    log.push_back(line);
    if (!std::exchange(released, true)) {
      EXPECT_TRUE(first.Forget().ok());
    }
  };
  EtcdStore second(std::move(options));
  auto opened = OpenAndWait(&second);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(*opened, std::nullopt) << "the job was over";
  EXPECT_THAT(log, ElementsAre(HasSubstr("host:1 leads job '")));
}

TEST_F(EtcdStoreTest, TheSecondIsToldThatTheJobItWaitedForIsOver) {
  EtcdStore first(Options("host:1"));
  ASSERT_TRUE(OpenAndWait(&first).ok());
  ASSERT_TRUE(SaveAndWait(&first, "of the first").ok());
  EtcdStore second(Options("host:2"));
  absl::Status told;
  OnALoop(&second, [&](LoopEnv* env) {
    second.Open([&, env](const absl::StatusOr<std::optional<std::string>>& opened) {
      told = opened.status();
      env->Stop();
    });
    // It has found a leader and a state by then.
    env->After(absl::Seconds(1), [&] { EXPECT_TRUE(first.Forget().ok()); });
  });
  EXPECT_EQ(told.code(), absl::StatusCode::kCancelled) << told;
  EXPECT_THAT(std::string(told.message()), HasSubstr("host:1 led it to its end"));
  EXPECT_EQ(client().Get(Key("leader")).value(), std::nullopt) << "nobody leads what is over";
}

TEST_F(EtcdStoreTest, WhoCannotProveItsLeaseForAsLongAsItLastsIsTold) {
  EtcdStore::Options options = Options("host:1");
  absl::Status told;
  LoopEnv* loop = nullptr;
  options.on_lost = [&](const absl::Status& status) {
    told = status;
    etcd->GoOn();
    loop->Stop();
  };
  EtcdStore store(std::move(options));
  ASSERT_TRUE(OpenAndWait(&store).ok());
  etcd->Pause();
  OnALoop(&store, [&](LoopEnv* env) { loop = env; });
  EXPECT_EQ(told.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(EtcdStoreTest, TheSecondGoesOnWhereADeadLeaderStopped) {
  {
    EtcdStore first(Options("host:1"));
    ASSERT_TRUE(OpenAndWait(&first).ok());
    ASSERT_TRUE(SaveAndWait(&first, "of the first").ok());
  }  // its lease runs out by itself
  bool waited = false;
  EtcdStore::Options options = Options("host:2");
  options.log = [&](const std::string&) { waited = true; };
  EtcdStore second(std::move(options));
  EXPECT_EQ(OpenAndWait(&second).value(), "of the first");
  EXPECT_TRUE(waited);
}

TEST_F(EtcdStoreTest, ALeaderKeepsItsLeaseAlive) {
  EtcdStore store(Options("host:1"));
  ASSERT_TRUE(OpenAndWait(&store).ok());
  // Three times as long as the lease lasts.
  OnALoop(&store, [&](LoopEnv* env) { env->After(absl::Seconds(6), [env] { env->Stop(); }); });
  EXPECT_EQ(client().Get(Key("leader")).value(), "host:1");
  EXPECT_TRUE(SaveAndWait(&store, "still here").ok());
}

TEST_F(EtcdStoreTest, WhoLostTheLeaseCanSaveNothing) {
  EtcdStore first(Options("host:1"));
  ASSERT_TRUE(OpenAndWait(&first).ok());
  ASSERT_TRUE(SaveAndWait(&first, "of the first").ok());
  // As after a long stop: nobody kept the lease alive.
  EtcdStore second(Options("host:2"));
  ASSERT_TRUE(OpenAndWait(&second).ok());
  const absl::Status late = SaveAndWait(&first, "late");
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(late.message()), HasSubstr("another scheduler may lead it now"));
  EXPECT_EQ(client().Get(Key("state")).value(), "of the first");
  // Nor does it take away what is the second's.
  first.Forget().IgnoreError();
  EXPECT_EQ(client().Get(Key("leader")).value(), "host:2");
  EXPECT_EQ(client().Get(Key("state")).value(), "of the first");
}

TEST_F(EtcdStoreTest, WhoLostTheLeaseIsTold) {
  EtcdStore::Options options = Options("host:1");
  absl::Status told;
  LoopEnv* loop = nullptr;
  options.on_lost = [&](const absl::Status& status) {
    told = status;
    loop->Stop();
  };
  EtcdStore store(std::move(options));
  ASSERT_TRUE(OpenAndWait(&store).ok());
  // As after a long stop: the lease has run out when it wakes.
  while (client().Get(Key("leader")).value().has_value()) poll(nullptr, 0, 50);
  OnALoop(&store, [&](LoopEnv* env) { loop = env; });
  EXPECT_EQ(told.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(EtcdStoreTest, AnEtcdThatIsAwayForMomentsIsBorne) {
  EtcdStore::Options options = Options("host:1");
  bool lost = false;
  options.on_lost = [&](const absl::Status&) { lost = true; };
  options.ttl = absl::Seconds(10);
  EtcdStore store(std::move(options));
  ASSERT_TRUE(OpenAndWait(&store).ok());
  etcd->Pause();
  absl::Status saved = absl::UnknownError("not called");
  OnALoop(&store, [&](LoopEnv* env) {
    store.Save("in spite of it", [&, env](absl::Status status) {
      saved = std::move(status);
      env->Stop();
    });
    env->After(absl::Milliseconds(300), [] { etcd->GoOn(); });
  });
  EXPECT_TRUE(saved.ok()) << saved;
  EXPECT_FALSE(lost);
}

TEST(EtcdClient, NobodyThere) {
  const std::string address = absl::StrCat("127.0.0.1:", FreePorts(1).at(0));
  EtcdStore store(
      {.addresses = {address}, .job = "job", .self = "host:1", .ttl = absl::Seconds(2)});
  const absl::Status status = OpenAndWait(&store).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("etcd at ", address, " does not answer: ")));
}

TEST(EtcdClient, AddressesOfOneClusterAreTriedInTurn) {
  if (!etcd->installed()) GTEST_SKIP() << "etcd is not installed (Debian: etcd-server)";
  EtcdClient client({absl::StrCat("127.0.0.1:", FreePorts(1).at(0)), etcd->address()},
                    absl::Seconds(5));
  EXPECT_TRUE(client.Get("anything").ok());
}

TEST(EtcdClient, ParsesAddresses) {
  EXPECT_THAT(EtcdClient::ParseAddresses("etcd://a:2379").value(), ElementsAre("a:2379"));
  EXPECT_THAT(EtcdClient::ParseAddresses("etcd://a:2379,[::1]:5,10.0.0.1:6").value(),
              ElementsAre("a:2379", "[::1]:5", "10.0.0.1:6"));
  for (const char* bad :
       {"etcd://", "etcd://a", "etcd://a:", "etcd://a:0", "etcd://a:65536", "etcd://:1",
        "http://a:1", "etcd://a:1,", "etcd://a:1/x", "etcd://u@a:1", "etcd://a:1x"}) {
    const absl::Status status = EtcdClient::ParseAddresses(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("'", bad, "'")), HasSubstr("allowed: etcd://")));
  }
}

}  // namespace
}  // namespace parley
