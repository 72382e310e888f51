#include "ps/base/shared_arenas.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"

namespace parley {

std::optional<Arenas::Arena> SharedArenas::Make(uint32_t id, size_t size) {
  absl::StatusOr<SharedMemory> memory =
      SharedMemory::Create(absl::StrFormat("parley-arena-%d", id), size);
  if (!memory.ok()) return std::nullopt;
  memory_[id] = *std::move(memory);
  return Arena{memory_[id].data(), size, memory_[id].fd()};
}

}  // namespace parley
