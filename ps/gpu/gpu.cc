#include "ps/gpu/gpu.h"

#include "absl/strings/str_format.h"

namespace parley {

const char* ToString(GemmMath math) {
  switch (math) {
    case GemmMath::kFp32:
      return "FP32";
    case GemmMath::kTf32:
      return "TF32";
    case GemmMath::kBf16:
      return "BF16";
  }
  return "?";
}

std::string ToString(const GpuInfo& info) {
  if (info.simulated) return info.name;
  return absl::StrFormat("%s (sm_%d%d, %d GiB, GPU %d)", info.name, info.major, info.minor,
                         (info.memory_bytes + (uint64_t{1} << 29)) >> 30, info.index);
}

}  // namespace parley
