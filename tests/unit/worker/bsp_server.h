// A BSP server that does nothing but what the contract says: it applies a step when all workers
// that have not left before it have pushed it, in rank order, and lets nobody read ahead.
#ifndef PARLEY_TESTS_UNIT_WORKER_BSP_SERVER_H_
#define PARLEY_TESTS_UNIT_WORKER_BSP_SERVER_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"
#include "ps/base/dense_layout.h"
#include "ps/table/dense_partition.h"
#include "ps/wire/payload.h"
#include "tests/unit/worker/fake_server.h"

namespace parley {

// Who has pushed what: (rank, tick, partition) -> the weight and the gradient's bytes.
using PushHistory =
    std::map<std::tuple<uint32_t, uint64_t, uint32_t>, std::pair<double, std::string>>;

// The partitions of the dense table that one shard holds. Answers with what it last overwrote, too,
// as a server does that expects workers to be replaced.
class BspServer {
 public:
  BspServer(const pb::TableSpec& table, const DenseLayout& layout, const Optimizer* optimizer,
            uint32_t workers)
      : table_(table), layout_(layout), optimizer_(optimizer), leave_after_(workers, kNever) {}

  void Handle(FakeServer& server, NodeId from, Frame request) {
    const pb::FrameHeader& header = request.header;
    if (auto known = incarnations_.find(header.rank());
        known != incarnations_.end() && known->second != header.incarnation()) {
      ++refused_;
      server.rpc().ReplyError(from, header, absl::FailedPreconditionError("another incarnation"));
      return;
    }
    if (header.kind() == pb::LEAVE) {
      pb::Leave leave;
      ASSERT_TRUE(leave.ParseFromString(header.body()));
      leave_after_[header.rank()] = leave.after_tick();
      server.rpc().Reply(from, header, Frame());
    } else if (header.kind() == pb::PUSH) {
      Take(request);
      server.rpc().Reply(from, header, Frame());
    } else if (header.kind() == pb::PUSH_PULL) {
      ++fused_;
      Take(request);
      parked_.push_back({&server, from, header, header.pull_tick()});
    } else {
      parked_.push_back({&server, from, header, header.tick()});
    }
    Advance();
  }

  // From now on only this incarnation of `rank` is heard, whose sequences begin anew. What was
  // taken from the one before stays, and is pushed again in vain.
  void Replace(uint32_t rank, uint32_t incarnation) {
    incarnations_[rank] = incarnation;
    for (auto& [index, part] : parts_) part.sequences.erase(rank);
  }
  // Of a step of which some partition here has nothing from `rank`; of all such partitions' first.
  uint64_t LowestMissing(uint32_t rank) const {
    uint64_t lowest = parts_.empty() ? 0 : kNever;
    for (const auto& [index, part] : parts_) lowest = std::min(lowest, Missing(part, rank));
    return lowest;
  }
  uint64_t HighestMissing(uint32_t rank) const {
    uint64_t highest = 0;
    for (const auto& [index, part] : parts_) highest = std::max(highest, Missing(part, rank));
    return highest;
  }
  // A new generation: the first weights, and nothing is known.
  void Forget() {
    parts_.clear();
    parked_.clear();
    incarnations_.clear();
    std::fill(leave_after_.begin(), leave_after_.end(), kNever);
  }
  // Takes from `history` what was pushed below `tick`, as if it had come.
  void Replay(const PushHistory& history, uint64_t tick, const std::set<uint32_t>& partitions) {
    for (const auto& [key, push] : history) {
      const auto [rank, step, partition] = key;
      if (step >= tick || !partitions.contains(partition)) continue;
      PartOf(partition).steps[step].emplace(rank, std::pair(push.first, Buffer::Copy(push.second)));
    }
    Advance();
  }

  const PushHistory& history() const { return history_; }
  uint64_t again() const { return again_; }      // parts that were pushed before
  uint64_t refused() const { return refused_; }  // requests of a former incarnation
  uint64_t empty_pushes() const { return empty_pushes_; }
  uint64_t fused() const { return fused_; }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};
  struct Part {
    std::unique_ptr<DensePartition> weights;
    std::map<uint32_t, uint64_t> sequences;  // by worker: the last seen
    std::map<uint64_t, std::map<uint32_t, std::pair<double, Buffer>>> steps;
    Buffer overwritten;  // the weights before the last step
  };
  struct Parked {
    FakeServer* server;
    NodeId from;
    pb::FrameHeader request;
    uint64_t tick;  // that is to be read
  };

