#include "ps/sync/replay_guard.h"

#include <algorithm>
#include <cassert>

#include "absl/strings/str_format.h"

namespace parley {

ReplayGuard::ReplayGuard(std::vector<uint32_t> incarnations) : windows_(incarnations.size()) {
  for (size_t w = 0; w < incarnations.size(); ++w) windows_[w].incarnation = incarnations[w];
}

absl::Status ReplayGuard::Check(uint32_t worker, uint32_t incarnation, uint64_t sequence,
                                uint64_t acked_below, Verdict* verdict) const {
  if (worker >= windows_.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push: worker is %u; allowed: below %u", worker, windows_.size()));
  }
  const Window& window = windows_[worker];
  if (incarnation != window.incarnation) {
    return absl::FailedPreconditionError(
        absl::StrFormat("push of worker %u: incarnation is %u, but the current one is %u", worker,
                        incarnation, window.incarnation));
  }
  if (sequence == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push of worker %u: sequence is 0; allowed: from 1", worker));
  }
  if (acked_below > sequence) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push of worker %u: acked_below is %u; allowed: up to its sequence, %u",
                        worker, acked_below, sequence));
  }
  if (sequence - std::max<uint64_t>(acked_below, 1) >= kWindow) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("push of worker %u: sequence %u is %u or more past acked_below, %u; wait "
                        "for acknowledgements",
                        worker, sequence, kWindow, acked_below));
  }
  // Beyond the window nothing can have been seen; the bit of that place is another sequence's.
  const bool seen =
      sequence < window.forgotten_below ||
      (sequence - window.forgotten_below < kWindow && window.seen[sequence % kWindow]);
  *verdict = seen ? Verdict::kDuplicate : Verdict::kNew;
  return absl::OkStatus();
}

void ReplayGuard::Commit(uint32_t worker, uint64_t sequence, uint64_t acked_below) {
  assert(worker < windows_.size());
  Window& window = windows_[worker];
  Advance(&window, acked_below);
  assert(sequence >= window.forgotten_below && sequence - window.forgotten_below < kWindow);
  window.seen.set(sequence % kWindow);
}

bool ReplayGuard::Learn(uint32_t worker, uint64_t sequence, uint64_t acked_below) {
  assert(worker < windows_.size());
  Window& window = windows_[worker];
  Advance(&window, acked_below);
  if (sequence < window.forgotten_below || window.seen[sequence % kWindow]) return false;
  window.seen.set(sequence % kWindow);
  return true;
}

void ReplayGuard::OnNewIncarnation(uint32_t worker, uint32_t incarnation) {
  assert(worker < windows_.size());
  // Forgetting the window of the current incarnation would let its retries through again.
  if (windows_[worker].incarnation == incarnation) return;
  windows_[worker] = Window();
  windows_[worker].incarnation = incarnation;
}

ReplayGuard::State ReplayGuard::Save(uint32_t worker) const {
  assert(worker < windows_.size());
  const Window& window = windows_[worker];
  State state;
  state.incarnation = window.incarnation;
  state.seen_below = window.forgotten_below;
  state.seen.resize(kWindow / 8);
  for (uint64_t i = 0; i < kWindow; ++i) {
    if (window.seen[(window.forgotten_below + i) % kWindow]) state.seen[i / 8] |= 1 << (i % 8);
  }
  while (!state.seen.empty() && state.seen.back() == 0) state.seen.pop_back();
  return state;
}

absl::Status ReplayGuard::Load(uint32_t worker, const State& state) {
  assert(worker < windows_.size());
  if (state.seen_below == 0 || state.seen.size() > kWindow / 8) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "window of worker %u: all below %u and of %u more is seen; allowed: from 1, and up to %u",
        worker, state.seen_below, 8 * state.seen.size(), kWindow));
  }
  Window& window = windows_[worker];
  window = Window();
  window.incarnation = state.incarnation;
  window.forgotten_below = state.seen_below;
  for (uint64_t i = 0; i < 8 * state.seen.size(); ++i) {
    if (state.seen[i / 8] >> (i % 8) & 1) window.seen.set((state.seen_below + i) % kWindow);
  }
  return absl::OkStatus();
}

void ReplayGuard::Advance(Window* window, uint64_t to) {
  if (to <= window->forgotten_below) return;
  if (to - window->forgotten_below >= kWindow) {
    window->seen.reset();
  } else {
    for (uint64_t s = window->forgotten_below; s < to; ++s) window->seen.reset(s % kWindow);
  }
  window->forgotten_below = to;
}

}  // namespace parley
