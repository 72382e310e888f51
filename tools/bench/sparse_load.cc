#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/limits/key_pool.h"
#include "tools/bench/load.h"
#include "tools/bench/rounds.h"

namespace parley {
namespace {

constexpr uint64_t kFillKeys = 100'000;  // of a push
constexpr uint32_t kFillPushes = 4;      // on their way at once
// Between two looks at the clock: it costs as much as a tenth of a small update.
constexpr uint64_t kAcksPerLook = 256;

using Done = absl::AnyInvocable<void()>;

// Creates this worker's share of the table's rows, by pushing to each once.
class Filler {
 public:
  Filler(const LoadContext* context, SparseTable* table, uint64_t* tick)
      : context_(*context), table_(table), tick_(*tick) {
    const uint64_t rows = context_.plan->table_keys, workers = context_.plan->workers;
    next_ = rows * context_.rank / workers;
    end_ = rows * (context_.rank + 1) / workers;
    gradients_.assign(kFillKeys * table_->dim(), 1e-3f);
  }

  void Run(Done done) {
    done_ = std::move(done);
    for (uint32_t i = 0; i < kFillPushes; ++i) ++open_, Push();
  }

 private:
  void Push() {
    if (next_ >= end_) {
      if (--open_ == 0) std::exchange(done_, nullptr)();
      return;
    }
    keys_.resize(std::min(kFillKeys, end_ - next_));
    for (uint64_t& key : keys_) key = KeyOfRow(next_++);
    // Push copies what it needs, so the lists of several may share their memory.
    table_->Push(tick_++, 1, keys_, gradients_.data(),
                 [this] { context_.env->Post([this] { Push(); }); });
  }

  const LoadContext& context_;
  SparseTable* const table_;
  uint64_t& tick_;
  uint64_t next_ = 0, end_ = 0;
  uint32_t open_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<float> gradients_;
  Done done_;
};

// Pulls and pushes of many keys.
class BatchCases {
 public:
  BatchCases(const LoadContext* context, SparseTable* table, KeyPool* pool, uint64_t* tick)
      : plan_(*context->plan), table_(table), pool_(*pool), tick_(*tick) {
    const uint64_t floats = uint64_t{plan_.keys} * table_->dim();
    rows_.resize(plan_.in_flight);
    for (Buffer& rows : rows_) rows = context->pool->Allocate(floats * sizeof(float));
    gradients_.assign(floats, 1e-3f);
    for (uint32_t i = 0; i < plan_.key_lists; ++i) lists_.push_back(pool_.Next(plan_.keys));
    std::vector<BenchCase> cases(2);
    cases[0].name = "pull";
    cases[0].begin = [this](uint32_t lane, Done done) {
      table_->Pull(tick_, NextKeys(), rows_[lane].mutable_floats(),
                   [done = std::move(done)](const PullResult&) mutable { done(); });
    };
    cases[1].name = "push";
    cases[1].begin = [this](uint32_t, Done done) {
      table_->Push(tick_++, 1, NextKeys(), gradients_.data(), std::move(done));
    };
    for (BenchCase& one : cases) {
      one.unit = "Mkeys/s";
      one.units_per_op = plan_.keys * 1e-6;
      one.lanes = plan_.in_flight;
    }
    rounds_ = std::make_unique<Rounds>(context, std::move(cases));
  }

  void Run(Done done) { rounds_->Run(std::move(done)); }

 private:
  absl::Span<const uint64_t> NextKeys() {
    if (lists_.empty()) return pool_.Next(plan_.keys);
    return lists_[turn_++ % lists_.size()];
  }

