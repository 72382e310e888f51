// Helpers of the table tests.
#ifndef PARLEY_TESTS_UNIT_TABLE_TABLE_TESTING_H_
#define PARLEY_TESTS_UNIT_TABLE_TABLE_TESTING_H_

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "ps/base/philox.h"
#include "ps/table/optimizer.h"

namespace parley {

inline pb::Optimizer ParseOptimizer(const std::string& text) {
  pb::Optimizer config;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &config)) << text;
  return config;
}

inline std::unique_ptr<Optimizer> MakeOptimizer(const std::string& text) {
  auto optimizer = Optimizer::Create(ParseOptimizer(text));
  EXPECT_TRUE(optimizer.ok()) << optimizer.status();
  return optimizer.ok() ? *std::move(optimizer) : nullptr;
}

// [n] in [-1, 1), a different vector for every `stream`.
inline std::vector<float> RandomVector(uint64_t stream, size_t n) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = 2 * UniformAt(7, stream, i) - 1;
  return values;
}

// Floats that begin `shift` bytes past an aligned address, as a received frame may hold them. The
// block ends with them, so that a sanitizer sees a read past the end.
class ShiftedFloats {
 public:
  ShiftedFloats(const std::vector<float>& values, size_t shift)
      : bytes_(shift + values.size() * sizeof(float)), shift_(shift) {
    std::memcpy(bytes_.data() + shift, values.data(), values.size() * sizeof(float));
  }
  const float* get() const { return reinterpret_cast<const float*>(bytes_.data() + shift_); }

 private:
  std::vector<char> bytes_;
  size_t shift_;
};

// Weights, slots and what goes with them for one optimizer.
struct TrainedState {
  TrainedState(const Optimizer& optimizer, std::vector<float> initial)
      : weights(std::move(initial)) {
    for (int s = 0; s < optimizer.slots(); ++s) {
      slots.emplace_back(weights.size(), optimizer.initial_slot_value(s));
    }
  }
  void Apply(const Optimizer& optimizer, absl::Span<const float* const> gradients,
             const StepInfo& info) {
    std::vector<float*> pointers;
    for (std::vector<float>& slot : slots) pointers.push_back(slot.data());
    optimizer.Apply(weights.size(), weights.data(), weights.data(), pointers.data(), gradients,
                    info);
  }
  std::vector<float> weights;
  std::vector<std::vector<float>> slots;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_TABLE_TESTING_H_
