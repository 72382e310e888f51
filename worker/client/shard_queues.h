// ShardQueues: what waits for each shard, in which order it leaves, how much is on its way, and
// what becomes of it when partitions move.
//
// Two lanes a shard: small messages have one of their own, so that they never stand behind bulk.
// All pushes of a partition take one lane, since they must leave in order, and a dense table has
// one for all its messages, since its pulls stay behind its pushes: the small one where no shard
// has more than kSmallBytes of it. A small message of a larger dense table stays in the bulk lane,
// where rank and credit alone decide what is in front of it. Within a lane pushes and pulls have
// separate credit, a bound on messages and on bytes between the first sending and the answer, after
// the credit of ByteScheduler (Peng et al., "A generic communication scheduler for distributed DNN
// training acceleration", SOSP 2019): enough to keep a link busy, and what becomes urgent later
// stands behind no more than that. Messages leave by their order: earlier steps first, and in a
// step what forward needs first (Jayarajan et al., "Priority- based parameter propagation for
// distributed DNN training", MLSys 2019); equals leave as they came. A pull leaves after the pushes
// before it in that order.
//
// A push that is answered PARKED gives its credit back: what it waits for now is other workers.
//
// Shards come and go with the partition map (decision 014). One is known by its NodeId and has a
// number here, never given to another. A request that its shard refuses with kFailedPrecondition is
// held until there is a newer map. With a newer map everything that is queued, on its way or held
// and not wholly at its shard any more is cut by owner and queued again in the place it had: a push
// that has left once in front of those that have not, since they may wait for its sequence.
//
// Why nothing deadlocks is in docs/decisions/013-client-scheduling.md; in short: a push waits for
// acknowledgements alone, or for being parked, which depend on nobody but the servers, and a pull
// waits for no pull of a later tick.
//
// Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_WORKER_CLIENT_SHARD_QUEUES_H_
#define PARLEY_WORKER_CLIENT_SHARD_QUEUES_H_

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"

namespace parley {

// One message, waiting or on its way. Made by a table, owned by the queues.
class ShardRequest {
 public:
  enum class Kind {
    kPush,
    kPushPull,  // leaves as such where a pull may leave, else as a push, with a pull to follow
    kPull,
    kLeave,
  };

  explicit ShardRequest(Kind kind) : kind(kind) {}
  virtual ~ShardRequest() = default;

  // A request for what one shard has of another, which is used up.
  struct Piece {
    uint32_t shard;
    std::unique_ptr<ShardRequest> request;
  };

  // Called when its turn has come, and again after TryAgain, a refusal or a move; then sequences
  // and values are those of the first time. What it returns is sent until it is answered, so it
  // must not change.
  virtual Frame MakeFrame() = 0;

  // "push of step 7 to <shard>".
  virtual std::string What(const std::string& shard) const = 0;

  // Pushes: whether the sequences it needs are free. Asked at the head of the queue.
  virtual bool MayLeave() const { return true; }

  // kPushPull: the pull half; this one goes on as kPush.
  virtual std::unique_ptr<ShardRequest> Split() { return nullptr; }

  // Whether the request should be sent again after `error`, ahead of what waits, rather than end
  // everything.
  virtual bool TryAgain(const absl::Status& error) {
    static_cast<void>(error);
    return false;
  }

  // Whether all that it is about is at `shard` by the newest map.
  virtual bool BelongsTo(uint32_t shard) const {
    static_cast<void>(shard);
    return true;
  }

  // Cuts it by owner as the newest map says, none or more; this one is over then and is told no
  // answer. Sequences, values as they travel, and place go on in the pieces.
  virtual std::vector<Piece> SplitByOwner() = 0;

  // An answer that does not fit the question is an error; then nothing has been called back.
  virtual absl::Status OnAnswer(Frame answer) = 0;

  Kind kind;
  // Its place: the lane, then `step` and `rank`, lower first. Small pushes have step 0; pulls are
  // in order of their ticks in either lane.
  bool small = false;
  uint64_t step = 0;
  uint64_t rank = 0;
  uint64_t push_bytes = 0;  // about what travels there
  uint64_t pull_bytes = 0;  // and back
  uint64_t pull_tick = 0;   // pulls: what they are wanted for

  // The queues' own: until when it may be refused; none while it is not.
  std::optional<absl::Duration> give_up_at;
};

class ShardQueues {
 public:
  // On their way to one shard in one lane, pushes and pulls each. One message is always let go,
  // whatever its size.
  static constexpr uint64_t kCreditMessages = 16;
  static constexpr uint64_t kCreditBytes = uint64_t{4} << 20;
  // A message of up to so many bytes is small.
  static constexpr uint64_t kSmallBytes = uint64_t{64} << 10;

