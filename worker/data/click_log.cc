#include "worker/data/click_log.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "worker/data/gz_file.h"

namespace parley {
namespace {

// What the training and the test set may share.
struct Log {
  std::vector<uint64_t> keys;   // [samples, fields]
  std::vector<uint8_t> labels;  // [samples]
  // [samples, fields]; absent while all are 1, as they are in most logs.
  std::optional<std::vector<float>> values;

  void Add(uint64_t key, float value) {
    if (value != 1 && !values.has_value()) values.emplace(keys.size(), 1.0f);
    keys.push_back(key);
    if (values.has_value()) values->push_back(value);
  }
};

class ClickLogDataset final : public Dataset {
 public:
  ClickLogDataset(std::shared_ptr<const Log> log, uint32_t fields, uint64_t first, uint64_t samples)
      : log_(std::move(log)), fields_(fields), first_(first), samples_(samples) {}

  uint64_t samples() const override { return samples_; }
  SampleShape shape() const override { return {0, 0, 0}; }
  uint32_t classes() const override { return 2; }
  uint32_t keys_per_row() const override { return fields_; }

  void Read(absl::Span<const uint64_t> ids, float* /*x*/, int32_t* labels) const override {
    for (size_t row = 0; row < ids.size(); ++row) {
      assert(ids[row] < samples_);
      labels[row] = log_->labels[first_ + ids[row]];
    }
  }
  void ReadKeys(absl::Span<const uint64_t> ids, uint64_t* keys) const override {
    for (size_t row = 0; row < ids.size(); ++row) {
      assert(ids[row] < samples_);
      std::copy_n(log_->keys.data() + (first_ + ids[row]) * fields_, fields_, keys + row * fields_);
    }
  }
  bool has_values() const override { return log_->values.has_value(); }
  void ReadValues(absl::Span<const uint64_t> ids, float* values) const override {
    assert(has_values());
    for (size_t row = 0; row < ids.size(); ++row) {
      assert(ids[row] < samples_);
      std::copy_n(log_->values->data() + (first_ + ids[row]) * fields_, fields_,
                  values + row * fields_);
    }
  }

 private:
  const std::shared_ptr<const Log> log_;
  const uint32_t fields_;
  const uint64_t first_, samples_;
};

absl::Status Refuse(const std::string& what, std::string_view text, const std::string& allowed) {
  constexpr size_t kShown = 40;
  const std::string shown(text.substr(0, kShown));
  return absl::InvalidArgumentError(absl::StrFormat("%s '%s%s', allowed is %s", what, shown,
                                                    text.size() > kShown ? "..." : "", allowed));
}

// "123" or "123:0.5".
absl::Status ParseFeature(std::string_view text, uint64_t* key, float* value) {
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, *key);
  if (error != std::errc() || *key == kNoKey || (after != end && *after != ':')) {
    return Refuse("has the feature", text, "an integer in 0..2^64-2, alone or with a value");
  }
  *value = 1;
  if (after == end) return absl::OkStatus();
  double number = 0;
  const auto [last, bad] = std::from_chars(after + 1, end, number);
  *value = static_cast<float>(number);
  if (bad == std::errc() && last == end && std::isfinite(*value)) return absl::OkStatus();
  return Refuse("has the feature", text, "a finite number after the colon, or no colon");
}

// Appends one sample to `log`.
absl::Status ParseLine(std::string_view line, uint32_t fields, Log* log) {
  const size_t gap = line.find_last_of("\t ");
  const std::string_view label = gap == line.npos ? line : line.substr(gap + 1);
  if (label != "0" && label != "1") {
    return Refuse("ends with", label, "a label of 0 or 1 after a tab or a space");
  }
  std::string_view features = gap == line.npos ? std::string_view() : line.substr(0, gap);
  if (features.empty()) return Refuse("has no features before the label", label, "one or more");
  uint32_t found = 0;
  for (bool more = true; more; ++found) {
    const size_t comma = features.find(',');
    uint64_t key = 0;
    float value = 1;
    // Those past the last field are looked at, too: a broken line is a broken line.
    absl::Status status = ParseFeature(features.substr(0, comma), &key, &value);
    if (!status.ok()) return status;
    if (found < fields) log->Add(key, value);
    more = comma != features.npos;
    if (more) features.remove_prefix(comma + 1);
  }
  for (; found < fields; ++found) log->Add(kNoKey, 1);
  log->labels.push_back(label == "1" ? 1 : 0);
  return absl::OkStatus();
}

absl::StatusOr<Log> ReadLog(const std::string& path, uint32_t fields, uint64_t limit) {
  absl::StatusOr<GzFile> file = GzFile::Open(path);
  if (!file.ok()) return file.status();
  GzLines lines(*std::move(file));
  Log log;
  while (limit == 0 || log.labels.size() < limit) {
    std::string_view line;
    const absl::StatusOr<bool> more = lines.Next(&line);
    absl::Status status = more.status();
    if (status.ok() && !*more) break;
    if (status.ok()) status = ParseLine(line, fields, &log);
    if (absl::IsInvalidArgument(status)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s:%d: %s", path, lines.number(), std::string(status.message())));
    }
    if (!status.ok()) return status;
  }
  if (log.labels.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: has no lines, allowed is one sample or more", path));
  }
  return log;
}

uint64_t Limited(uint64_t samples, uint64_t limit) {
  return limit == 0 ? samples : std::min(samples, limit);
}

}  // namespace

absl::StatusOr<DataSplits> LoadClickLog(const pb::Data& data) {
  const pb::ClickLog& config = data.click_log();
  const uint32_t fields = config.fields();
  if (fields < 1 || fields > kMaxClickFields) {
    return absl::InvalidArgumentError(
        absl::StrFormat("data.click_log.fields is %d, allowed is 1..%d", fields, kMaxClickFields));
  }
  if (config.train().empty()) {
    return absl::InvalidArgumentError(
        "data.click_log.train is empty, allowed is the name of a file");
  }
  const bool own_test = !config.test().empty();
  absl::StatusOr<Log> train =
      ReadLog(config.train(), fields, own_test ? data.train_limit() : uint64_t{0});
  if (!train.ok()) return train.status();
  const auto log = std::make_shared<const Log>(*std::move(train));
  const uint64_t samples = log->labels.size();
  DataSplits splits;
  if (own_test) {
    absl::StatusOr<Log> test = ReadLog(config.test(), fields, data.test_limit());
    if (!test.ok()) return test.status();
    const auto test_log = std::make_shared<const Log>(*std::move(test));
    splits.train = std::make_unique<ClickLogDataset>(log, fields, 0, samples);
    splits.test = std::make_unique<ClickLogDataset>(test_log, fields, 0, test_log->labels.size());
    return splits;
  }
  const uint64_t tenth = samples / 10;
  if (tenth == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: has %d samples, allowed are 10 or more, as the last tenth becomes the test set; or "
        "name a file in data.click_log.test",
        config.train(), samples));
  }
  splits.train = std::make_unique<ClickLogDataset>(log, fields, 0,
                                                   Limited(samples - tenth, data.train_limit()));
  splits.test = std::make_unique<ClickLogDataset>(log, fields, samples - tenth,
                                                  Limited(tenth, data.test_limit()));
  return splits;
}

}  // namespace parley
