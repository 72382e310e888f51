// TakePush: a push of several partitions, taken as a whole or not at all.
#ifndef PARLEY_PS_SERVER_PUSH_HANDLER_H_
#define PARLEY_PS_SERVER_PUSH_HANDLER_H_

#include "absl/status/status.h"
#include "ps/base/buffer.h"
#include "ps/server/table_request.h"

namespace parley {

// Takes the push in `request` and applies what is complete; values of a table with a push codec are
// decoded into memory of `pool` first. Moves keys and values out of the request, unless keep_keys:
// a pull of the same request wants them. Afterwards it may be acknowledged, with `tickets` once
// those in the request allow it. An error, as
// HostedPartition::CheckPush, kInvalidArgument for values that do not decode and kResourceExhausted
// for want of memory to do so, means that nothing of it was taken. std::bad_alloc means that some
// may be: then nothing that the request names may be used any more. Runs on the shard's loop.
absl::Status TakePush(TableRequest* request, BufferPool* pool, bool keep_keys,
                      bool tickets = false);

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PUSH_HANDLER_H_
