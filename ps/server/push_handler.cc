#include "ps/server/push_handler.h"

#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// float32 [part.count()] from what came: as it is, or decoded. Throws std::bad_alloc.
absl::Status MakeValues(const pb::FrameHeader& header, const pb::Part& part,
                        const PayloadCodec* codec, BufferPool* pool, Buffer* values) {
  const uint64_t raw_bytes = part.count() * sizeof(float);
  // Raw values are welcome whatever the codec: then they carry no length of their own.
  const bool encoded = part.has_value_bytes() && (codec != nullptr || part.count() == 0);
  if (!encoded || part.count() == 0) {
    if (values->size() == raw_bytes) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat(
        "push to table %d, partition %d carries %d bytes of values, allowed is %d for %d elements",
        header.table(), part.partition(), values->size(), raw_bytes, part.count()));
  }
  Buffer decoded = pool->Allocate(raw_bytes);
  absl::Status status = codec->Decode(values->view(), part.count(), decoded.mutable_floats());
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to table %d, partition %d: its values are not of codec '%s': %s",
                        header.table(), part.partition(), codec->name(), status.message()));
  }
  *values = std::move(decoded);
  return absl::OkStatus();
}

// Whether all of it may be taken; changes nothing but the values, which are decoded.
absl::Status CheckPush(TableRequest* request, BufferPool* pool) {
  const pb::FrameHeader& header = request->header;
  const PayloadCodec* codec = request->table->push_codec();
  for (size_t i = 0; i < request->partitions.size(); ++i) {
    const pb::Part& part = header.part(static_cast<int>(i));
    ReplayGuard::Verdict verdict;
    absl::Status status = request->partitions[i]->CheckPush(header, part, &verdict);
    if (!status.ok()) return status;
    if (verdict == ReplayGuard::Verdict::kDuplicate) continue;  // nobody looks at it again
    if (request->payload[i].values.on_device() && !request->table->on_device()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "push to table %d, partition %d: its values lie in a GPU's memory, allowed is that for "
          "tables of placement GPU",
          header.table(), part.partition()));
    }
    status = MakeValues(header, part, codec, pool, &request->payload[i].values);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TakePush(TableRequest* request, BufferPool* pool, bool keep_keys, bool tickets) {
  const pb::FrameHeader& header = request->header;
  // All parts or none: a push that is half taken could be neither acknowledged nor refused.
  absl::Status checked;
  try {
    checked = CheckPush(request, pool);
  } catch (const std::bad_alloc&) {
    checked = absl::ResourceExhaustedError(absl::StrFormat(
        "push to table %d: no memory for its values; none of it was taken", header.table()));
  }
  if (!checked.ok()) return checked;
  if (tickets) request->tickets.reserve(request->partitions.size());
  for (size_t i = 0; i < request->partitions.size(); ++i) {
    PartPayload& payload = request->payload[i];
    absl::StatusOr<HostedPartition::Ticket> ticket = request->partitions[i]->TakePush(
        header, header.part(static_cast<int>(i)),
        keep_keys ? payload.keys : std::exchange(payload.keys, Buffer()),
        std::exchange(payload.values, Buffer()));
    if (!ticket.ok()) return ticket.status();
    if (tickets) request->tickets.push_back(*ticket);
  }
  return absl::OkStatus();
}

}  // namespace parley
