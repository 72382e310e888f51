// Seeds of the targets that are fed what a job has saved, or says to its copies.
#ifndef PARLEY_TESTS_FUZZ_STATE_SEEDS_H_
#define PARLEY_TESTS_FUZZ_STATE_SEEDS_H_

#include <functional>
#include <string>

namespace parley {

// Takes the name of a seed and its bytes.
using SeedWriter = std::function<void(const std::string& name, const std::string& bytes)>;

void WriteCheckpointSeeds(const SeedWriter& write);
void WriteReplicaSeeds(const SeedWriter& write);
void WriteJournalSeeds(const SeedWriter& write);

}  // namespace parley

#endif  // PARLEY_TESTS_FUZZ_STATE_SEEDS_H_