  const BenchPlan& plan_;
  SparseTable* const table_;
  KeyPool& pool_;
  uint64_t& tick_;
  std::vector<Buffer> rows_;  // by lane
  std::vector<float> gradients_;
  std::vector<absl::Span<const uint64_t>> lists_;
  uint64_t turn_ = 0;
  std::unique_ptr<Rounds> rounds_;
};

// Small updates, a window of them always open. The window stays open while the workers meet between
// rounds, so what is counted are acknowledgements in a stretch of time, the same one for all.
class RateCase {
 public:
  RateCase(const LoadContext* context, SparseTable* table, KeyPool* pool)
      : context_(*context), table_(table), pool_(*pool), gradient_(table->dim(), 1e-3f) {}

  void Run(Done done) {
    done_ = std::move(done);
    context_.meet("rate", [this] {
      for (uint32_t i = 0; i < context_.plan->in_flight; ++i) Update();
      BeginRound();
    });
  }

 private:
  void Update() {
    ++open_;
    table_->Update(pool_.Next(1), gradient_.data(), [this] { OnAcked(); });
  }

  void OnAcked() {
    --open_;
    if (++acked_ % kAcksPerLook == 0 && watch_.has_value() &&
        watch_->Seconds() * 1e3 >= context_.plan->round_ms) {
      EndRound();
    }
    if (!over_) {
      Update();
    } else if (open_ == 0) {  // also where the acknowledgement that ended it was the last
      Finish();
    }
  }

  void BeginRound() {
    acked_ = 0;
    watch_.emplace();
  }

  void EndRound() {
    if (round_ > 0) values_.push_back(static_cast<double>(acked_) / watch_->Seconds() * 1e-6);
    watch_.reset();
    over_ = round_++ == context_.plan->rounds;
    if (!over_) context_.meet(absl::StrCat("rate-", round_), [this] { BeginRound(); });
  }

  void Finish() {
    const Series series{"update", "M/s", values_};
    context_.record(series);
    context_.say(absl::StrFormat("  %-24s %10.3f %-8s (%.3f to %.3f)", series.name, series.median(),
                                 series.unit, series.min(), series.max()));
    context_.env->Post(std::exchange(done_, nullptr));
  }

  const LoadContext& context_;
  SparseTable* const table_;
  KeyPool& pool_;
  const std::vector<float> gradient_;
  Done done_;
  std::optional<Stopwatch> watch_;  // of the round; none while the workers meet
  uint64_t acked_ = 0;
  uint32_t open_ = 0;
  uint32_t round_ = 0;  // 0 is not counted
  bool over_ = false;
  std::vector<double> values_;
};

class SparseLoad : public Load {
 public:
  explicit SparseLoad(LoadContext context)
      : context_(std::move(context)),
        table_(context_.client->sparse(1)),
        pool_({.rows = context_.plan->table_keys,
               .zipf = KeyPool::ParseDistribution(context_.plan->distribution).value_or(0),
               .seed = context_.rank + 1}),
        filler_(&context_, table_, &tick_) {
    if (context_.plan->load == "rate") {
      rate_ = std::make_unique<RateCase>(&context_, table_, &pool_);
    } else {
      batch_ = std::make_unique<BatchCases>(&context_, table_, &pool_, &tick_);
    }
  }

  void Start(Done done) override {
    const Stopwatch watch;
    filler_.Run([this, watch, done = std::move(done)]() mutable {
      context_.say(absl::StrFormat("  filled %d rows in %.1f s", context_.plan->table_keys,
                                   watch.Seconds()));
      if (rate_ != nullptr) {
        rate_->Run(std::move(done));
      } else {
        batch_->Run(std::move(done));
      }
    });
  }

  uint64_t ticks() const override { return tick_; }

 private:
  const LoadContext context_;
  SparseTable* const table_;
  KeyPool pool_;
  uint64_t tick_ = 0;
  Filler filler_;
  std::unique_ptr<RateCase> rate_;
  std::unique_ptr<BatchCases> batch_;
};

}  // namespace

std::unique_ptr<Load> MakeSparseLoad(LoadContext context) {
  return std::make_unique<SparseLoad>(std::move(context));
}

}  // namespace parley
