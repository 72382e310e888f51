// EtcdClient: the few things that the scheduler wants of etcd (3.4 and later), over its HTTP/JSON
// gateway: keys, leases, and writes that hold only while a lease holds a key.
//
// All calls block. They begin at the address that answered last, and go on to the next one where
// none can be reached in time (`timeout`, shared by all addresses), or where there is no answer for
// `timeout`; so an address that is gone costs its time once. Thread-safety: any thread, also at
// once. Errors: kUnavailable names the addresses and the reason if none answers, or has the time or
// a leader to; what else etcd refuses has its own code and words. After kUnavailable it is open
// whether a write was done, or is done yet.
#ifndef PARLEY_SCHEDULER_ETCD_CLIENT_H_
#define PARLEY_SCHEDULER_ETCD_CLIENT_H_

#include <google/protobuf/struct.pb.h>

#include <atomic>
#include <cstddef>
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

  // `revision`, if not null: of the last change of the key; 0 if it is not there.
  absl::StatusOr<std::optional<std::string>> Get(const std::string& key,
                                                 int64_t* revision = nullptr);

  // A lease is 0 for none.
  absl::StatusOr<int64_t> Grant(absl::Duration ttl);
  // kNotFound: it has run out.
  absl::Status KeepAlive(int64_t lease);
  absl::Status Revoke(int64_t lease);

  // Makes the key, bound to the lease, if it does not exist. Returns whether it is bound to it now.
  absl::StatusOr<bool> Claim(const std::string& key, const std::string& value, int64_t lease);

  struct Put {
    bool claimed = false;  // `claimed` was bound to the lease
    bool holds = false;    // and `key` holds the value: by this call, or it did before
    int64_t revision = 0;  // of the last change of `key`, if `claimed`
  };
  // Sets `key` if `claimed` is bound to the lease now, and `revision` is that of the last change of
  // `key`: an earlier call that comes late, after its time was up, changes nothing any more.
  absl::StatusOr<Put> PutWhile(const std::string& claimed, int64_t lease, const std::string& key,
                               int64_t revision, const std::string& value);

  // Removes `key` and `claimed`, if `claimed` is bound to the lease now. At once, so that no
  // PutWhile that comes late finds `claimed` bound and `key` gone.
  absl::Status Release(const std::string& claimed, int64_t lease, const std::string& key);

 private:
  using Json = google::protobuf::Struct;
  absl::StatusOr<Json> Post(const std::string& path, const std::string& body);
  absl::StatusOr<std::string> PostTo(const std::string& address, const std::string& path,
                                     const std::string& body, long* http_code);
  absl::StatusOr<Json> Transact(const std::string& compare, const std::string& success,
                                const std::string& failure);

  const std::vector<std::string> addresses_;
  const absl::Duration timeout_;
  std::atomic<size_t> answered_{0};  // which address did last
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ETCD_CLIENT_H_