  struct Options {
    uint32_t rank = 0, incarnation = 1;  // for whom: on every request
    absl::Duration progress_timeout = absl::Seconds(60);
    absl::AnyInvocable<void(const absl::Status&)> on_error;  // once
    absl::AnyInvocable<void(const std::string&)> log;        // may be empty
  };

  // `env` and `rpc` must outlive this.
  ShardQueues(Env* env, Rpc* rpc, Options options)
      : env_(env), rpc_(rpc), options_(std::move(options)) {}
  ~ShardQueues();
  ShardQueues(const ShardQueues&) = delete;
  ShardQueues& operator=(const ShardQueues&) = delete;

  // Its number; a node that is known keeps the one it has. `name`: "server 1 shard 0 (tcp://...)".
  uint32_t AddShard(NodeId node, std::string name);
  // All that ever were; their numbers are below it.
  size_t shards() const { return shards_.size(); }

  void Enqueue(uint32_t shard, std::unique_ptr<ShardRequest> request);

  // Around a change of owners: nothing leaves from the first call on; with the second, BelongsTo
  // and SplitByOwner go by the new owners, what has moved or is held is queued for them, and goes
  // on.
  void Pause() { paused_ = true; }
  void Reroute();

  // Pushes that wait or are not acknowledged. What is still being gathered is counted by Hold.
  uint64_t pushes_open() const { return pushes_open_; }
  void Hold() { ++pushes_open_; }
  void Release();
  void WhenAllAcknowledged(absl::AnyInvocable<void()> done);

  // The first error, from a shard or a caller, goes to on_error; afterwards nothing is sent.
  void Fail(const absl::Status& status);
  bool failed() const { return failed_; }

  // What has waited longest; empty if nothing is held or on its way. What waits for a newer map
  // comes first, since nothing else will set it going.
  std::string WaitingFor() const;

 private:
  struct Place {
    bool fresh = true;  // not a push that has left once
    uint64_t step, rank, serial;
    auto operator<=>(const Place&) const = default;
  };
  struct Load {
    uint64_t messages = 0, bytes = 0;
    bool Takes(uint64_t more) const {
      return messages == 0 || (messages < kCreditMessages && bytes + more <= kCreditBytes);
    }
  };
  // Pieces of one request may meet again at a shard, in one place.
  using Queue = std::multimap<Place, std::unique_ptr<ShardRequest>>;
  struct Lane {
    Queue pushes, pulls;
    Load pushing;
    std::map<uint64_t, Load> pulling;  // by tick; a push-pull counts here
  };
  struct Shard {
    NodeId node = kNoNode;
    std::string name;
    std::array<Lane, 2> lanes;  // small, bulk
  };
  struct InFlight {
    uint32_t shard;
    Place place;
    uint64_t maps;        // how many changes of owners it has seen
    bool charged = true;  // holds credit
    CallId call = CallId{0};
    std::unique_ptr<ShardRequest> request = nullptr;
  };
  // Waits for a newer map.
  struct Held {
    uint32_t shard;  // that refused it
    Place place;
    std::string said;
    TimerId timer;
    std::unique_ptr<ShardRequest> request;
  };

  static bool PullsTake(const Lane& lane, const ShardRequest& request);
  static void Charge(Lane& lane, const ShardRequest& request, bool back);
  Lane& LaneOf(uint32_t shard, const ShardRequest& request) {
    return shards_[shard].lanes[request.small ? 0 : 1];
  }
  void GiveCreditBack(InFlight& flight);
  Place NewPlace(const ShardRequest& request);
  void Insert(uint32_t shard, const Place& place, std::unique_ptr<ShardRequest> request);
  void Pump(uint32_t shard);
  bool SendPush(uint32_t shard, Lane& lane);
  bool SendPull(uint32_t shard, Lane& lane);
  void Send(uint32_t shard, const Place& place, std::unique_ptr<ShardRequest> request);
  void OnParked(uint64_t id);
  void OnAnswer(uint64_t id, absl::StatusOr<Frame> answer);
  void OnRefused(InFlight flight, const absl::Status& error);
  void OnGiveUp(uint64_t id);
  void OnError(uint32_t shard, const ShardRequest& request, const absl::Status& error);
  void CancelAll();

  Env* const env_;
  Rpc* const rpc_;
  Options options_;
  std::vector<Shard> shards_;
  std::map<uint64_t, InFlight> in_flight_;  // in order of sending
  std::map<uint64_t, Held> held_;           // the same
  uint64_t next_serial_ = 1, next_flight_ = 1;
  uint64_t maps_ = 0;  // changes of owners so far
  uint64_t pushes_open_ = 0;
  absl::AnyInvocable<void()> on_all_acknowledged_;
  bool paused_ = false;
  bool failed_ = false;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SHARD_QUEUES_H_
