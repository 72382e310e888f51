#include "ps/server/published_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "ps/base/philox.h"

namespace parley {
namespace {

using ::testing::Each;

constexpr uint64_t kElements = 1000;

std::unique_ptr<PayloadCodec> MakeCodec(const std::string& name) {
  pb::Compression config;
  config.set_block(64);
  config.set_top_k(0.05f);
  return *PayloadCodec::Create(name, config);
}

std::vector<float> Floats(const Buffer& buffer) {
  std::vector<float> floats(buffer.num_floats());
  std::memcpy(floats.data(), buffer.data(), buffer.size());
  return floats;
}

Buffer Copy(const std::vector<float>& floats) {
  return Buffer::Copy({reinterpret_cast<const char*>(floats.data()), floats.size() * 4});
}

// A worker as the protocol has it.
class Reader {
 public:
  explicit Reader(const PayloadCodec* codec) : codec_(codec) {}

  // "nothing", "change" or "whole".
  std::string Take(const PublishedWeights& published) {
    pb::Part asked, answer;
    if (version_) asked.set_base_version(*version_);
    const Buffer values = published.Read(asked, &answer);
    if (!answer.has_base_version()) {
      EXPECT_FALSE(answer.has_value_bytes());
      weights_ = Floats(values);
      version_ = answer.version();
      return "whole";
    }
    EXPECT_EQ(answer.base_version(), *version_);
    version_ = answer.version();
    if (answer.count() == 0) return "nothing";
    EXPECT_EQ(answer.value_bytes(), values.size());
    std::vector<float> change(answer.count());
    EXPECT_TRUE(codec_->Decode(values.view(), answer.count(), change.data()).ok());
    for (size_t i = 0; i < change.size(); ++i) weights_[i] += change[i];
    return "change";
  }

  const std::vector<float>& weights() const { return weights_; }

 private:
  const PayloadCodec* const codec_;
  std::optional<uint64_t> version_;
  std::vector<float> weights_;
};

class PublishedWeightsTest : public ::testing::TestWithParam<const char*> {
 protected:
  PublishedWeightsTest()
      : codec_(MakeCodec(GetParam())),
        weights_(kElements, 0.5f),
        published_(codec_.get(), Copy(weights_), &pool_) {}

  // One update, each element by up to +-0.1.
  void Update() {
    for (size_t i = 0; i < weights_.size(); ++i) {
      weights_[i] += 0.2f * (ToUnitFloat(Philox(1, version_, i)[0]) - 0.5f);
    }
    published_.OnUpdate(Copy(weights_), ++version_);
  }
  double Distance(const std::vector<float>& from) const {
    double sum = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      sum += (weights_[i] - from[i]) * (weights_[i] - from[i]);
    }
    return std::sqrt(sum / weights_.size());
  }

  BufferPool pool_;
  const std::unique_ptr<PayloadCodec> codec_;
  uint64_t version_ = 0;
  std::vector<float> weights_;
  PublishedWeights published_;
};

TEST_P(PublishedWeightsTest, ReadersOfChangesAndOfAllHoldTheSame) {
  Reader steady(codec_.get());
  EXPECT_EQ(steady.Take(published_), "whole");
  EXPECT_EQ(steady.Take(published_), "nothing");
  for (int step = 0; step < 50; ++step) {
    Update();
    EXPECT_EQ(steady.Take(published_), "change");
    EXPECT_EQ(steady.Take(published_), "nothing");
    Reader late(codec_.get());
    EXPECT_EQ(late.Take(published_), "whole");
    ASSERT_EQ(steady.weights(), late.weights());  // bit by bit
    ASSERT_EQ(steady.weights(), Floats(published_.weights()));
  }
}

// The sum of 60 random walks' steps is far from where they began, yet what was published is near:
// what one change loses, the next ones bring.
TEST_P(PublishedWeightsTest, WhatIsLostComesLater) {
  for (int step = 0; step < 60; ++step) Update();
  const double moved = Distance(std::vector<float>(kElements, 0.5f));
  EXPECT_LT(Distance(Floats(published_.weights())), 0.8 * moved);
  for (int step = 0; step < 200; ++step) published_.OnUpdate(Copy(weights_), ++version_);
  EXPECT_LT(Distance(Floats(published_.weights())), 0.02 * moved);
}

TEST_P(PublishedWeightsTest, ALostAnswerIsGivenAgain) {
  pb::Part asked, first, second;
  asked.set_base_version(0);
  Update();
  const Buffer lost = published_.Read(asked, &first);
  const Buffer again = published_.Read(asked, &second);
  EXPECT_EQ(lost.view(), again.view());
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());
  EXPECT_EQ(first.base_version(), 0u);
  EXPECT_EQ(first.version(), 1u);
}

TEST_P(PublishedWeightsTest, WhoIsTwoBehindOrAheadGetsThemWhole) {
  Update();
  Update();
  for (uint64_t base : {uint64_t{0}, uint64_t{3}, ~uint64_t{0}}) {
    pb::Part asked, answer;
    asked.set_base_version(base);
    const Buffer values = published_.Read(asked, &answer);
    EXPECT_FALSE(answer.has_base_version()) << base;
    EXPECT_FALSE(answer.has_value_bytes()) << base;
    EXPECT_EQ(answer.count(), kElements);
    EXPECT_EQ(values.view(), published_.weights().view());
    EXPECT_EQ(answer.version(), 2u);
  }
}

TEST_P(PublishedWeightsTest, AnAnswerStaysAsItIsWhenAnUpdateFollows) {
  pb::Part answer;
  const Buffer values = published_.Read(pb::Part(), &answer);
  Update();
  EXPECT_THAT(Floats(values), Each(0.5f));
}

INSTANTIATE_TEST_SUITE_P(Codecs, PublishedWeightsTest,
                         ::testing::Values("int8", "one_bit", "top_k"));

// Decodes nothing: PublishedWeights must not hand out what readers cannot make sense of.
class BrokenCodec : public PayloadCodec {
 public:
  std::string name() const override { return "broken"; }
  bool keeps_residual() const override { return true; }
  uint64_t MaxEncodedBytes(uint64_t) const override { return 1; }
  bool fixed_size() const override { return true; }
  uint64_t Encode(const float*, uint64_t, float*, std::byte* out) const override {
    *out = std::byte{1};
    return 1;
  }
  absl::Status Decode(std::string_view, uint64_t, float*) const override {
    return absl::InvalidArgumentError("broken");
  }
};

TEST(PublishedWeights, ACodecThatDoesNotUnderstandItselfSendsTheTrueWeights) {
  BufferPool pool;
  const BrokenCodec codec;
  PublishedWeights published(&codec, Copy({1, 2}), &pool);
  published.OnUpdate(Copy({3, 4}), 1);
  pb::Part asked, answer;
  asked.set_base_version(0);
  EXPECT_THAT(Floats(published.Read(asked, &answer)), ::testing::ElementsAre(3, 4));
  EXPECT_FALSE(answer.has_base_version());
}

}  // namespace
}  // namespace parley
