// Runs a fuzz target over its corpus: in every build, and without libFuzzer. A violation ends the
// process. PARLEY_FUZZ_CORPUS is the target's folder.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/fuzz/fuzz_input.h"

namespace parley {
namespace {

TEST(FuzzReplay, CorpusHolds) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(PARLEY_FUZZ_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    SCOPED_TRACE(entry.path().string());
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    ++files;
  }
  EXPECT_GE(files, 5) << "in " << PARLEY_FUZZ_CORPUS;
}

TEST(FuzzReplay, NothingAtAll) { LLVMFuzzerTestOneInput(nullptr, 0); }

}  // namespace
}  // namespace parley
