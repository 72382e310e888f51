// SampleChecker: each epoch covers each sample once, counted.
//
// Workers tell from which samples they compute each gradient; what has become of the gradients, the
// HistoryChecker knows. Of each partition, dense or sparse, in the last generation:
//  - no sample of an epoch is in its weights twice, whoever computed it, and how often
//  - each is in it, but for those of gradients that nobody had to wait for (backup workers) or that
//    were given up (worker_loss: SKIP, and where REPLACE cannot be exact)
//  - the summary says how many of them there are
// And in the whole run: a tick of a worker is of the same samples wherever it is computed.
//
// Which samples a tick is of is taken from the workers; how many it has to be of is worked out
// here.
//
// Thread-safety: none, as SimWorld.
#ifndef PARLEY_TESTS_SIM_SAMPLE_CHECKER_H_
#define PARLEY_TESTS_SIM_SAMPLE_CHECKER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/experiment.pb.h"
#include "scheduler/report/run_observer.h"
#include "tests/sim/checkers.h"
#include "worker/worker_probe.h"

namespace parley {

class SampleChecker final : public WorkerProbe {
 public:
  // What is wrong goes to `violation`, a line each. `samples`: in the training set.
  SampleChecker(const pb::Experiment& experiment, uint64_t samples,
                std::function<void(std::string)> violation);

  void OnGradient(uint32_t rank, uint64_t tick, uint32_t epoch,
                  const std::vector<uint64_t>& samples) override;

  // After a run that ended well.
  void Finish(const HistoryChecker& history, const RunSummary& summary);
  // The same of one partition, from `first_step` on: how many samples are not in it. More than none
  // is wrong unless `some_left_out`.
  uint64_t CheckPartition(const std::string& name, const std::vector<Update>& updates,
                          uint64_t first_step, bool some_left_out);

  uint64_t covered() const { return covered_; }  // samples that were found once, in all partitions

 private:
  struct Batch {
    uint32_t epoch = 0;
    std::vector<uint64_t> samples;
  };
  using Mark = std::pair<uint32_t, uint64_t>;  // rank, tick

  uint64_t PartOf(uint32_t rank) const;         // samples of an epoch
  uint64_t TicksPerEpoch(uint32_t rank) const;  // 0: none
  uint64_t Rows(uint32_t rank, uint64_t tick) const;
  bool MayLeaveOut(const RunSummary& summary) const;
  bool TakeGradient(const std::string& name, Mark mark, double weight,
                    std::map<std::pair<uint32_t, uint64_t>, Mark>* seen);

  const pb::Experiment experiment_;
  const uint64_t samples_, workers_, batch_;
  const bool by_worker_;
  const std::function<void(std::string)> violation_;
  std::map<Mark, Batch> batches_;  // of all generations: they do not differ
  uint64_t covered_ = 0;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_SAMPLE_CHECKER_H_
