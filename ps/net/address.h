// Addresses: the text a user writes for a place to listen or to connect to, and what it stands for.
//
// Pure functions but for LocalAddresses and ResolveBindHost's look-up of hostnames, which ask the
// system (and may block on the name service: for start-up only). Thread-safe.
#ifndef PARLEY_PS_NET_ADDRESS_H_
#define PARLEY_PS_NET_ADDRESS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace parley {

// "tcp://host:port", "ipc:///path" or "shm://machine/name".
struct Endpoint {
  enum class Scheme { kTcp, kIpc, kShm };

  Scheme scheme = Scheme::kTcp;
  // tcp: IPv6 addresses without their brackets; empty = loopback, to bind. shm: which machine and
  // network namespace (shm/socket.h); empty = this one, to bind.
  std::string host;
  uint16_t port = 0;  // tcp: 0 = any free one, to bind
  std::string path;   // ipc: absolute. shm: the name there; empty = any, to bind
  // tcp: the public key that whoever listens there has to prove, 40 characters; empty: none.
  std::string key = "";

  bool operator==(const Endpoint&) const = default;
};

// The longest path of a unix socket, without the final zero byte.
inline constexpr size_t kMaxIpcPathBytes = 107;

// "tcp://[fd00::2]:5555", "tcp://eth0:*" (any port), "tcp://10.0.0.0/8:0",
// "tcp://10.0.0.3:41234#KEY", "ipc:///run/node.sock", "shm://". kInvalidArgument quotes the text
// and says what is allowed.
absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text);

// Several ways to one place: endpoints with commas between them, one at least and kMaxEndpoints at
// most.
inline constexpr size_t kMaxEndpoints = 8;
absl::StatusOr<std::vector<Endpoint>> ParseEndpointList(std::string_view text);

// The inverse of ParseEndpoint; port 0 stays 0.
std::string FormatEndpoint(const Endpoint& endpoint);

// As ParseEndpoint, but only what one can connect to: a host that is named and a port that is not
// 0.
absl::StatusOr<Endpoint> ParseRemoteEndpoint(std::string_view text);

// One address of one network interface of this machine that is up.
struct LocalAddress {
  std::string interface_name;  // "eth0"
  std::string address;         // "192.0.2.2", "fd00::2"
};

// In the system's order, IPv4 before IPv6 of the same interface; link-local IPv6 is left out.
absl::StatusOr<std::vector<LocalAddress>> LocalAddresses();

// "lo 127.0.0.1, lo ::1, eth0 192.0.2.2", for error lines.
std::string DescribeAddresses(const std::vector<LocalAddress>& addresses);

// The address to bind for `host`: an IPv4 or IPv6 address (as it is, even if not local), the name
// of an interface (its first address), a block like "10.0.0.0/8" (the first local address inside)
// or a hostname (the address it resolves to). Empty means loopback, 127.0.0.1: a node is reached
// from elsewhere only when somebody asked for it. kNotFound lists the interfaces that there are.
absl::StatusOr<std::string> ResolveBindHost(std::string_view host,
                                            const std::vector<LocalAddress>& local);

// True for an address of the loopback interface, which no other machine reaches.
bool IsLoopback(std::string_view address);

// True for the 40 characters of Z85 that a public key is written in. A comma is none of them.
bool IsKeyText(std::string_view text);

// True for "0.0.0.0" and "::", which mean every interface.
bool IsWildcard(std::string_view address);

// The address that others should use for a node bound to the wildcard `address`: the first that is
// not loopback, of the same family.
std::string AdvertisedHost(std::string_view address, const std::vector<LocalAddress>& local);

}  // namespace parley

#endif  // PARLEY_PS_NET_ADDRESS_H_
