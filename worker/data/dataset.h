// Dataset: labelled samples with random access by index.
//
// Samples are either values or keys. Of values: IDX files (bytes kept as bytes, normalised while a
// batch is read) and Synthetic, which is computed from the seed, and kept up to 256 MiB. Of keys,
// which an embedding turns into values: ClickLog and SyntheticClicks.
#ifndef PARLEY_WORKER_DATA_DATASET_H_
#define PARLEY_WORKER_DATA_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "models/model.h"
#include "proto/experiment.pb.h"

namespace parley {

// Stands for "no key": a row of zeros that nobody trains.
inline constexpr uint64_t kNoKey = ~uint64_t{0};
// Fields of a click, each of which is a key.
inline constexpr uint32_t kMaxClickFields = 1024;

// Thread-safe: immutable after it is made.
class Dataset {
 public:
  virtual ~Dataset() = default;

  virtual uint64_t samples() const = 0;
  virtual SampleShape shape() const = 0;  // of values; empty [0, 0, 0] for data of keys
  // Labels are in [0, classes()).
  virtual uint32_t classes() const = 0;

  // Fills x [ids.size(), channels, height, width] and labels [ids.size()].
  // REQUIRES: every id < samples().
  virtual void Read(absl::Span<const uint64_t> ids, float* x, int32_t* labels) const = 0;

  // Data of keys: their number in each sample; else 0.
  virtual uint32_t keys_per_row() const { return 0; }
  // Fills keys [ids.size(), keys_per_row()]; kNoKey where a sample has fewer.
  // REQUIRES: every id < samples().
  virtual void ReadKeys(absl::Span<const uint64_t> /*ids*/, uint64_t* /*keys*/) const {}
  // Data of keys: whether any key comes with a value other than 1.
  virtual bool has_values() const { return false; }
  // Fills values [ids.size(), keys_per_row()], what the rows of the keys are multiplied by; 1 where
  // a sample says nothing. REQUIRES: has_values(), every id < samples().
  virtual void ReadValues(absl::Span<const uint64_t> /*ids*/, float* /*values*/) const {}
  // Keys and labels at once, which may be cheaper.
  virtual void ReadKeysAndLabels(absl::Span<const uint64_t> ids, uint64_t* keys,
                                 int32_t* labels) const {
    ReadKeys(ids, keys);
    Read(ids, nullptr, labels);
  }
};

// The training or the test set of an experiment. Errors name the file or field, what is wrong and
// what is allowed.
absl::StatusOr<std::unique_ptr<Dataset>> LoadDataset(const pb::Data& data, uint64_t seed,
                                                     bool train);

struct DataSplits {
  std::unique_ptr<Dataset> train;
  std::unique_ptr<Dataset> test;
};

// Both, checked against each other: same sample shape or number of keys, no test label that
// training does not know.
absl::StatusOr<DataSplits> LoadDataSplits(const pb::Data& data, uint64_t seed);

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_DATASET_H_
