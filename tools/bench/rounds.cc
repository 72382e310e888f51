#include "tools/bench/rounds.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

double Quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  const size_t k = std::min(values.size() - 1, static_cast<size_t>(values.size() * q));
  std::nth_element(values.begin(), values.begin() + k, values.end());
  return values[k];
}

}  // namespace

void Rounds::Run(absl::AnyInvocable<void()> done) {
  done_ = std::move(done);
  BeginCase();
}

void Rounds::BeginCase() {
  round_ = 0;
  values_.clear();
  p99_.clear();
  begun_.assign(cases_[case_].lanes, 0);
  MeetForRound();
}

// Rates of several workers are added up, which is honest only if they were busy at the same time.
// The meeting comes back by way of the loop, so that the stack does not grow by a round each.
void Rounds::MeetForRound() {
  context_.meet(absl::StrCat("case-", case_, "-round-", round_), [this] { BeginRound(); });
}

void Rounds::BeginRound() {
  ops_ = 0;
  times_us_.clear();
  watch_.emplace();
  active_ = cases_[case_].lanes;
  for (uint32_t lane = 0; lane < cases_[case_].lanes; ++lane) Begin(lane);
}

void Rounds::Begin(uint32_t lane) {
  if (cases_[case_].latency) begun_[lane] = watch_->Seconds();
  cases_[case_].begin(lane, [this, lane] { OnDone(lane); });
}

void Rounds::OnDone(uint32_t lane) {
  ++ops_;
  const double now = watch_->Seconds();
  if (cases_[case_].latency) times_us_.push_back((now - begun_[lane]) * 1e6);
  if (now * 1e3 < context_.plan->round_ms) {
    Begin(lane);
  } else if (--active_ == 0) {
    EndRound();
  }
}

void Rounds::EndRound() {
  const BenchCase& now = cases_[case_];
  const double seconds = watch_->Seconds();
  if (round_ > 0) {
    if (now.latency) {
      values_.push_back(Quantile(times_us_, 0.5));
      p99_.push_back(Quantile(times_us_, 0.99));
    } else {
      values_.push_back(static_cast<double>(ops_) * now.units_per_op / seconds);
    }
  }
  if (round_++ < context_.plan->rounds) {
    MeetForRound();
  } else {
    EndCase();
  }
}

void Rounds::EndCase() {
  const BenchCase& now = cases_[case_];
  Series series{now.name, now.unit, values_};
  if (now.latency) {
    series.name = now.name + ".p50";
    context_.record({now.name + ".p99", now.unit, p99_});
  }
  context_.record(series);
  context_.say(absl::StrFormat("  %-24s %10.3f %-8s (%.3f to %.3f)", series.name, series.median(),
                               series.unit, series.min(), series.max()));
  if (++case_ < cases_.size()) {
    context_.env->Post([this] { BeginCase(); });
  } else {
    context_.env->Post([this] { std::exchange(done_, nullptr)(); });
  }
}

}  // namespace parley
