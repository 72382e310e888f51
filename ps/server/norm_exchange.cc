#include "ps/server/norm_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/net/scheduler_link.h"

namespace parley {

NormExchange::NormExchange(Rpc* rpc, NodeId self, Setup setup, OnTotal on_total, OnError on_error)
    : rpc_(rpc),
      self_(self),
      setup_(std::move(setup)),
      on_total_(std::move(on_total)),
      on_error_(std::move(on_error)) {}

NormExchange::~NormExchange() {
  for (const auto& [number, call] : calls_) rpc_->Cancel(call);
}

void NormExchange::Add(uint32_t partition, NormGroup group, double sum_of_squares) {
  // Partitions of this shard that have applied the group, under an earlier map or as a copy, do not
  // add their share again: who comes after them would wait for it for ever.
  if (auto known = totals_.find(group); known != totals_.end()) {
    on_total_(group, known->second);
    return;
  }
  std::map<uint32_t, double>& shares = local_[group];
  shares[partition] = sum_of_squares;
  if (shares.size() < setup_.local_partitions) return;
  std::map<uint32_t, double> complete = std::move(shares);
  local_.erase(group);

  if (setup_.coordinator == self_) {
    Collecting& collecting = collecting_[group];
    collecting.partials.insert(complete.begin(), complete.end());
    Collect(group, collecting);
    return;
  }
  pb::Norm norm;
  norm.set_table(setup_.table);
  norm.set_step(group.tick);
  norm.set_worker(group.worker);
  for (const auto& [index, sum] : complete) {
    pb::Norm::Partial* partial = norm.add_partial();
    partial->set_partition(index);
    partial->set_sum_of_squares(sum);
  }
  Ask(group, norm);
}

void NormExchange::Know(NormGroup group, double total) {
  if (setup_.coordinator == self_) {
    if (!totals_.contains(group)) Finish(group, total, collecting_[group]);
    return;
  }
  Remember(group, total);
  pb::Norm norm;
  norm.set_table(setup_.table);
  norm.set_step(group.tick);
  norm.set_worker(group.worker);
  norm.set_total(total);
  Ask(group, norm);
}

void NormExchange::Ask(NormGroup group, const pb::Norm& norm) {
  Frame frame;
  frame.header.set_kind(pb::NORM);
  frame.header.set_table(setup_.table);
  frame.header.set_epoch(setup_.epoch);
  frame.header.set_body(norm.SerializeAsString());
  CallOptions options{.deadline = setup_.deadline,
                      .what = absl::StrFormat("gradient norm of step %d from %s", group.tick,
                                              setup_.coordinator_name)};
  const uint64_t number = next_call_++;
  const CallId call = rpc_->Call(setup_.coordinator, std::move(frame), std::move(options),
                                 [this, group, number](absl::StatusOr<Frame> answer) {
                                   calls_.erase(number);
                                   pb::Norm total;
                                   absl::Status status =
                                       answer.ok() ? ParseBody(*answer, &total) : answer.status();
                                   // One of the two is at another map: the next one asks anew.
                                   if (absl::IsFailedPrecondition(status)) return;
                                   if (!status.ok()) {
                                     on_error_(status);
                                   } else {
                                     Remember(group, total.total());
                                     on_total_(group, total.total());
                                   }
                                 });
  calls_.emplace(number, call);
}

void NormExchange::OnRequest(NodeId from, const Frame& request, const pb::Norm& norm) {
  if (setup_.coordinator != self_) {
    rpc_->ReplyError(from, request.header,
                     absl::FailedPreconditionError("this shard does not own partition 0"));
    return;
  }
  const NormGroup group{norm.step(), norm.worker()};
  if (auto known = totals_.find(group); known != totals_.end()) {
    Answer(from, request.header, known->second);
    return;
  }
  if (norm.has_total()) {
    // Of an owner, which all that answer to this shard are: it has applied the group with it.
    if (std::find(setup_.owners.begin(), setup_.owners.end(), from) == setup_.owners.end()) {
      rpc_->ReplyError(from, request.header,
                       absl::PermissionDeniedError("only owners of the table know norms"));
      return;
    }
    Finish(group, norm.total(), collecting_[group]);
    Answer(from, request.header, norm.total());
    return;
  }
  if (norm.partial().empty()) {
    // Or a stranger could open groups that nobody will ever complete.
    rpc_->ReplyError(
        from, request.header,
        absl::InvalidArgumentError("a norm needs the share of one partition at least"));
    return;
  }
  for (const pb::Norm::Partial& partial : norm.partial()) {
    const bool owned =
        partial.partition() < setup_.owners.size() && setup_.owners[partial.partition()] == from;
    // Not a number is what a diverged run has, and it must end as it would on one server.
    if (owned && !(partial.sum_of_squares() < 0)) continue;
    rpc_->ReplyError(from, request.header,
                     absl::InvalidArgumentError(absl::StrFormat(
                         "norm of partition %d is %g; allowed are the sender's own partitions and "
                         "sums of squares that are not negative",
                         partial.partition(), partial.sum_of_squares())));
    return;
  }
  if (collecting_.size() >= kMaxOpen && !collecting_.contains(group)) {
    rpc_->ReplyError(from, request.header,
                     absl::ResourceExhaustedError("too many gradient norms are open"));
    return;
  }
  Collecting& collecting = collecting_[group];
  for (const pb::Norm::Partial& partial : norm.partial()) {
    collecting.partials.emplace(partial.partition(), partial.sum_of_squares());
  }
  const bool again =
      !collecting.waiting.emplace(std::pair(from, request.header.request_id()), request.header)
           .second;
  if (again) {
    rpc_->ReplyParked(
        from, request.header,
        absl::StrFormat("%d of %d partitions for the norm of step %d", collecting.partials.size(),
                        setup_.owners.size(), group.tick));
  }
  Collect(group, collecting);
}

void NormExchange::Collect(NormGroup group, Collecting& collecting) {
  if (collecting.partials.size() < setup_.owners.size()) return;
  double total = 0;
  for (const auto& [partition, sum] : collecting.partials) total += sum;
  Finish(group, total, collecting);
}

void NormExchange::Remember(NormGroup group, double total) {
  local_.erase(group);
  if (!totals_.emplace(group, total).second) return;
  totals_order_.push_back(group);
  if (totals_order_.size() <= kRemembered) return;
  totals_.erase(totals_order_.front());
  totals_order_.pop_front();
}

void NormExchange::Finish(NormGroup group, double total, Collecting& collecting) {
  Remember(group, total);
  for (const auto& [key, request] : collecting.waiting) Answer(key.first, request, total);
  collecting_.erase(group);
  on_total_(group, total);
}

void NormExchange::Answer(NodeId to, const pb::FrameHeader& request, double total) {
  pb::Norm answer;
  answer.set_table(setup_.table);
  answer.set_total(total);
  Frame frame;
  frame.header.set_body(answer.SerializeAsString());
  rpc_->Reply(to, request, std::move(frame));
}

}  // namespace parley
