// PublishedWeights: what the readers of a dense partition hold when its changes travel encoded by a
// codec that loses much (int8, one_bit, top_k).
//
// All readers hold the same weights, the published ones, which differ from the true ones by what
// the codec has lost so far. After each update the change that is owed, true - published, is
// encoded; what the decoder makes of it is added to the published weights here as it is at every
// reader. What is lost stays in the next difference, so the error is fed back without a residual
// per reader (Seide et al., Interspeech 2014; Tang et al., "DoubleSqueeze", ICML 2019, for the way
// from server to worker).
//
// A reader says which version it holds. The current one: there is nothing to send. The one before:
// the change. Any other, or none: the published weights whole, as float32. The last change is kept
// until the next update, so that an answer that was lost can be given again.
//
// Of replaced workers, which compute a step once more, each reads what was published before the
// last update: it is kept, if asked for.
//
// Owned by one loop; not thread-safe (the Buffers are).
#ifndef PARLEY_PS_SERVER_PUBLISHED_WEIGHTS_H_
#define PARLEY_PS_SERVER_PUBLISHED_WEIGHTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/table_state.h"
#include "ps/codec/payload_codec.h"

namespace parley {

class PublishedWeights {
 public:
  // Version 0 is published whole: `initial`, float32 [n]. `codec` and `pool` must outlive this.
  // REQUIRES: codec->keeps_residual(), or the change of the weights would not be what is encoded.
  // `keeps_before`: of each update, the weights that it found are kept for ReadBefore.
  PublishedWeights(const PayloadCodec* codec, Buffer initial, BufferPool* pool,
                   bool keeps_before = false);

  // `weights`, float32 [n], are the true ones of `version` now.
  void OnUpdate(const Buffer& weights, uint64_t version);

  // What brings a reader from what it holds to version(): fills count, value_bytes, version and
  // base_version of `answer`. Empty, and count 0, if it holds them already.
  Buffer Read(const pb::Part& asked, pb::Part* answer) const;

  // The same for the weights before the last update, which whoever does not hold them gets whole.
  // REQUIRES: keeps_before; without an update yet it is Read.
  Buffer ReadBefore(const pb::Part& asked, pb::Part* answer) const;

  // As arrays named "server.published...", and in `state`.
  void Save(pb::HostedState* state, TableState* arrays) const;
  // kInvalidArgument: what was saved is not of so many weights.
  absl::Status Load(const pb::HostedState& state, const TableState& arrays);
  // For a checkpoint: the weights alone, in one array; and from it, as of `version`.
  void SaveWeights(TableState* arrays) const;
  absl::Status LoadWeights(const TableState& arrays, uint64_t version);

  // The same for the same published weights of one version.
  uint64_t Digest() const;

  uint64_t version() const { return version_; }
  // float32 [n].
  const Buffer& weights() const { return weights_; }

 private:
  const PayloadCodec* const codec_;
  BufferPool* const pool_;
  const bool keeps_before_;
  uint64_t version_ = 0;
  Buffer weights_;
  Buffer change_;             // encoded; empty if none is kept
  uint64_t change_base_ = 0;  // the version that change_ leads on from
  Buffer before_;             // the weights before the last update; empty: not kept
  uint64_t before_version_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PUBLISHED_WEIGHTS_H_
