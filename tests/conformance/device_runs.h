// Runs of a small model whose every number is kept, to be compared bit for bit.
#ifndef PARLEY_TESTS_CONFORMANCE_DEVICE_RUNS_H_
#define PARLEY_TESTS_CONFORMANCE_DEVICE_RUNS_H_

#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "tests/conformance/device_rig.h"
#include "tests/unit/models/model_fixture.h"

namespace parley {

// What a run gave, to the bit.
class Record {
 public:
  void Add(const std::vector<float>& values) {
    floats_.insert(floats_.end(), values.begin(), values.end());
  }
  void Add(const absl::StatusOr<BatchResult>& result) {
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return;
    floats_.push_back(static_cast<float>(result->loss_sum));
    floats_.push_back(static_cast<float>(result->correct));
    losses_.push_back(result->loss_sum);
  }
  const std::vector<float>& floats() const { return floats_; }
  bool operator==(const Record& other) const {
    return Same(floats_, other.floats_) && Same(losses_, other.losses_);
  }

 private:
  template <typename T>
  static bool Same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
  }
  std::vector<float> floats_;
  std::vector<double> losses_;
};

inline constexpr SampleShape kRunInput{2, 7, 6};
inline constexpr uint32_t kRunClasses = 4;

// A batch and its memory, and memory for what comes back of it.
struct OwnBatch {
  OwnBatch(uint32_t stream, uint64_t rows)
      : x(Pattern(stream, rows * kRunInput.size())),
        labels(PatternLabels(rows, kRunClasses)),
        dx(x.size(), std::nanf("")) {}
  BatchView view(bool with_dx = false) {
    return {.rows = labels.size(),
            .x = x.data(),
            .labels = labels.data(),
            .dx = with_dx ? dx.data() : nullptr};
  }
  std::vector<float> x;
  std::vector<int32_t> labels;
  std::vector<float> dx;
};

inline void Forward(Model& model) {
  for (size_t i = 0; i < model.stages(); ++i) EXPECT_TRUE(model.Forward(i).ok());
}
inline void Backward(Model& model) {
  for (size_t i = model.stages(); i-- > 0;) EXPECT_TRUE(model.Backward(i).ok());
}
inline void AwaitAll(Model& model) {
  for (size_t i = model.stages(); i-- > 0;) EXPECT_TRUE(model.AwaitGradients(i).ok());
}

// As a worker trains: waits for gradients, changes the parameters in place; batch sizes change, an
// evaluation is between. `prefetch`: the next batch is told during the step.
inline Record TrainInSteps(Device* device, bool prefetch) {
  TestModel m(kSmallConvNet, kRunInput, kRunClasses, device);
  std::deque<OwnBatch> batches;
  for (const uint64_t rows : {5, 3, 8, 8, 1}) {
    batches.emplace_back(static_cast<uint32_t>(50 + batches.size()), rows);
  }
  OwnBatch evaluation(70, 7);
  Record record;
  for (size_t step = 0; step < batches.size(); ++step) {
    OwnBatch& batch = batches[step];
    const StepContext context{.tick = step, .first_row = 3 * step};
    EXPECT_TRUE(m.model->Begin(batch.view(true), context).ok());
    Forward(*m.model);
    Backward(*m.model);
    if (prefetch && step + 1 < batches.size()) m.model->Prefetch(batches[step + 1].view());
    AwaitAll(*m.model);
    record.Add(m.gradients);
    record.Add(batch.dx);
    record.Add(m.model->Result());
    for (size_t i = 0; i < m.parameters.size(); ++i) {
      m.parameters[i] -= 0.05f * m.gradients[i];
      m.gradients[i] = std::nanf("");
    }
    if (step % 2 == 1) {
      EXPECT_TRUE(m.model->Begin(evaluation.view(), {.train = false}).ok());
      Forward(*m.model);
      record.Add(m.model->Result());
    }
  }
  return record;
}

// Several steps are enqueued before anything is waited for, each with memory of its own on the
// host and the same on the device. Nothing is downloaded, which would hold the next step.
inline Record RunAhead(Device* device, const char* layers = kSmallConvNet,
                       const std::vector<uint64_t>& rows_of_steps = {6, 6, 4}) {
  TestModel m(layers, kRunInput, kRunClasses, device);
  // Buffers that grow wait for all that goes on, and they trade places until all are large enough.
  for (int i = 0; i < 6; ++i) m.Step(6);
  struct Step {
    OwnBatch batch;
    std::vector<float> parameters, gradients;
  };
  std::deque<Step> steps;
  for (const uint64_t rows : rows_of_steps) {
    const auto k = static_cast<uint32_t>(steps.size());
    Step& step = steps.emplace_back(Step{OwnBatch(80 + k, rows), {}, {}});
    step.parameters = Pattern(90 + k, m.parameters.size(), 0.2f);
    step.gradients.assign(m.parameters.size(), std::nanf(""));
    m.model->BindParameters(step.parameters.data());
    m.model->BindGradients(step.gradients.data());
    EXPECT_TRUE(m.model->Begin(step.batch.view(), {.tick = k}).ok());
    Forward(*m.model);
    Backward(*m.model);
  }
  AwaitAll(*m.model);
  Record record;
  record.Add(m.model->Result());
  for (const Step& step : steps) record.Add(step.gradients);
  return record;
}

// Steps so short that a copy out may well last until the next one.
inline Record RunShortStepsAhead(Device* device) {
  return RunAhead(device, "layer { linear { out: 4 } } layer { log_softmax {} }",
                  std::vector<uint64_t>(8, 3));
}

}  // namespace parley

#endif  // PARLEY_TESTS_CONFORMANCE_DEVICE_RUNS_H_
