// Lineage: which updates have led to the weights of one partition, when its primary changes.
//
// Each primary's words make a branch. A new primary begins where it stands in the branch of the one
// before: what that one had done beyond is left behind. A primary that does not know yet that its
// time is over goes on in a branch of its own, which leads nowhere.
//
// Thread-safety: none, as SimWorld.
#ifndef PARLEY_TESTS_SIM_LINEAGE_H_
#define PARLEY_TESTS_SIM_LINEAGE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "ps/base/ids.h"

namespace parley {

// One operation with gradients, or one push that came late.
struct Update {
  uint64_t index = 0;
  std::optional<uint64_t> tick = std::nullopt;
  std::vector<uint32_t> workers = {};
  std::vector<double> weights = {};  // of their gradients, in samples
  uint64_t sequence = 0;             // of an update without tick
  bool late = false;
  bool closes_all = false;  // the tick, for every worker
  uint64_t version = 0;     // afterwards
};

class Branch {
 public:
  Branch(NodeId node, uint64_t stint, uint32_t workers, uint64_t first_step);

  // False: one of them is in the lineage already; the worker is in *again.
  bool Add(Update update, uint32_t* again);
  bool Has(uint32_t worker, uint64_t tick) const { return places_.contains({worker, tick}); }
  // Of the operation that it is in. REQUIRES: Has.
  uint64_t IndexOf(uint32_t worker, uint64_t tick) const { return places_.at({worker, tick}); }
  // That a reader of `tick` gets under BSP; nothing: it is not known.
  std::optional<uint64_t> VersionFor(uint64_t tick) const;

  NodeId node() const { return node_; }
  uint64_t stint() const { return stint_; }
  uint64_t base() const { return base_; }  // operations taken over
  const std::vector<Update>& updates() const { return updates_; }
  const std::vector<uint64_t>& closed() const { return closed_; }
  const std::optional<uint64_t>& version() const { return version_; }
  // Of the weights that all begins with, if it is not known.
  void Begin(uint64_t version);

 private:
  friend class Lineage;
  void Close(uint32_t worker, uint64_t tick);

  NodeId node_;
  uint64_t stint_;
  uint64_t base_ = 0;
  std::vector<Update> updates_;
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> places_;  // (worker, tick) -> index
  std::set<std::pair<uint32_t, uint64_t>> without_tick_;      // (worker, sequence)
  std::vector<uint64_t> closed_;                              // by worker
  std::vector<std::set<uint64_t>> ahead_;                     // by worker: closed out of order
  std::map<uint64_t, uint64_t> before_;                       // tick -> version before it
  std::optional<uint64_t> begin_, version_;                   // nothing: not known
};

class Lineage {
 public:
  Lineage(uint32_t workers, uint64_t first_step) : workers_(workers), first_step_(first_step) {}

  // The branch of `node`, which became primary in the epoch `stint`. If it is new, it begins with
  // the operations up to `base` of the branch before, and *left_behind is what else is in that.
  // The reference is good until the next call.
  Branch& Of(NodeId node, uint64_t stint, uint64_t base, std::vector<Update>* left_behind);
  // The same, if it is not new; null: it is.
  const Branch* Find(NodeId node, uint64_t stint) const;
  // The one of whoever became primary next after `stint`; null: nobody that has said a word.
  const Branch* After(uint64_t stint) const;
  // The newest primary's; null: nobody has said a word.
  const Branch* current() const { return branches_.empty() ? nullptr : &branches_.back(); }

 private:
  const uint32_t workers_;
  const uint64_t first_step_;
  std::vector<Branch> branches_;  // by stint
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_LINEAGE_H_
