#include "ps/net/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <memory>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace parley {
namespace {

constexpr std::string_view kAllowed =
    "allowed are \"tcp://host:port\" (IPv6 in brackets; port 0 or * for any free one), "
    "\"ipc:///path\" and \"shm://\" (shared memory on this machine)";

constexpr std::string_view kScheme = "tcp://";  // as long as the others

constexpr size_t kMaxShmWord = 64;  // both, and what is put in front, fit into a socket's name

bool Contains(std::string_view text, char c) { return text.find(c) != std::string_view::npos; }

// A number of digits alone, without signs and blanks.
template <typename T>
bool ParseNumber(std::string_view text, T* value) {
  const char* const end = text.data() + text.size();
  const std::from_chars_result result = std::from_chars(text.data(), end, *value);
  return result.ec == std::errc() && result.ptr == end;
}

absl::Status Malformed(std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrFormat("endpoint \"%s\": %s; %s", text.substr(0, 200), why, kAllowed));
}

// An IP address as bytes: 4 or 16 of them.
struct Ip {
  std::array<uint8_t, 16> bytes{};
  size_t size = 0;
};

std::optional<Ip> ParseIp(std::string_view text) {
  const std::string host(text);
  Ip ip;
  if (inet_pton(AF_INET, host.c_str(), ip.bytes.data()) == 1) {
    ip.size = 4;
  } else if (inet_pton(AF_INET6, host.c_str(), ip.bytes.data()) == 1) {
    ip.size = 16;
  } else {
    return std::nullopt;
  }
  return ip;
}

bool InBlock(const Ip& ip, const Ip& block, uint32_t prefix_bits) {
  if (ip.size != block.size) return false;
  for (uint32_t bit = 0; bit < prefix_bits; ++bit) {
    if (((ip.bytes[bit / 8] ^ block.bytes[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
  }
  return true;
}

std::string ToText(const sockaddr& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* bytes = nullptr;
  if (address.sa_family == AF_INET) {
    bytes = &reinterpret_cast<const sockaddr_in&>(address).sin_addr;
  } else if (address.sa_family == AF_INET6) {
    bytes = &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  }
  if (bytes == nullptr ||
      inet_ntop(address.sa_family, bytes, text.data(), text.size()) == nullptr) {
    return "";
  }
  return text.data();
}

absl::StatusOr<uint16_t> ParsePort(std::string_view text, std::string_view port) {
  if (port == "*") return 0;
  uint16_t value = 0;
  if (!ParseNumber(port, &value)) {
    return Malformed(text, absl::StrFormat("port is \"%s\", allowed is 0..65535 or *", port));
  }
  return value;
}

absl::StatusOr<Endpoint> ParseTcp(std::string_view text, std::string_view rest) {
  const size_t hash = rest.find('#');
  std::string_view key;
  if (hash != std::string_view::npos) {
    key = rest.substr(hash + 1);
    rest = rest.substr(0, hash);
    if (!IsKeyText(key)) {
      return Malformed(text, "what follows the # is no public key, 40 characters of Z85");
    }
  }
  const size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos) return Malformed(text, "there is no port");
  std::string_view host = rest.substr(0, colon);
  if (host.starts_with("[")) {
    if (!host.ends_with("]")) return Malformed(text, "the bracket is not closed");
    host = host.substr(1, host.size() - 2);
    const std::string_view address = host.substr(0, host.find('/'));
    const std::optional<Ip> ip = ParseIp(address);
    if (!ip || ip->size != 16) {
      return Malformed(text, absl::StrFormat("\"%s\" is no IPv6 address", address));
    }
  } else if (Contains(host, ':')) {
    return Malformed(text, "an IPv6 address needs brackets");
  }
  for (const char c : host) {
    if (!absl::ascii_isalnum(c) && !Contains(".-_:/", c)) {
      return Malformed(text, "the host has characters that no host has");
    }
  }
  absl::StatusOr<uint16_t> port = ParsePort(text, rest.substr(colon + 1));
  if (!port.ok()) return port.status();
  return Endpoint{Endpoint::Scheme::kTcp, std::string(host), *port, "", std::string(key)};
}

absl::StatusOr<Endpoint> ParseIpc(std::string_view text, std::string_view path) {
  if (!path.starts_with("/")) return Malformed(text, "the path is not absolute");
  if (Contains(path, '\0')) return Malformed(text, "the path has a zero byte");
  if (path.size() > kMaxIpcPathBytes) {
    return Malformed(text, absl::StrFormat("the path has %d bytes, a socket's may have %d",
                                           path.size(), kMaxIpcPathBytes));
  }
  return Endpoint{Endpoint::Scheme::kIpc, "", 0, std::string(path)};
}

absl::StatusOr<Endpoint> ParseShm(std::string_view text, std::string_view rest) {
  Endpoint endpoint{Endpoint::Scheme::kShm, "", 0, ""};
  if (rest.empty()) return endpoint;
  const size_t slash = rest.find('/');
  if (slash == std::string_view::npos) return Malformed(text, "there is no name after the machine");
  endpoint.host = std::string(rest.substr(0, slash));
  endpoint.path = std::string(rest.substr(slash + 1));
  for (const std::string* word : {&endpoint.host, &endpoint.path}) {
    if (word->empty() || word->size() > kMaxShmWord) {
      return Malformed(text, absl::StrFormat("machine and name have 1..%d characters each, "
                                             "\"%s\" has %d",
                                             kMaxShmWord, word->substr(0, 80), word->size()));
    }
    for (const char c : *word) {
      if (!absl::ascii_isalnum(c) && !Contains(".-_", c)) {
        return Malformed(text, "machine and name are made of letters, digits, '.', '-' and '_'");
      }
    }
  }
  return endpoint;
}

absl::Status NoLocalAddress(const std::string& what, const std::vector<LocalAddress>& local) {
  return absl::NotFoundError(
      absl::StrFormat("%s; interfaces here: %s", what, DescribeAddresses(local)));
}

absl::StatusOr<std::string> ResolveBlock(std::string_view host,
                                         const std::vector<LocalAddress>& local) {
  const size_t slash = host.find('/');
  const std::optional<Ip> block = ParseIp(host.substr(0, slash));
  uint32_t bits = 0;
  if (!block || !ParseNumber(host.substr(slash + 1), &bits) || bits > block->size * 8) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "\"%s\" is no block of addresses; write one like 10.0.0.0/8 or [fd00::/64]", host));
  }
  for (const LocalAddress& candidate : local) {
    const std::optional<Ip> ip = ParseIp(candidate.address);
    if (ip && InBlock(*ip, *block, bits)) return candidate.address;
  }
  return NoLocalAddress(absl::StrFormat("no local address is in %s", host), local);
}

