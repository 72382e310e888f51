// Linked in place of onednn_backend.cc where oneDNN was not found or is switched off.
#include "models/cpu/cpu_backend.h"

namespace parley {

std::unique_ptr<CpuBackend> CreateOneDnnBackend(uint32_t /*threads*/) { return nullptr; }

}  // namespace parley