  Part& PartOf(uint32_t index) {
    Part& part = parts_[index];
    if (part.weights == nullptr) {
      part.weights = std::make_unique<DensePartition>(table_, layout_, index, optimizer_, &pool_);
    }
    return part;
  }

  static uint64_t Missing(const Part& part, uint32_t rank) {
    uint64_t tick = part.weights->version();
    for (auto step = part.steps.find(tick); step != part.steps.end() && step->second.contains(rank);
         step = part.steps.find(tick)) {
      ++tick;
    }
    return tick;
  }

  void Take(const Frame& request) {
    const pb::FrameHeader& header = request.header;
    const std::vector<PartPayload> payload = SplitPayload(request);
    if (header.weight() == 0) ++empty_pushes_;
    for (int i = 0; i < header.part_size(); ++i) {
      const uint32_t partition = header.part(i).partition();
      Part& part = PartOf(partition);
      EXPECT_EQ(header.part(i).sequence(), ++part.sequences[header.rank()]);
      const std::string bytes(payload[i].values.view());
      const auto [first, is_new] = history_.emplace(
          std::tuple(header.rank(), header.tick(), partition), std::pair(header.weight(), bytes));
      if (!is_new) {
        ++again_;
        EXPECT_EQ(first->second.first, header.weight()) << "step " << header.tick();
        EXPECT_TRUE(first->second.second == bytes)
            << "step " << header.tick() << " of worker " << header.rank() << ", partition "
            << partition << ": other bits than before";
      }
      if (header.tick() < Missing(part, header.rank())) {
        EXPECT_TRUE(incarnations_.contains(header.rank()))
            << "step " << header.tick() << " pushed twice";
        continue;
      }
      part.steps[header.tick()].emplace(header.rank(),
                                        std::pair(header.weight(), payload[i].values));
    }
  }

  bool Complete(const Part& part, uint64_t tick) const {
    auto step = part.steps.find(tick);
    if (step == part.steps.end()) return false;
    for (uint32_t w = 0; w < leave_after_.size(); ++w) {
      if (leave_after_[w] > tick && !step->second.contains(w)) return false;
    }
    return true;
  }

  void Advance() {
    for (auto& [index, part] : parts_) {
      while (Complete(part, part.weights->version())) {
        StepInfo info{.step = part.weights->version()};
        double samples = 0;
        std::vector<const float*> gradients;
        for (const auto& [worker, contribution] : part.steps[info.step]) {
          samples += contribution.first;
          if (contribution.first > 0) gradients.push_back(contribution.second.floats());
        }
        info.inverse_weight = 1 / samples;
        part.overwritten = part.weights->Read();
        part.weights->Apply(gradients, info);
        part.steps.erase(info.step);
      }
    }
    std::erase_if(parked_, [this](const Parked& parked) { return TryAnswer(parked); });
  }

  bool TryAnswer(const Parked& parked) {
    Frame answer;
    for (const pb::Part& asked : parked.request.part()) {
      Part& part = PartOf(asked.partition());
      const uint64_t version = part.weights->version();
      const bool all_left =
          std::all_of(leave_after_.begin(), leave_after_.end(),
                      [&](uint64_t after) { return after != kNever && version >= after; });
      if (parked.tick > version && !all_left) return false;
      pb::Part* out = answer.header.add_part();
      out->set_partition(asked.partition());
      out->set_count(part.weights->size());
      out->set_version(version);
      out->set_min_clock(version);
      const bool behind = parked.tick < version && !all_left;
      if (behind) {
        EXPECT_EQ(parked.tick + 1, version) << "nobody may be further behind";
      }
      answer.payload.push_back(behind ? part.overwritten : part.weights->Read());
    }
    parked.server->rpc().Reply(parked.from, parked.request, std::move(answer));
    return true;
  }

  const pb::TableSpec table_;
  const DenseLayout layout_;
  const Optimizer* const optimizer_;
  BufferPool pool_;
  std::vector<uint64_t> leave_after_;
  std::map<uint32_t, Part> parts_;
  std::vector<Parked> parked_;
  std::map<uint32_t, uint32_t> incarnations_;  // of workers that were replaced
  PushHistory history_;
  uint64_t empty_pushes_ = 0, fused_ = 0, again_ = 0, refused_ = 0;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_BSP_SERVER_H_
