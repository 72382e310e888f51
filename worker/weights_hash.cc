#include "worker/weights_hash.h"

#include <sodium.h>

#include "absl/strings/escaping.h"

namespace parley {
namespace {

std::string Sha256Hex(const Buffer& bytes) {
  unsigned char hash[crypto_hash_sha256_BYTES];
  crypto_hash_sha256(hash, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return absl::BytesToHexString(
      std::string(reinterpret_cast<const char*>(hash), crypto_hash_sha256_BYTES));
}

}  // namespace

absl::StatusOr<std::string> HashWeights(const Workload& workload, const Buffer& weights) {
  if (!weights.on_device()) return Sha256Hex(weights);
  Buffer copy = Buffer::Allocate(weights.size());
  absl::Status status = workload.device->FetchParameters(weights.floats(), weights.num_floats(),
                                                         copy.mutable_floats());
  if (!status.ok()) return status;
  return Sha256Hex(copy);
}

}  // namespace parley
