// Draw: what one scenario is made of; apart from the world's own randomness, so that a change in
// one does not move the other.
#ifndef PARLEY_TESTS_SIM_DRAW_H_
#define PARLEY_TESTS_SIM_DRAW_H_

#include <cstdint>

#include "ps/base/philox.h"

namespace parley {

class Draw {
 public:
  explicit Draw(uint64_t seed) : seed_(seed) {}
  uint64_t Below(uint64_t n) { return Philox(seed_, 0x5ce7a210, index_++)[0] % n; }
  double Unit() { return ToUnitFloat(Philox(seed_, 0x5ce7a210, index_++)[0]); }
  bool Chance(double p) { return Unit() < p; }

 private:
  const uint64_t seed_;
  uint64_t index_ = 0;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_DRAW_H_
