#include "worker/data/dataset.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/base/philox.h"
#include "worker/data/click_log.h"
#include "worker/data/idx.h"
#include "worker/data/nearly_gaussian.h"
#include "worker/data/synthetic_clicks.h"

namespace parley {
namespace {

class IdxDataset final : public Dataset {
 public:
  IdxDataset(IdxArray images, std::vector<uint8_t> labels, uint32_t classes, float mean, float std)
      : samples_(images.kept),
        shape_{1, images.shape[1], images.shape[2]},
        classes_(classes),
        images_(std::move(images.bytes)),
        labels_(std::move(labels)) {
    for (int value = 0; value < 256; ++value) {
      normalised_[value] = (static_cast<float>(value) / 255.0f - mean) / std;
    }
  }

  uint64_t samples() const override { return samples_; }
  SampleShape shape() const override { return shape_; }
  uint32_t classes() const override { return classes_; }

  void Read(absl::Span<const uint64_t> ids, float* x, int32_t* labels) const override {
    const uint64_t size = shape_.size();
    for (size_t row = 0; row < ids.size(); ++row) {
      assert(ids[row] < samples_);
      const uint8_t* image = images_.data() + ids[row] * size;
      float* out = x + row * size;
      for (uint64_t i = 0; i < size; ++i) out[i] = normalised_[image[i]];
      labels[row] = labels_[ids[row]];
    }
  }

 private:
  const uint64_t samples_;
  const SampleShape shape_;
  const uint32_t classes_;
  const std::vector<uint8_t> images_;  // [samples, height, width]
  const std::vector<uint8_t> labels_;  // [samples]
  std::array<float, 256> normalised_;
};

// Cluster centres have unit variance, samples lie around them with `noise`. Streams of kSynthetic:
// 0 the centres, then for the training and the test set one for labels and one for noise. Drawing
// takes ten times as long as copying: what fits into a bounded memory is drawn once.
class SyntheticDataset final : public Dataset {
 public:
  SyntheticDataset(const pb::Synthetic& config, uint64_t samples, uint64_t seed, bool train)
      : samples_(samples),
        shape_{config.channels(), config.height(), config.width()},
        classes_(config.classes()),
        noise_(config.noise()),
        seed_(seed),
        label_stream_(Stream(RandomPurpose::kSynthetic, train ? 1 : 3)),
        noise_stream_(Stream(RandomPurpose::kSynthetic, train ? 2 : 4)) {
    const uint64_t size = shape_.size();
    centres_.resize(classes_ * size);
    for (uint64_t i = 0; i < centres_.size(); ++i) {
      centres_[i] = NearlyGaussian(Philox(seed_, Stream(RandomPurpose::kSynthetic, 0), i));
    }
    if (samples_ > kMostDrawn / size) return;
    drawn_.resize(samples_ * size);
    for (uint64_t id = 0; id < samples_; ++id) Draw(id, drawn_.data() + id * size);
  }

  uint64_t samples() const override { return samples_; }
  SampleShape shape() const override { return shape_; }
  uint32_t classes() const override { return classes_; }

  void Read(absl::Span<const uint64_t> ids, float* x, int32_t* labels) const override {
    const uint64_t size = shape_.size();
    for (size_t row = 0; row < ids.size(); ++row) {
      const uint64_t id = ids[row];
      assert(id < samples_);
      if (drawn_.empty()) {
        Draw(id, x + row * size);
      } else {
        std::copy_n(drawn_.data() + id * size, size, x + row * size);
      }
      labels[row] = static_cast<int32_t>(Label(id));
    }
  }

 private:
  static constexpr uint64_t kMostDrawn = uint64_t{1} << 26;  // 256 MiB

  uint32_t Label(uint64_t id) const { return Philox(seed_, label_stream_, id)[0] % classes_; }
  void Draw(uint64_t id, float* out) const {
    const uint64_t size = shape_.size();
    const float* centre = centres_.data() + Label(id) * size;
    for (uint64_t i = 0; i < size; ++i) {
      out[i] = centre[i] + noise_ * NearlyGaussian(Philox(seed_, noise_stream_, id * size + i));
    }
  }

