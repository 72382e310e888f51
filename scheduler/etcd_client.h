// EtcdClient: the few things that the scheduler wants of etcd (3.4 and later), over its HTTP/JSON
// gateway: keys, leases, and writes that hold only while a lease holds a key.
//
// All calls block, at most about `timeout` for each address. Thread-safety: any thread, also at
// once. Errors: kUnavailable names the addresses and the reason if none answers; what etcd refuses
// has its own code and words.
#ifndef PARLEY_SCHEDULER_ETCD_CLIENT_H_
#define PARLEY_SCHEDULER_ETCD_CLIENT_H_

#include <google/protobuf/struct.pb.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace parley {

class EtcdClient {
 public:
  // "etcd://host:port", further addresses of the same cluster behind commas. kInvalidArgument says
  // what is allowed.
  static absl::StatusOr<std::vector<std::string>> ParseAddresses(const std::string& url);

  EtcdClient(std::vector<std::string> addresses, absl::Duration timeout);

  absl::StatusOr<std::optional<std::string>> Get(const std::string& key);

  // A lease is 0 for none.
  absl::StatusOr<int64_t> Grant(absl::Duration ttl);
  // kNotFound: it has run out.
  absl::Status KeepAlive(int64_t lease);
  absl::Status Revoke(int64_t lease);

  // Makes the key, bound to the lease, if it does not exist. Returns whether it did.
  absl::StatusOr<bool> Claim(const std::string& key, const std::string& value, int64_t lease);

  // Sets `key`, or removes it if there is no `value`, if `claimed` is bound to the lease now.
  // Returns whether it did.
  absl::StatusOr<bool> PutWhile(const std::string& claimed, int64_t lease, const std::string& key,
                                const std::optional<std::string>& value);

 private:
  using Json = google::protobuf::Struct;
  absl::StatusOr<Json> Post(const std::string& path, const std::string& body);
  absl::StatusOr<std::string> PostTo(const std::string& address, const std::string& path,
                                     const std::string& body, long* http_code);
  absl::StatusOr<bool> Transact(const std::string& compare, const std::string& success);

  const std::vector<std::string> addresses_;
  const absl::Duration timeout_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ETCD_CLIENT_H_
