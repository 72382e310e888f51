// What an EtcdStore makes of hosts that are gone, of hiccups, and of answers and writes that come
// late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <chrono>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "scheduler/etcd_client.h"
#include "scheduler/etcd_store.h"
#include "tests/unit/scheduler/etcd_testing.h"
#include "tests/unit/scheduler/store_testing.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

using Reply = std::optional<EtcdProxy::Reply>;

// A request with these bytes in it, as a key or as a value.
bool Has(const std::string& body, const std::string& bytes) {
  return absl::StrContains(body, absl::StrCat("\"", absl::Base64Escape(bytes), "\""));
}

absl::Duration SteadyNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

void Await(const std::atomic<bool>& what) {
  for (int i = 0; i < 2000 && !what; ++i) poll(nullptr, 0, 10);
}

class EtcdFaultsTest : public EtcdStoreTest {
 protected:
  EtcdStore::Options Through(const EtcdProxy& proxy, const std::string& self) {
    EtcdStore::Options options = Options(self);
    options.addresses = {proxy.address()};
    return options;
  }
  bool IsSaveOf(const std::string& path, const std::string& body, const std::string& state) {
    return path == "/v3/kv/txn" && Has(body, state);
  }
  bool AsksForState(const std::string& path, const std::string& body) {
    return path == "/v3/kv/range" && Has(body, Key("state"));
  }
  // Leaves a state that somebody goes on from once the lease has run out.
  void Leave(const std::string& state) {
    EtcdStore store(Options("host:1"));
    ASSERT_TRUE(OpenAndWait(&store).ok());
    ASSERT_TRUE(SaveAndWait(&store, state).ok());
  }
};

TEST_F(EtcdFaultsTest, AHostThatIsGoneDoesNotCostTheLease) {
  for (const bool gone : {true, false}) {
    SilentHost silent(gone);
    EtcdStore::Options options = Options("host:1");
    options.job += gone ? "/gone" : "/hung";
    options.addresses = {silent.address(), etcd->address()};
    bool lost = false;
    LoopEnv* loop = nullptr;
    options.on_lost = [&](const absl::Status&) {
      lost = true;
      loop->Stop();
    };
    EtcdStore store(std::move(options));
    OnALoop(&store, [&](LoopEnv* env) {
      loop = env;
      store.Open([&, env](const absl::StatusOr<std::optional<std::string>>& opened) {
        EXPECT_TRUE(opened.ok()) << opened.status();
        env->After(absl::Seconds(3), [env] { env->Stop(); });
      });
    });
    EXPECT_FALSE(lost) << (gone ? "gone" : "hung");
  }
}

TEST_F(EtcdFaultsTest, AnAddressThatSaysNothingIsNotAskedFirstAgain) {
  SilentHost silent(false);
  EtcdClient client({silent.address(), etcd->address()}, absl::Seconds(3));
  ASSERT_TRUE(client.Get("anything").ok());
  const absl::Duration begin = SteadyNow();
  ASSERT_TRUE(client.Get("anything").ok());
  EXPECT_LT(SteadyNow() - begin, absl::Seconds(3));
}

// A member that has lost its leader says so, or that time is up; another may have one.
TEST_F(EtcdFaultsTest, AMemberThatIsWorseOffIsPassedOver) {
  for (
      const char* refusal :
      {R"({"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14})",
       R"({"error":"context deadline exceeded","message":"context deadline exceeded","code":4})"}) {
    EtcdProxy proxy("", [&](const std::string&, const std::string&) {
      return Reply({503, refusal});
    });
    EtcdClient client({proxy.address(), etcd->address()}, absl::Seconds(3));
    const absl::Status status = client.Get("anything").status();
    EXPECT_TRUE(status.ok()) << status;
  }
}

// etcd counts from when it is asked for the lease, however late its answers are.
TEST_F(EtcdFaultsTest, ALeaseIsAsOldAsItsFirstQuestion) {
  std::atomic<bool> granted = false;
  absl::Duration asked;
  EtcdProxy proxy(etcd->address(), [&](const std::string& path, const std::string&) -> Reply {
    if (path == "/v3/lease/keepalive") return Reply({503, "{}"});
    if (path == "/v3/lease/grant") {
      asked = SteadyNow();
      granted = true;
    }
    if (granted) poll(nullptr, 0, 1000);
    return std::nullopt;
  });
  EtcdStore::Options options = Through(proxy, "host:1");
  options.ttl = absl::Seconds(5);
  absl::Duration lost;
  LoopEnv* loop = nullptr;
  options.on_lost = [&](const absl::Status&) {
    lost = SteadyNow();
    loop->Stop();
  };
  EtcdStore store(std::move(options));
  ASSERT_TRUE(OpenAndWait(&store).ok());  // after the answers to three questions
  OnALoop(&store, [&](LoopEnv* env) { loop = env; });
  ASSERT_TRUE(granted);
  EXPECT_GT(lost - asked, absl::Seconds(4));
  EXPECT_LT(lost - asked, absl::Seconds(7));
}