  const uint64_t samples_;
  const SampleShape shape_;
  const uint32_t classes_;
  const float noise_;
  const uint64_t seed_;
  const uint64_t label_stream_, noise_stream_;
  std::vector<float> centres_;  // [classes, channels, height, width]
  std::vector<float> drawn_;    // [samples, channels, height, width], or empty
};

std::string PathOf(const pb::IdxFiles& files, const std::string& name) {
  if (!name.empty() && name.front() == '/') return name;
  const std::string& directory = files.directory();
  if (directory.empty()) return name;
  return directory.back() == '/' ? directory + name : directory + "/" + name;
}

absl::StatusOr<std::unique_ptr<Dataset>> LoadIdx(const pb::Data& data, uint64_t limit, bool train) {
  const pb::IdxFiles& files = data.idx();
  const std::string image_path = PathOf(files, train ? files.train_images() : files.test_images());
  const std::string label_path = PathOf(files, train ? files.train_labels() : files.test_labels());
  if (!(data.std() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("data.std is %g, allowed is more than 0", data.std()));
  }
  // All labels are read even when few samples are used: the number of classes must not depend on
  // the limit.
  absl::StatusOr<IdxArray> labels = ReadIdx(label_path, 1);
  if (!labels.ok()) return labels.status();
  absl::StatusOr<IdxArray> images = ReadIdx(image_path, 3, limit);
  if (!images.ok()) return images.status();
  if (images->shape[0] != labels->shape[0]) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: has %d labels for the %d images of %s",
                                                      label_path, labels->shape[0],
                                                      images->shape[0], image_path));
  }
  const uint32_t classes = 1u + *std::max_element(labels->bytes.begin(), labels->bytes.end());
  labels->bytes.resize(images->kept);
  return std::make_unique<IdxDataset>(*std::move(images), std::move(labels->bytes), classes,
                                      data.mean(), data.std());
}

absl::StatusOr<std::unique_ptr<Dataset>> MakeSynthetic(const pb::Data& data, uint64_t seed,
                                                       uint64_t limit, bool train) {
  const pb::Synthetic& config = data.synthetic();
  constexpr uint64_t kMaxElements = uint64_t{1} << 28;
  uint64_t elements = 1;
  const std::pair<const char*, uint32_t> extents[] = {{"channels", config.channels()},
                                                      {"height", config.height()},
                                                      {"width", config.width()},
                                                      {"classes", config.classes()}};
  for (const auto& [name, extent] : extents) {
    if (extent == 0 || extent > kMaxElements / elements) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "data.synthetic.%s is %d, allowed is at least 1 and at most %d for channels x height x "
          "width x classes",
          name, extent, kMaxElements));
    }
    elements *= extent;
  }
  uint64_t samples = train ? config.train_samples() : config.test_samples();
  if (samples == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "data.synthetic.%s_samples is 0, allowed is at least 1", train ? "train" : "test"));
  }
  if (limit != 0) samples = std::min(samples, limit);
  return std::make_unique<SyntheticDataset>(config, samples, seed, train);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Dataset>> LoadDataset(const pb::Data& data, uint64_t seed,
                                                     bool train) {
  const uint64_t limit = train ? data.train_limit() : data.test_limit();
  switch (data.source_case()) {
    case pb::Data::kIdx:
      return LoadIdx(data, limit, train);
    case pb::Data::kSynthetic:
      return MakeSynthetic(data, seed, limit, train);
    case pb::Data::kClickLog: {
      absl::StatusOr<DataSplits> splits = LoadClickLog(data);
      if (!splits.ok()) return splits.status();
      return std::move(train ? splits->train : splits->test);
    }
    case pb::Data::kSyntheticClicks:
      return MakeSyntheticClicks(data.synthetic_clicks(), seed, limit, train);
    case pb::Data::SOURCE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "data has no source, allowed is one of idx, synthetic, click_log, synthetic_clicks");
}

absl::StatusOr<DataSplits> LoadDataSplits(const pb::Data& data, uint64_t seed) {
  // One file may hold both: read it once.
  if (data.has_click_log()) return LoadClickLog(data);
  DataSplits splits;
  for (bool train : {true, false}) {
    absl::StatusOr<std::unique_ptr<Dataset>> set = LoadDataset(data, seed, train);
    if (!set.ok()) return set.status();
    (train ? splits.train : splits.test) = *std::move(set);
  }
  const SampleShape a = splits.train->shape(), b = splits.test->shape();
  if (a.channels != b.channels || a.height != b.height || a.width != b.width) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the test samples are [%d, %d, %d], expected is [%d, %d, %d] like the training samples",
        b.channels, b.height, b.width, a.channels, a.height, a.width));
  }
  if (splits.test->classes() > splits.train->classes()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: has label %d, allowed is 0..%d as in the training set",
                        PathOf(data.idx(), data.idx().test_labels()), splits.test->classes() - 1,
                        splits.train->classes() - 1));
  }
  return splits;
}

}  // namespace parley
