#include "ps/net/address.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Endpoint::Scheme kTcp = Endpoint::Scheme::kTcp;
constexpr Endpoint::Scheme kIpc = Endpoint::Scheme::kIpc;

const std::vector<LocalAddress>& Machine() {
  static const std::vector<LocalAddress> addresses = {{"lo", "127.0.0.1"}, {"eth0", "192.168.7.9"},
                                                      {"ib0", "10.1.2.3"}, {"ib1", "10.200.0.1"},
                                                      {"lo", "::1"},       {"eth0", "fd00::9"}};
  return addresses;
}

std::string Resolve(const std::string& host) {
  const absl::StatusOr<std::string> resolved = ResolveBindHost(host, Machine());
  return resolved.ok() ? *resolved : "error: " + std::string(resolved.status().message());
}

TEST(ParseEndpoint, TakesWhatPeopleWrite) {
  const std::vector<std::pair<std::string, Endpoint>> cases = {
      {"tcp://127.0.0.1:5555", {kTcp, "127.0.0.1", 5555, ""}},
      {"tcp://node-7.cluster_a.local:65535", {kTcp, "node-7.cluster_a.local", 65535, ""}},
      {"tcp://eth0:0", {kTcp, "eth0", 0, ""}},
      {"tcp://eth0:*", {kTcp, "eth0", 0, ""}},
      {"tcp://:0", {kTcp, "", 0, ""}},
      {"tcp://10.0.0.0/8:7000", {kTcp, "10.0.0.0/8", 7000, ""}},
      {"tcp://[fd00::2]:80", {kTcp, "fd00::2", 80, ""}},
      {"tcp://[fd00::/64]:80", {kTcp, "fd00::/64", 80, ""}},
      {"ipc:///run/parley/a.sock", {kIpc, "", 0, "/run/parley/a.sock"}},
  };
  for (const auto& [text, expected] : cases) {
    const absl::StatusOr<Endpoint> endpoint = ParseEndpoint(text);
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    EXPECT_EQ(*endpoint, expected) << text;
  }
}

TEST(ParseEndpoint, RefusesTheRestAndSaysWhatIsAllowed) {
  for (const std::string bad : {"",
                                "tcp",
                                "tcp:",
                                "tcp://",
                                "tcp://host",
                                "tcp://host:",
                                "tcp://host:x",
                                "tcp://host:-1",
                                "tcp://host:+1",
                                "tcp://host: 1",
                                "tcp://host:65536",
                                "tcp://host:123456",
                                "tcp://a b:1",
                                "tcp://ho\nst:1",
                                "tcp://fd00::2:80",
                                "tcp://[fd00::2:80",
                                "tcp://[1.2.3.4]:80",
                                "tcp://[]:80",
                                "udp://host:1",
                                "ipc://",
                                "ipc://relative/path",
                                "TCP://host:1"}) {
    const absl::Status status = ParseEndpoint(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("\"" + bad + "\""), HasSubstr("allowed")));
  }
  EXPECT_FALSE(ParseEndpoint(std::string("ipc:///a\0b", 10)).ok());
}

TEST(ParseEndpoint, TakesAKeyBehindAPort) {
  // All the marks of Z85 but for those that do not fit.
  const std::string key = "0123456789abcdefgXYZ.-:+=^!/*?&<>()[]{}@";
  const Endpoint endpoint = *ParseEndpoint("tcp://[fd00::2]:80#" + key);
  EXPECT_EQ(endpoint, (Endpoint{kTcp, "fd00::2", 80, "", key}));
  EXPECT_EQ(FormatEndpoint(endpoint), "tcp://[fd00::2]:80#" + key);
  EXPECT_EQ(ParseEndpointList("tcp://a:1#" + key + ",ipc:///b")->size(), 2u);
  for (const std::string bad : {"", "short", "0123456789abcdefgXYZ.-:+=^!/*?&<>()[]{}@x",
                                "0123456789abcdefgXYZ.-:+=^!/*?&<>()[]{}\n"}) {
    EXPECT_FALSE(ParseEndpoint("tcp://a:1#" + bad).ok()) << bad;
  }
}

TEST(IsLoopback, IsWhatNoOtherMachineReaches) {
  for (const char* yes : {"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE(IsLoopback(yes)) << yes;
  }
  for (const char* no : {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::2", "::ffff:10.0.0.1",
                         "fd00::1", "localhost", ""}) {
    EXPECT_FALSE(IsLoopback(no)) << no;
  }
}

TEST(ParseEndpoint, KnowsHowLongASocketsPathMayBe) {
  EXPECT_TRUE(ParseEndpoint("ipc:///" + std::string(106, 'x')).ok());
  const absl::Status status = ParseEndpoint("ipc:///" + std::string(107, 'x')).status();
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("108 bytes"), HasSubstr("107")));
}

