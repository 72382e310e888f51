// Which partitions of the table belong to which stages of the model.
//
// Tensors are cut without regard to stages, so a partition may belong to several. It is needed
// before the first of them, and its gradient is complete after the Backward of the last, which is
// the same stage, since backward goes the other way.
#ifndef PARLEY_WORKER_STAGE_PLAN_H_
#define PARLEY_WORKER_STAGE_PLAN_H_

#include <cstdint>
#include <vector>

#include "models/model.h"
#include "ps/base/dense_layout.h"

namespace parley {

// Immutable after Create; thread-safe.
struct StagePlan {
  static StagePlan Create(const Model& model, const DenseLayout& layout);

  size_t stages() const { return needs.size(); }

  std::vector<std::vector<uint32_t>> needs;      // by stage: partitions that hold its tensors
  std::vector<std::vector<uint32_t>> completes;  // by stage: gradients complete after its Backward
  std::vector<std::vector<uint32_t>> users;      // by partition: stages that need it
};

// Counts arrivals of one pull. Not thread-safe.
class ReadyStages {
 public:
  // `plan` must outlive this.
  explicit ReadyStages(const StagePlan* plan) : plan_(plan) { Reset(); }

  void Reset();
  void OnPartition(uint32_t partition);

  // Stages 0 .. count()-1 have all they need. 0 as long as none of them has parameters: computing
  // nothing but a reshape is not worth a start.
  size_t count() const { return any_ ? prefix_ : 0; }

 private:
  void Advance();

  const StagePlan* plan_;
  std::vector<size_t> missing_;  // by stage: partitions
  size_t prefix_ = 0;
  bool any_ = false;  // the prefix has a stage with parameters
};

}  // namespace parley

#endif  // PARLEY_WORKER_STAGE_PLAN_H_
