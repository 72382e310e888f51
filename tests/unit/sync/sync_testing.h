// Helpers of the sync tests.
#ifndef PARLEY_TESTS_UNIT_SYNC_SYNC_TESTING_H_
#define PARLEY_TESTS_UNIT_SYNC_SYNC_TESTING_H_

#include <cstdint>

#include "proto/experiment.pb.h"
#include "ps/base/philox.h"

namespace parley {

// A seeded sequence of choices, so that a history that fails is the number of its seed.
class Choices {
 public:
  explicit Choices(uint64_t seed) : seed_(seed) {}
  // [0, n)
  uint64_t Below(uint64_t n) { return Philox(seed_, 0, next_++)[0] % n; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

 private:
  uint64_t seed_;
  uint64_t next_ = 0;
};

inline pb::Consistency Mode(pb::Consistency::Mode mode, uint32_t number = 0) {
  pb::Consistency consistency;
  consistency.set_mode(mode);
  if (mode == pb::Consistency::SSP) consistency.set_staleness(number);
  if (mode == pb::Consistency::BSP) consistency.set_backup_workers(number);
  return consistency;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SYNC_SYNC_TESTING_H_