absl::StatusOr<std::string> ResolveHostname(std::string_view host,
                                            const std::vector<LocalAddress>& local) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(std::string(host).c_str(), nullptr, &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, &freeaddrinfo);
  if (error != 0) {
    return NoLocalAddress(
        absl::StrFormat("\"%s\" is neither an interface nor a hostname that resolves (%s)", host,
                        gai_strerror(error)),
        local);
  }
  std::string first;
  for (const addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
    const std::string text = ToText(*entry->ai_addr);
    if (first.empty()) first = text;
    // A name may have addresses of several machines, or of interfaces that are down: take ours.
    for (const LocalAddress& candidate : local) {
      if (candidate.address == text) return text;
    }
  }
  // Debian gives a machine's own name 127.0.1.1, which no interface lists but which binds.
  if (first.starts_with("127.")) return first;
  return NoLocalAddress(
      absl::StrFormat("\"%s\" resolves to %s, which is no address of this machine", host, first),
      local);
}

}  // namespace

absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  std::string_view rest = text;
  rest.remove_prefix(std::min(rest.size(), kScheme.size()));
  if (text.starts_with("tcp://")) return ParseTcp(text, rest);
  if (text.starts_with("ipc://")) return ParseIpc(text, rest);
  if (text.starts_with("shm://")) return ParseShm(text, rest);
  return Malformed(text, "unknown scheme");
}

absl::StatusOr<std::vector<Endpoint>> ParseEndpointList(std::string_view text) {
  std::vector<Endpoint> endpoints;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    absl::StatusOr<Endpoint> endpoint = ParseEndpoint(text.substr(at, comma - at));
    if (!endpoint.ok()) return endpoint.status();
    if (endpoints.size() == kMaxEndpoints) {
      return Malformed(text, absl::StrFormat("there are more than %d endpoints", kMaxEndpoints));
    }
    endpoints.push_back(*std::move(endpoint));
    at = comma + 1;
  }
  return endpoints;
}

