// Memory that runs out when a test says so.
#ifndef PARLEY_TESTS_UNIT_TABLE_SCARCE_MEMORY_H_
#define PARLEY_TESTS_UNIT_TABLE_SCARCE_MEMORY_H_

#include <cstddef>
#include <new>

#include "ps/base/buffer.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

namespace parley {

// The heap's memory, except in a Shortage: then there is none.
class ScarceMemory : public MemorySource {
 public:
  class Shortage {
   public:
    // A pool loses the few bytes in which it keeps account of a block that it does not get; it is
    // not the loss that these tests are about.
    explicit Shortage(ScarceMemory* memory) : memory_(memory) {
      memory_->gone_ = true;
#ifdef __SANITIZE_ADDRESS__
      __lsan_disable();
#endif
    }
    ~Shortage() {
      memory_->gone_ = false;
#ifdef __SANITIZE_ADDRESS__
      __lsan_enable();
#endif
    }
    Shortage(const Shortage&) = delete;
    Shortage& operator=(const Shortage&) = delete;

   private:
    ScarceMemory* const memory_;
  };

  std::byte* Allocate(size_t) override {
    if (gone_) throw std::bad_alloc();
    return nullptr;  // the heap has some
  }
  void Free(std::byte*, size_t) override {}

 private:
  bool gone_ = false;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_SCARCE_MEMORY_H_
