#include "worker/stage_plan.h"

#include <algorithm>
#include <cassert>

namespace parley {

StagePlan StagePlan::Create(const Model& model, const DenseLayout& layout) {
  StagePlan plan;
  const size_t stages = model.stages();
  plan.needs.resize(stages);
  plan.completes.resize(stages);
  plan.users.resize(layout.partitions());
  for (size_t stage = 0; stage < stages; ++stage) {
    const Range tensors = model.stage_tensors(stage);
    for (uint64_t tensor = tensors.begin; tensor < tensors.end; ++tensor) {
      const Range partitions = layout.PartitionsOf(layout.tensor(tensor));
      for (uint64_t p = partitions.begin; p < partitions.end; ++p) {
        std::vector<uint32_t>& users = plan.users[p];
        if (!users.empty() && users.back() == stage) continue;  // two tensors of one stage
        users.push_back(static_cast<uint32_t>(stage));
        plan.needs[stage].push_back(static_cast<uint32_t>(p));
      }
    }
  }
  for (uint32_t p = 0; p < layout.partitions(); ++p) {
    assert(!plan.users[p].empty());
    plan.completes[plan.users[p].front()].push_back(p);
  }
  return plan;
}

void ReadyStages::Reset() {
  missing_.clear();
  for (const std::vector<uint32_t>& partitions : plan_->needs)
    missing_.push_back(partitions.size());
  prefix_ = 0;
  any_ = false;
  Advance();
}

void ReadyStages::OnPartition(uint32_t partition) {
  for (uint32_t stage : plan_->users[partition]) --missing_[stage];
  Advance();
}

void ReadyStages::Advance() {
  while (prefix_ < missing_.size() && missing_[prefix_] == 0) {
    any_ |= !plan_->needs[prefix_].empty();
    ++prefix_;
  }
}

}  // namespace parley
