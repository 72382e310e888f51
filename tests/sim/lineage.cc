#include "tests/sim/lineage.h"

#include <algorithm>
#include <iterator>

namespace parley {

Branch::Branch(NodeId node, uint64_t stint, uint32_t workers, uint64_t first_step)
    : node_(node), stint_(stint), closed_(workers, first_step), ahead_(workers) {}

bool Branch::Add(Update update, uint32_t* again) {
  bool once = true;
  for (uint32_t worker : update.workers) {
    const bool is_new = update.tick.has_value()
                            ? places_.try_emplace({worker, *update.tick}, update.index).second
                            : without_tick_.insert({worker, update.sequence}).second;
    if (!is_new) {
      once = false;
      *again = worker;
    }
    if (update.tick.has_value() && !update.late) Close(worker, *update.tick);
  }
  if (update.closes_all) {
    for (uint32_t worker = 0; worker < closed_.size(); ++worker) Close(worker, *update.tick);
  }
  if (!update.late) {
    if (update.tick.has_value() && version_.has_value()) before_.emplace(*update.tick, *version_);
    version_ = update.version;
  }
  updates_.push_back(std::move(update));
  return once;
}

void Branch::Begin(uint64_t version) {
  if (version_.has_value()) return;
  begin_ = version_ = version;
}

void Branch::Close(uint32_t worker, uint64_t tick) {
  if (worker >= closed_.size()) return;
  std::set<uint64_t>& ahead = ahead_[worker];
  ahead.insert(tick);
  while (!ahead.empty() && *ahead.begin() <= closed_[worker]) {
    closed_[worker] = std::max(closed_[worker], *ahead.begin() + 1);
    ahead.erase(ahead.begin());
  }
}

std::optional<uint64_t> Branch::VersionFor(uint64_t tick) const {
  auto before = before_.find(tick);
  return before == before_.end() ? version_ : before->second;
}

const Branch* Lineage::Find(NodeId node, uint64_t stint) const {
  for (const Branch& branch : branches_) {
    if (branch.node_ == node && branch.stint_ == stint) return &branch;
  }
  return nullptr;
}

const Branch* Lineage::After(uint64_t stint) const {
  for (const Branch& branch : branches_) {
    if (branch.stint_ > stint) return &branch;
  }
  return nullptr;
}

Branch& Lineage::Of(NodeId node, uint64_t stint, uint64_t base, std::vector<Update>* left_behind) {
  auto place = branches_.end();  // behind all that began earlier
  while (place != branches_.begin() && std::prev(place)->stint_ >= stint) {
    --place;
    if (place->node_ == node && place->stint_ == stint) return *place;
  }
  Branch next(node, stint, workers_, first_step_);
  next.base_ = base;
  if (place != branches_.begin()) {
    const Branch& parent = *std::prev(place);
    if (parent.begin_.has_value()) next.Begin(*parent.begin_);
    uint32_t unused;
    for (const Update& update : parent.updates_) {
      if (update.index <= base) {
        next.Add(update, &unused);
      } else {
        left_behind->push_back(update);
      }
    }
  }
  return *branches_.insert(place, std::move(next));
}

}  // namespace parley