TEST_F(EtcdFaultsTest, WhoTakesOverBearsHiccups) {
  Leave("of the first");
  std::atomic<int> hiccups = 0, waits = 0;
  std::atomic<bool> granted = false;
  EtcdProxy proxy(etcd->address(), [&](const std::string& path, const std::string& body) -> Reply {
    if (path == "/v3/lease/grant") granted = true;
    // While it waits; the first answer says for whom.
    if (path == "/v3/kv/range" && Has(body, Key("leader"))) {
      switch (waits++) {
        case 1:
          return Reply({429, R"({"message":"etcdserver: too many requests","code":8})"});
        case 2:
          return Reply({504, R"({"message":"context deadline exceeded","code":4})"});
      }
    }
    if (!granted || !AsksForState(path, body)) return std::nullopt;
    switch (hiccups++) {
      case 0:
        return Reply({503, R"({"message":"etcdserver: leader changed","code":14})"});
      case 1:
        return Reply({429, R"({"message":"etcdserver: too many requests","code":8})"});
      case 2:
        return Reply({504, R"({"message":"context deadline exceeded","code":4})"});
      case 4:  // the next time it is opened
        return Reply({503, "a proxy's page"});
    }
    return std::nullopt;
  });
  EtcdStore::Options options = Through(proxy, "host:2");
  options.ttl = absl::Seconds(10);
  EtcdStore second(std::move(options));
  absl::StatusOr<std::optional<std::string>> opened = OpenAndWait(&second);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(*opened, "of the first");
  EXPECT_EQ(hiccups, 4);
  opened = OpenAndWait(&second);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(hiccups, 6);
  EXPECT_TRUE(SaveAndWait(&second, "of the second").ok());
}

TEST_F(EtcdFaultsTest, WhoCannotOpenWithinItsLeaseTakesAnother) {
  Leave("of the first");
  std::atomic<bool> granted = false;
  absl::Duration asked;
  EtcdProxy proxy(etcd->address(), [&](const std::string& path, const std::string& body) -> Reply {
    if (path == "/v3/lease/grant" && !granted) {
      asked = SteadyNow();
      granted = true;
    }
    const bool bad = granted && AsksForState(path, body) && SteadyNow() - asked < absl::Seconds(3);
    return bad ? Reply({503, "{}"}) : std::nullopt;
  });
  EtcdStore::Options options = Through(proxy, "host:2");
  bool lost = false;
  options.on_lost = [&](const absl::Status&) { lost = true; };
  EtcdStore second(std::move(options));
  absl::StatusOr<std::optional<std::string>> opened = OpenAndWait(&second);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(*opened, "of the first");
  EXPECT_TRUE(SaveAndWait(&second, "of the second").ok());
  EXPECT_FALSE(lost);
}

TEST_F(EtcdFaultsTest, ASaveThatComesLateUndoesNoOther) {
  std::atomic<bool> released = false;
  {
    EtcdProxy proxy(etcd->address(),
                    [&](const std::string& path, const std::string& body) -> Reply {
                      if (IsSaveOf(path, body, "early")) Await(released);
                      return std::nullopt;
                    });
    EtcdStore::Options options = Through(proxy, "host:1");
    options.addresses.push_back(etcd->address());
    options.ttl = absl::Seconds(3);
    EtcdStore store(std::move(options));
    ASSERT_TRUE(OpenAndWait(&store).ok());
    ASSERT_TRUE(SaveAndWait(&store, "before").ok());
    ASSERT_TRUE(SaveAndWait(&store, "early").ok()) << "by the other address";
    ASSERT_TRUE(SaveAndWait(&store, "later").ok());
    released = true;
  }  // the held one has been answered
  EXPECT_EQ(client().Get(Key("state")).value(), "later");
}

