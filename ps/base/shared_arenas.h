// SharedArenas: Arenas of this process's memory (shared_memory.h).
//
// Thread-safety: as Arenas.
#ifndef PARLEY_PS_BASE_SHARED_ARENAS_H_
#define PARLEY_PS_BASE_SHARED_ARENAS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "ps/base/arenas.h"
#include "ps/base/shared_memory.h"

namespace parley {

class SharedArenas : public Arenas {
 public:
  SharedArenas() : SharedArenas(Options{}) {}
  explicit SharedArenas(Options options) : Arenas(options) {}

 private:
  std::optional<Arena> Make(uint32_t id, size_t size) override;

  std::array<SharedMemory, kMaxArenas> memory_;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_SHARED_ARENAS_H_
