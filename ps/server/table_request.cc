#include "ps/server/table_request.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

// Up to here a look at each pair is cheaper than a set.
constexpr size_t kFewParts = 16;

absl::Status FindPartitions(const pb::FrameHeader& header, const HostedTable& table,
                            std::vector<HostedPartition*>* found) {
  if (header.part().empty()) return absl::InvalidArgumentError("the request names no partition");
  const auto parts = static_cast<size_t>(header.part_size());
  found->reserve(parts);
  absl::flat_hash_set<HostedPartition*> seen;
  for (const pb::Part& part : header.part()) {
    HostedPartition* partition = table.Find(part.partition());
    const bool twice =
        partition != nullptr &&
        (parts <= kFewParts ? std::find(found->begin(), found->end(), partition) != found->end()
                            : !seen.insert(partition).second);
    if (partition == nullptr || twice) {
      // By another map it may have been here, or will be.
      const bool elsewhere = !twice && part.partition() < table.partitions();
      return absl::Status(
          elsewhere ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kInvalidArgument,
          absl::StrFormat("table %d, partition %d: %s", header.table(), part.partition(),
                          twice ? "named twice" : "not on this shard"));
    }
    found->push_back(partition);
  }
  return absl::OkStatus();
}

KeyCache::Id CacheId(const pb::FrameHeader& header, const pb::Part& part) {
  KeyCache::Id id{header.table(), part.partition(), {}};
  part.key_digest().copy(id.digest.data(), id.digest.size());
  return id;
}

// The list of a part that names `keys` rows: in `payload`, or in the cache.
absl::Status FindKeys(const pb::FrameHeader& header, const pb::Part& part,
                      const HostedPartition& partition, KeyCache* cache, PartPayload* payload) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table %d, partition %d: %s", header.table(), part.partition(), what));
  };
  if (part.key_bytes() == 0) {
    if (!part.has_key_digest()) {
      return error(absl::StrFormat("%d keys, with neither a list nor its digest", part.keys()));
    }
    payload->keys = cache->Find(CacheId(header, part));
    if (payload->keys.empty()) {
      return absl::NotFoundError(
          absl::StrFormat("table %d, partition %d: no list of keys with this digest is known here; "
                          "send the lists",
                          header.table(), part.partition()));
    }
    if (payload->keys.size() != part.keys() * sizeof(uint64_t)) {
      return error(absl::StrFormat("%d keys, but the list of this digest has %d", part.keys(),
                                   payload->keys.size() / sizeof(uint64_t)));
    }
    return absl::OkStatus();
  }
  // A pull may lack the payload that it counts, as far as the codec is concerned.
  if (payload->keys.size() != part.keys() * sizeof(uint64_t)) {
    return error(absl::StrFormat("%d bytes of keys, of which %d have come", part.key_bytes(),
                                 payload->keys.size()));
  }
  if (part.has_key_digest() && CacheId(header, part).digest != KeyDigest(payload->keys.view())) {
    return error("the digest is not that of the list of keys");
  }
  return partition.CheckKeys(KeyList(payload->keys));
}

void RememberKeys(const pb::FrameHeader& header, const TableRequest& request, KeyCache* cache) {
  for (size_t i = 0; i < request.payload.size(); ++i) {
    const pb::Part& part = header.part(static_cast<int>(i));
    if (part.keys() == 0 || part.key_bytes() == 0 || !part.has_key_digest()) continue;
    cache->Remember(CacheId(header, part), request.payload[i].keys);
  }
}

}  // namespace

absl::Status ResolveRequest(Frame* frame, HostedTable* table, KeyCache* cache,
                            TableRequest* request) {
  const pb::FrameHeader& header = frame->header;
  request->table = table;
  absl::Status status = FindPartitions(header, *table, &request->partitions);
  if (!status.ok()) return status;
  request->payload = SplitPayload(*frame);
  uint64_t bytes = 0;
  for (size_t i = 0; i < request->partitions.size(); ++i) {
    const pb::Part& part = header.part(static_cast<int>(i));
    const HostedPartition& partition = *request->partitions[i];
    if (header.kind() == pb::PULL && !request->payload[i].values.empty()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("table %d, partition %d: a PULL carries values, allowed are keys only",
                          header.table(), part.partition()));
    }
    if (!table->sparse()) {
      if (part.keys() == 0 && part.key_bytes() == 0 && !part.has_key_digest()) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("table %d, partition %d is dense; allowed are no keys", header.table(),
                          part.partition()));
    }
    if (part.keys() > 0) {
      status = FindKeys(header, part, partition, cache, &request->payload[i]);
      if (!status.ok()) return status;
    }
    bytes += partition.values(part.keys()) * sizeof(float);
    if (bytes > TableRequest::kMaxValueBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("table %d: the request is about more than %d bytes of rows",
                          header.table(), TableRequest::kMaxValueBytes));
    }
  }
  RememberKeys(header, *request, cache);
  request->header = std::move(frame->header);
  return absl::OkStatus();
}

}  // namespace parley