// Whether the same is saved again then, or what has become of it meanwhile.
TEST_F(EtcdFaultsTest, ASaveThatWasGivenUpAndIsDoneAfterAllIsNoOtherLeader) {
  for (const std::string next : {"early", "later"}) {
    std::atomic<bool> released = false;
    EtcdProxy proxy(etcd->address(),
                    [&](const std::string& path, const std::string& body) -> Reply {
                      if (IsSaveOf(path, body, "early")) Await(released);
                      return std::nullopt;
                    });
    EtcdStore store(Through(proxy, "host:1"));
    ASSERT_TRUE(OpenAndWait(&store).ok());
    EXPECT_EQ(SaveAndWait(&store, "early").code(), absl::StatusCode::kUnavailable);
    released = true;
    while (client().Get(Key("state")).value() != "early") poll(nullptr, 0, 20);
    const absl::Status saved = SaveAndWait(&store, next);
    EXPECT_TRUE(saved.ok()) << saved;
    EXPECT_EQ(client().Get(Key("state")).value(), next);
    EXPECT_TRUE(SaveAndWait(&store, "last").ok());
    EXPECT_TRUE(store.Forget().ok());
  }
}

// The first save of all: when the job is over there is no state, as there was none before it.
TEST_F(EtcdFaultsTest, ASaveThatComesLateDoesNotBringBackAJobThatIsOver) {
  std::atomic<bool> released = false;
  {
    const auto hook = [&](const std::string& path, const std::string&) -> Reply {
      if (path == "/v3/lease/revoke") {
        released = true;
        poll(nullptr, 0, 500);
      }
      return std::nullopt;
    };
    EtcdProxy other(etcd->address(), hook);
    EtcdProxy slow(etcd->address(), [&](const std::string& path, const std::string& body) -> Reply {
      if (IsSaveOf(path, body, "first")) Await(released);
      return hook(path, body);
    });
    EtcdStore::Options options = Through(slow, "host:1");
    options.addresses.push_back(other.address());
    options.ttl = absl::Seconds(3);
    EtcdStore store(std::move(options));
    ASSERT_TRUE(OpenAndWait(&store).ok());
    const absl::Status saved = SaveAndWait(&store, "first");
    EXPECT_TRUE(saved.ok()) << saved;
    EXPECT_TRUE(store.Forget().ok());
  }
  EXPECT_EQ(client().Get(Key("state")).value(), std::nullopt);
  EXPECT_EQ(client().Get(Key("leader")).value(), std::nullopt);
}

// What a client makes of this answer to its question.
template <typename Ask>
absl::Status Answered(const EtcdProxy::Reply& reply, Ask ask) {
  EtcdProxy proxy("", [&](const std::string&, const std::string&) { return Reply(reply); });
  EtcdClient client({proxy.address()}, absl::Seconds(5));
  return ask(&client);
}

TEST(EtcdClientFaults, WhatEtcdRefusesIsOneClearLine) {
  const struct {
    EtcdProxy::Reply reply;
    absl::StatusCode code;
    const char* line;
  } kCases[] = {
      {{400, R"({"error":"etcdserver: bad","message":"etcdserver: bad","code":3})"},
       absl::StatusCode::kInvalidArgument,
       "etcd refuses /v3/kv/range: etcdserver: bad (HTTP 400)"},
      // A code that is none.
      {{400, R"({"error":"strange","message":"strange","code":0})"},
       absl::StatusCode::kInternal,
       "etcd refuses /v3/kv/range: strange (HTTP 400)"},
      {{403, R"({"message":"permission denied","code":17})"},
       absl::StatusCode::kInternal,
       "etcd refuses /v3/kv/range: permission denied (HTTP 403)"},
      {{404, "404 page not found"},
       absl::StatusCode::kInternal,
       "etcd refuses /v3/kv/range: 404 page not found (HTTP 404)"},
      {{429, R"({"message":"etcdserver: too many requests","code":8})"},
       absl::StatusCode::kResourceExhausted,
       "etcd refuses /v3/kv/range: etcdserver: too many requests (HTTP 429)"},
      {{503, "<html>"}, absl::StatusCode::kUnavailable, "refuses /v3/kv/range: <html> (HTTP 503)"},
      {{200, "<html>"}, absl::StatusCode::kUnavailable, "does not answer: its answer is no JSON"},
  };
  for (const auto& one : kCases) {
    const absl::Status status =
        Answered(one.reply, [](EtcdClient* client) { return client->Get("anything").status(); });
    EXPECT_EQ(status.code(), one.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.line));
  }
}

// Else a leader would end for another's trouble.
TEST(EtcdClientFaults, AStreamThatFailsIsNoLeaseThatHasRunOut) {
  const auto keep_alive = [](EtcdClient* client) { return client->KeepAlive(7); };
  for (const int http_code : {200, 503}) {
    const absl::Status status = Answered(
        {http_code,
         R"({"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}})"},
        keep_alive);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("etcd refuses /v3/lease/keepalive: etcdserver: no leader"));
  }
  EXPECT_EQ(Answered({200, R"({"result":{"header":{},"ID":"7"}})"}, keep_alive).code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace parley
