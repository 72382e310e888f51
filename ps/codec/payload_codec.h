// PayloadCodec: how the values of a push or a pull are made smaller on their way.
//
// A codec turns n floats into bytes and back, and may lose something. Those that lose much keep
// what they lost in a residual beside the values and add it to the next call's (error feedback:
// Seide et al., "1-bit stochastic gradient descent", Interspeech 2014). A codec of one's own is a
// class and one line: PARLEY_REGISTER_PAYLOAD_CODEC("name", factory).
//
// Deterministic: the same values and residual give the same bytes on every machine and instruction
// set. Thread-safety: const after construction; any number of threads may use one.
#ifndef PARLEY_PS_CODEC_PAYLOAD_CODEC_H_
#define PARLEY_PS_CODEC_PAYLOAD_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"

namespace parley {

class PayloadCodec {
 public:
  using Factory =
      std::function<absl::StatusOr<std::unique_ptr<PayloadCodec>>(const pb::Compression& config)>;

  virtual ~PayloadCodec() = default;

  // The codec of that name with the settings of `config`, wrapped in zstd if config.zstd_level > 0;
  // null for "none" without zstd: then values travel as they are. kInvalidArgument lists the names
  // that there are, or names the setting, its value and what is allowed.
  static absl::StatusOr<std::unique_ptr<PayloadCodec>> Create(std::string_view name,
                                                              const pb::Compression& config);
  // Makes `name` known. Before main's threads start; a name that is taken is replaced.
  static bool Register(std::string name, Factory factory);
  static std::vector<std::string> Names();  // sorted, "none" first

  virtual std::string name() const = 0;

  // Whether Encode wants a residual.
  virtual bool keeps_residual() const = 0;

  // At most so many bytes come out for n values; exactly so many if fixed_size().
  virtual uint64_t MaxEncodedBytes(uint64_t n) const = 0;
  virtual bool fixed_size() const = 0;

  // Encodes values[n] into out[MaxEncodedBytes(n)]; returns the bytes used, at least 1 for n > 0.
  // With keeps_residual, encodes values + residual and leaves in residual[n] what the receiver will
  // not get; else `residual` is ignored. Values may be unaligned; NaN and infinities arrive as NaN
  // or infinities (so that a diverged run is seen) and never spoil the residual of other elements.
  virtual uint64_t Encode(const float* values, uint64_t n, float* residual,
                          std::byte* out) const = 0;

  // Overwrites out[n], which may be unaligned. Memory that is needed beside it is bounded by n.
  // Bytes are a stranger's: kInvalidArgument names what does not fit; then `out` holds anything.
  virtual absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const = 0;
};

// At namespace scope of a source file that is linked into scheduler, servers, workers and `parley`:
// each of them asks for the codecs of an experiment by name.
#define PARLEY_REGISTER_PAYLOAD_CODEC(name, factory)                                          \
  [[maybe_unused]] static const bool PARLEY_CODEC_NAME_(parley_registered_codec_, __LINE__) = \
      ::parley::PayloadCodec::Register(name, factory)
#define PARLEY_CODEC_NAME_(prefix, line) PARLEY_CODEC_JOIN_(prefix, line)
#define PARLEY_CODEC_JOIN_(prefix, line) prefix##line

}  // namespace parley

#endif  // PARLEY_PS_CODEC_PAYLOAD_CODEC_H_