std::string FormatEndpoint(const Endpoint& endpoint) {
  if (endpoint.scheme == Endpoint::Scheme::kIpc) return "ipc://" + endpoint.path;
  if (endpoint.scheme == Endpoint::Scheme::kShm) {
    if (endpoint.host.empty() && endpoint.path.empty()) return "shm://";
    return absl::StrCat("shm://", endpoint.host, "/", endpoint.path);
  }
  const bool ipv6 = Contains(endpoint.host, ':');
  return absl::StrCat("tcp://", ipv6 ? "[" : "", endpoint.host, ipv6 ? "]:" : ":", endpoint.port,
                      endpoint.key.empty() ? "" : "#", endpoint.key);
}

absl::StatusOr<Endpoint> ParseRemoteEndpoint(std::string_view text) {
  absl::StatusOr<Endpoint> endpoint = ParseEndpoint(text);
  if (!endpoint.ok() || endpoint->scheme == Endpoint::Scheme::kIpc) return endpoint;
  if (endpoint->scheme == Endpoint::Scheme::kShm) {
    if (!endpoint->path.empty()) return endpoint;
    return Malformed(text, "one can listen there but not connect: it names no one");
  }
  if (endpoint->host.empty() || IsWildcard(endpoint->host) || Contains(endpoint->host, '/')) {
    return Malformed(text, "one can listen there but not connect: it names no one host");
  }
  if (endpoint->port == 0) return Malformed(text, "one can listen there but not connect: no port");
  return endpoint;
}

absl::StatusOr<std::vector<LocalAddress>> LocalAddresses() {
  ifaddrs* found = nullptr;
  if (getifaddrs(&found) != 0) return absl::ErrnoToStatus(errno, "cannot list network interfaces");
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> list(found, &freeifaddrs);
  std::vector<LocalAddress> addresses;
  for (const ifaddrs* entry = list.get(); entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const std::string text = ToText(*entry->ifa_addr);
    // Link-local addresses mean nothing without their interface, which endpoints do not carry.
    if (text.empty() || text.starts_with("fe80:")) continue;
    addresses.push_back({entry->ifa_name, text});
  }
  return addresses;
}

std::string DescribeAddresses(const std::vector<LocalAddress>& addresses) {
  if (addresses.empty()) return "none";
  return absl::StrJoin(addresses, ", ", [](std::string* out, const LocalAddress& address) {
    absl::StrAppend(out, address.interface_name, " ", address.address);
  });
}

absl::StatusOr<std::string> ResolveBindHost(std::string_view host,
                                            const std::vector<LocalAddress>& local) {
  if (host.empty()) return "127.0.0.1";
  if (ParseIp(host)) return std::string(host);
  if (Contains(host, '/')) return ResolveBlock(host, local);
  for (const LocalAddress& candidate : local) {
    if (candidate.interface_name == host) return candidate.address;
  }
  return ResolveHostname(host, local);
}

bool IsLoopback(std::string_view address) {
  const std::optional<Ip> ip = ParseIp(address);
  if (!ip) return false;
  if (ip->size == 4) return ip->bytes[0] == 127;
  // IPv4's, written as IPv6.
  if (InBlock(*ip, *ParseIp("::ffff:127.0.0.0"), 104)) return true;
  return ip->bytes == ParseIp("::1")->bytes;
}

bool IsKeyText(std::string_view text) {
  constexpr std::string_view kMarks = ".-:+=^!/*?&<>()[]{}@%$#";
  if (text.size() != 40) return false;
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return absl::ascii_isalnum(c) || Contains(kMarks, c); });
}

bool IsWildcard(std::string_view address) { return address == "0.0.0.0" || address == "::"; }

std::string AdvertisedHost(std::string_view address, const std::vector<LocalAddress>& local) {
  const bool ipv6 = Contains(address, ':');
  for (const LocalAddress& candidate : local) {
    const bool loopback = candidate.address.starts_with("127.") || candidate.address == "::1";
    if (!loopback && Contains(candidate.address, ':') == ipv6) return candidate.address;
  }
  return ipv6 ? "::1" : "127.0.0.1";
}

}  // namespace parley
