// What the fuzz targets share: an input taken apart, and checks that hold in every build type.
//
// Each target is one LLVMFuzzerTestOneInput in a file of its own. libFuzzer drives it in the build
// of the preset "fuzz"; replay_test.cc runs it over its corpus in every other build.
#ifndef PARLEY_TESTS_FUZZ_FUZZ_INPUT_H_
#define PARLEY_TESTS_FUZZ_FUZZ_INPUT_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace parley {

// Ends the process, so that the fuzzer keeps the input.
inline void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// Numbers and runs of bytes from the front; zeros where the input has ended.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  template <typename T>
  T Take() {
    T value{};
    const size_t size = std::min(sizeof(T), rest_.size());
    if (size > 0) std::memcpy(&value, rest_.data(), size);
    rest_.remove_prefix(size);
    return value;
  }
  std::string_view TakeBytes(size_t size) {
    const std::string_view bytes = rest_.substr(0, size);
    rest_.remove_prefix(bytes.size());
    return bytes;
  }
  std::string_view TakeRest() { return TakeBytes(rest_.size()); }
  size_t left() const { return rest_.size(); }

 private:
  std::string_view rest_;
};

// A copy of exactly these bytes on the heap: AddressSanitizer sees one read past either end, which
// it would not see inside the input.
class ExactBytes {
 public:
  explicit ExactBytes(std::string_view bytes)
      : size_(bytes.size()), bytes_(new char[bytes.size()]) {
    if (size_ > 0) std::memcpy(bytes_.get(), bytes.data(), size_);
  }
  std::string_view view() const { return {bytes_.get(), size_}; }
  char* data() { return bytes_.get(); }

 private:
  size_t size_;
  std::unique_ptr<char[]> bytes_;
};

// Looks at every byte.
inline void ReadAll(const void* data, size_t size) {
  unsigned sum = 0;
  for (size_t i = 0; i < size; ++i) sum += static_cast<const uint8_t*>(data)[i];
  volatile unsigned sink = sum;
  (void)sink;
}

}  // namespace parley

#endif  // PARLEY_TESTS_FUZZ_FUZZ_INPUT_H_
