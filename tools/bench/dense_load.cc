#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "tools/bench/load.h"
#include "tools/bench/rounds.h"

namespace parley {
namespace {

// One of the vectors in flight: a table, its gradient and where its weights arrive.
struct Vector {
  DenseTable* table = nullptr;
  std::vector<uint32_t> partitions;
  Buffer gradient, parameters;
  uint64_t tick = 0;
};

class DenseLoad : public Load {
 public:
  explicit DenseLoad(LoadContext context) : context_(std::move(context)) {
    const BenchPlan& plan = *context_.plan;
    for (uint32_t i = 0; i < plan.in_flight; ++i) vectors_.push_back(MakeVector(i + 1));
    const bool latency = plan.load == "latency";
    const double gigabytes = plan.bytes * 1e-9;
    std::vector<BenchCase> cases;
    // Push first: it also makes all weights once, before they are read.
    if (!latency) {
      BenchCase push;
      push.name = "push";
      push.unit = "GB/s";
      push.units_per_op = gigabytes * plan.in_flight;
      push.begin = [this](uint32_t, Done done) { PushAll(std::move(done)); };
      cases.push_back(std::move(push));
    }
    const auto add = [&](const char* name, void (DenseLoad::*operation)(Vector*, Done)) {
      BenchCase one;
      one.name = name;
      one.unit = latency ? "us" : "GB/s";
      one.units_per_op = gigabytes;
      one.lanes = plan.in_flight;
      one.latency = latency;
      one.begin = [this, operation](uint32_t lane, Done done) {
        (this->*operation)(&vectors_[lane], std::move(done));
      };
      cases.push_back(std::move(one));
    };
    add("pull", &DenseLoad::Pull);
    add("push_then_pull", &DenseLoad::PushThenPull);
    add("push_pull", &DenseLoad::PushPull);
    rounds_ = std::make_unique<Rounds>(&context_, std::move(cases));
  }

  void Start(absl::AnyInvocable<void()> done) override { rounds_->Run(std::move(done)); }

  uint64_t ticks() const override {
    uint64_t ticks = 0;
    for (const Vector& vector : vectors_) ticks = std::max(ticks, vector.tick);
    return ticks;
  }

 private:
  using Done = absl::AnyInvocable<void()>;

  Vector MakeVector(uint32_t table) const {
    Vector vector;
    vector.table = context_.client->dense(table);
    vector.partitions.resize(vector.table->layout().partitions());
    std::iota(vector.partitions.begin(), vector.partitions.end(), 0);
    const uint64_t floats = vector.table->layout().elements();
    vector.gradient = context_.pool->Allocate(floats * sizeof(float));
    vector.parameters = context_.pool->Allocate(floats * sizeof(float));
    // Values of both signs and several sizes, so that codecs have something to do.
    for (uint64_t i = 0; i < floats; ++i) {
      vector.gradient.mutable_floats()[i] = 1e-3f * static_cast<float>(i % 17) - 8e-3f;
    }
    std::fill_n(vector.parameters.mutable_floats(), floats, 0.0f);
    return vector;
  }

  // A push has no callback of its own; all in flight are acknowledged together.
  void PushAll(Done done) {
    for (Vector& vector : vectors_) {
      vector.table->Push(vector.tick++, 1, vector.partitions, vector.gradient);
    }
    context_.client->WhenAllAcknowledged(std::move(done));
  }

  void Pull(Vector* vector, Done done) {
    vector->table->Pull(vector->tick, vector->parameters.mutable_floats(), Ignore(),
                        [done = std::move(done)](const PullResult&) mutable { done(); });
  }

  // The pull follows its push in the shard's queue, so it brings what the push made of the weights.
  void PushThenPull(Vector* vector, Done done) {
    vector->table->Push(vector->tick++, 1, vector->partitions, vector->gradient);
    Pull(vector, std::move(done));
  }

  void PushPull(Vector* vector, Done done) {
    const uint64_t tick = vector->tick++;
    vector->table->BeginPull(tick + 1, vector->parameters.mutable_floats(), Ignore(),
                             [done = std::move(done)](const PullResult&) mutable { done(); });
    vector->table->PushPull(tick, 1, vector->partitions, vector->gradient);
  }

  static DenseTable::OnArrived Ignore() {
    return [](absl::Span<const uint32_t>) {};
  }

  const LoadContext context_;
  std::vector<Vector> vectors_;
  std::unique_ptr<Rounds> rounds_;
};

}  // namespace

std::unique_ptr<Load> MakeDenseLoad(LoadContext context) {
  return std::make_unique<DenseLoad>(std::move(context));
}

std::unique_ptr<Load> Load::Create(LoadContext context) {
  return context.plan->sparse() ? MakeSparseLoad(std::move(context))
                                : MakeDenseLoad(std::move(context));
}

}  // namespace parley
