#include "worker/data/synthetic_clicks.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/base/philox.h"
#include "worker/data/nearly_gaussian.h"
#include "worker/data/zipf.h"

namespace parley {
namespace {

constexpr float kMaxExponent = 10;
constexpr float kNoise = 0.25f;  // of the score, whose standard deviation is 1

// Streams of kSynthetic; the Gaussian clusters have 0..4.
constexpr uint64_t kWeights = 16, kTrainNoise = 17, kTestNoise = 18;
constexpr uint64_t kTrainKeys = 1 << 16, kTestKeys = 2 << 16;  // and the field

class SyntheticClicksDataset final : public Dataset {
 public:
  SyntheticClicksDataset(const pb::SyntheticClicks& config, uint64_t samples, uint64_t seed,
                         bool train)
      : samples_(samples),
        fields_(config.fields()),
        keys_per_field_(config.keys_per_field()),
        seed_(seed),
        key_stream_(Stream(RandomPurpose::kSynthetic, train ? kTrainKeys : kTestKeys)),
        noise_stream_(Stream(RandomPurpose::kSynthetic, train ? kTrainNoise : kTestNoise)),
        zipf_(config.keys_per_field(), config.zipf()) {}

  uint64_t samples() const override { return samples_; }
  SampleShape shape() const override { return {0, 0, 0}; }
  uint32_t classes() const override { return 2; }
  uint32_t keys_per_row() const override { return fields_; }

  void ReadKeys(absl::Span<const uint64_t> ids, uint64_t* keys) const override {
    for (uint64_t id : ids) {
      assert(id < samples_);
      for (uint32_t field = 0; field < fields_; ++field) *keys++ = Key(id, field);
    }
  }

  void Read(absl::Span<const uint64_t> ids, float* /*x*/, int32_t* labels) const override {
    std::vector<uint64_t> keys(ids.size() * fields_);
    ReadKeysAndLabels(ids, keys.data(), labels);
  }

  void ReadKeysAndLabels(absl::Span<const uint64_t> ids, uint64_t* keys,
                         int32_t* labels) const override {
    ReadKeys(ids, keys);
    const uint64_t weights = Stream(RandomPurpose::kSynthetic, kWeights);
    const float scale = 1 / std::sqrt(static_cast<float>(fields_));
    for (size_t row = 0; row < ids.size(); ++row) {
      float score = 0;
      for (uint32_t field = 0; field < fields_; ++field) {
        score += NearlyGaussian(Philox(seed_, weights, *keys++));
      }
      score = score * scale + kNoise * NearlyGaussian(Philox(seed_, noise_stream_, ids[row]));
      labels[row] = score > 0 ? 1 : 0;
    }
  }

 private:
  uint64_t Key(uint64_t id, uint32_t field) const {
    return field * keys_per_field_ + zipf_.Draw(seed_, key_stream_ + field, id) - 1;
  }

  const uint64_t samples_;
  const uint32_t fields_;
  const uint64_t keys_per_field_;
  const uint64_t seed_;
  const uint64_t key_stream_, noise_stream_;
  const Zipf zipf_;
};

absl::Status Refuse(const char* field, const std::string& value, const std::string& allowed) {
  return absl::InvalidArgumentError(
      absl::StrFormat("data.synthetic_clicks.%s is %s, allowed is %s", field, value, allowed));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Dataset>> MakeSyntheticClicks(const pb::SyntheticClicks& config,
                                                             uint64_t seed, uint64_t limit,
                                                             bool train) {
  if (config.fields() < 1 || config.fields() > kMaxClickFields) {
    return Refuse("fields", std::to_string(config.fields()),
                  absl::StrFormat("1..%d", kMaxClickFields));
  }
  if (config.keys_per_field() < 1 || config.keys_per_field() > Zipf::kMaxRanks) {
    return Refuse("keys_per_field", std::to_string(config.keys_per_field()),
                  absl::StrFormat("1..%d", Zipf::kMaxRanks));
  }
  if (!(config.zipf() >= 0 && config.zipf() <= kMaxExponent)) {
    return Refuse("zipf", absl::StrFormat("%g", config.zipf()),
                  absl::StrFormat("0..%g", kMaxExponent));
  }
  uint64_t samples = train ? config.train_samples() : config.test_samples();
  if (samples == 0) return Refuse(train ? "train_samples" : "test_samples", "0", "at least 1");
  if (limit != 0) samples = std::min(samples, limit);
  return std::make_unique<SyntheticClicksDataset>(config, samples, seed, train);
}

}  // namespace parley