TEST(ParseEndpoint, QuotesNoMoreThanALineOfAStrangersText) {
  EXPECT_LT(ParseEndpoint(std::string(100'000, 'x')).status().message().size(), 500);
}

TEST(FormatEndpoint, IsTheInverse) {
  for (const std::string text :
       {"tcp://127.0.0.1:5555", "tcp://[fd00::2]:80", "tcp://eth0:0", "ipc:///run/parley/a.sock"}) {
    EXPECT_EQ(FormatEndpoint(*ParseEndpoint(text)), text);
  }
}

TEST(ParseRemoteEndpoint, TakesOnlyWhatOneCanConnectTo) {
  for (const char* good : {"tcp://127.0.0.1:5555", "tcp://host:1", "ipc:///a.sock"}) {
    EXPECT_TRUE(ParseRemoteEndpoint(good).ok()) << good;
  }
  for (const char* bad : {"tcp://host:0", "tcp://host:*", "tcp://:5555", "tcp://0.0.0.0:5555",
                          "tcp://[::]:5555", "tcp://10.0.0.0/8:5555"}) {
    const absl::Status status = ParseRemoteEndpoint(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ResolveBindHost, DefaultsToLoopback) { EXPECT_EQ(Resolve(""), "127.0.0.1"); }

TEST(ResolveBindHost, TakesAddressesAsTheyAre) {
  EXPECT_EQ(Resolve("10.1.2.3"), "10.1.2.3");
  EXPECT_EQ(Resolve("0.0.0.0"), "0.0.0.0");
  EXPECT_EQ(Resolve("fd00::9"), "fd00::9");
  EXPECT_EQ(Resolve("203.0.113.1"), "203.0.113.1");  // bind will say that it is not ours
}

TEST(ResolveBindHost, FindsAnInterfaceByItsName) {
  EXPECT_EQ(Resolve("eth0"), "192.168.7.9");
  EXPECT_EQ(Resolve("lo"), "127.0.0.1");
}

TEST(ResolveBindHost, FindsTheAddressInABlock) {
  EXPECT_EQ(Resolve("10.0.0.0/8"), "10.1.2.3");
  EXPECT_EQ(Resolve("10.200.0.0/16"), "10.200.0.1");
  EXPECT_EQ(Resolve("10.1.2.3/32"), "10.1.2.3");
  EXPECT_EQ(Resolve("192.168.6.0/23"), "192.168.7.9");  // a border inside a byte
  EXPECT_EQ(Resolve("fd00::/16"), "fd00::9");
  EXPECT_EQ(Resolve("0.0.0.0/0"), "127.0.0.1");
}

TEST(ResolveBindHost, ErrorsListTheInterfaces) {
  EXPECT_THAT(Resolve("192.168.8.0/24"),
              AllOf(HasSubstr("no local address is in 192.168.8.0/24"),
                    HasSubstr("interfaces here: lo 127.0.0.1, eth0 192.168.7.9, ib0 10.1.2.3")));
  EXPECT_THAT(Resolve("eth7.invalid"), AllOf(HasSubstr("eth7"), HasSubstr("eth0 192.168.7.9")));
}

TEST(ResolveBindHost, RefusesBlocksThatAreNone) {
  for (const char* bad : {"10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "/8", "10.0.0/8", "fd00::/129",
                          "10.0.0.0/-1", "10.0.0.0/8/8"}) {
    EXPECT_THAT(Resolve(bad), HasSubstr("is no block of addresses")) << bad;
  }
}

TEST(ResolveBindHost, TakesAHostnameOfThisMachine) {
  const std::string localhost = Resolve("localhost");
  EXPECT_TRUE(localhost == "127.0.0.1" || localhost == "::1") << localhost;
}

TEST(LocalAddresses, IncludeLoopback) {
  const auto addresses = LocalAddresses();
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(DescribeAddresses(*addresses), HasSubstr("lo 127.0.0.1"));
}

TEST(AdvertisedHost, IsTheFirstThatIsNotLoopbackOfTheSameFamily) {
  EXPECT_EQ(AdvertisedHost("0.0.0.0", Machine()), "192.168.7.9");
  EXPECT_EQ(AdvertisedHost("::", Machine()), "fd00::9");
  EXPECT_EQ(AdvertisedHost("0.0.0.0", {{"lo", "127.0.0.1"}}), "127.0.0.1");
  EXPECT_EQ(AdvertisedHost("::", {}), "::1");
}

}  // namespace
}  // namespace parley
