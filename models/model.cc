#include "models/model.h"

#include <cassert>
#include <utility>

#include "absl/strings/str_format.h"
#include "models/device.h"
#include "models/layers/layer.h"
#include "models/layers/log_softmax.h"
#include "models/model_builder.h"

namespace parley {
namespace {

class ChainModel final : public Model {
 public:
  ChainModel(LayerChain chain, DenseLayout layout, uint32_t classes, Device* device);

  const std::vector<pb::TensorSpec>& tensors() const override { return tensors_; }
  size_t stages() const override { return layers_.size(); }
  const std::string& stage_name(size_t stage) const override { return layers_[stage]->name(); }
  Range stage_tensors(size_t stage) const override { return stage_tensors_[stage]; }
  void BindParameters(const float* parameters, MemoryKind kind) override {
    parameters_ = parameters;
    parameters_kind_ = kind;
  }
  void BindGradients(float* gradients, MemoryKind kind) override {
    gradients_ = gradients;
    gradients_kind_ = kind;
  }

  void Prefetch(const BatchView& batch) override;
  absl::Status Begin(const BatchView& batch, const StepContext& context) override;
  absl::Status Forward(size_t stage) override;
  absl::StatusOr<BatchResult> Result() override;
  absl::Status Backward(size_t stage) override;
  bool asynchronous() const override { return device_->asynchronous(); }
  bool GradientsReady(size_t stage) override { return device_->Reached(stages_[stage].done); }
  absl::Status AwaitGradients(size_t stage) override { return device_->Await(stages_[stage].done); }
  double flops_per_sample() const override;

 private:
  // A batch on the device. Two take turns: one of the step, one that is copied meanwhile.
  struct Input {
    const float* x = nullptr;  // the caller's
    uint64_t rows = 0;
    std::unique_ptr<Tensor> tensor;
    std::unique_ptr<Workspace> label_memory;
    const int32_t* labels = nullptr;  // for operations
  };
  // What is kept of a stage with parameters during a step. Weight and bias lie next to each other.
  struct StageMemory {
    std::unique_ptr<Workspace> parameters, gradients;
    const float* weight = nullptr;  // for operations
    const float* bias = nullptr;
    Mark done{0};  // of its Backward
  };
  void Load(const BatchView& batch, Input* input);
  absl::Status LoadRows(const BatchView& batch);
  void FinishInput(Tensor* dx);
  Range ParametersOf(size_t stage) const {
    const Range tensors = stage_tensors_[stage];
    return {layout_.tensor(tensors.begin).begin, layout_.tensor(tensors.end - 1).end};
  }
  // Nobody needs the gradient of the input of the first layer with parameters, nor of those before;
  // unless the caller wants that of x.
  bool NeedsInputGradient(size_t stage) const { return stage > first_trained_; }

  Device* const device_;
  const std::vector<std::unique_ptr<Layer>> layers_;
  LogSoftmaxLayer* const loss_;
  const DenseLayout layout_;
  const uint32_t classes_;
  std::vector<pb::TensorSpec> tensors_;
  std::vector<Range> stage_tensors_;
  size_t first_trained_ = 0;

  const float* parameters_ = nullptr;
  float* gradients_ = nullptr;
  MemoryKind parameters_kind_ = MemoryKind::kHost, gradients_kind_ = MemoryKind::kHost;

  // One step. outputs_[i] belongs to stage i and is unused while that is in place; x_[i] is what
  // stage i reads and x_[i + 1] what it writes.
  StepContext step_;
  float* dx_ = nullptr;             // the caller's, or null
  float* row_gradients_ = nullptr;  // the same
  uint64_t row_values_ = 0;         // of the batch's keys
  std::vector<StageMemory> stages_;
  Input inputs_[2];
  int input_ = 0;            // of the step
  bool prefetched_ = false;  // the other one is
  Mark forward_done_{0};
  std::unique_ptr<Workspace> lookup_, row_memory_, row_gradient_memory_;
  std::vector<std::unique_ptr<Tensor>> outputs_;
  std::vector<Tensor*> x_;
  // Backward needs the gradient of one stage boundary at a time: two tensors take turns, which also
  // keeps them in cache.
  std::unique_ptr<Tensor> gradient_[2];
  int current_gradient_ = 0;
};

ChainModel::ChainModel(LayerChain chain, DenseLayout layout, uint32_t classes, Device* device)
    : device_(device),
      layers_(std::move(chain.layers)),
      loss_(chain.loss),
      layout_(std::move(layout)),
      classes_(classes),
      stages_(layers_.size()),
      lookup_(device->NewWorkspace()),
      row_memory_(device->NewWorkspace()),
      row_gradient_memory_(device->NewWorkspace()),
      x_(layers_.size() + 1) {
  for (Input& input : inputs_) {
    input.tensor = device->NewTensor();
    input.label_memory = device->NewWorkspace();
  }
  first_trained_ = layers_.size();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const uint64_t begin = tensors_.size();
    for (pb::TensorSpec& tensor : layers_[i]->tensors()) tensors_.push_back(std::move(tensor));
    stage_tensors_.push_back({begin, tensors_.size()});
    if (tensors_.size() > begin && first_trained_ == layers_.size()) first_trained_ = i;
    outputs_.push_back(device->NewTensor());
    stages_[i].parameters = device->NewWorkspace();
    stages_[i].gradients = device->NewWorkspace();
  }
  for (auto& gradient : gradient_) gradient = device->NewTensor();
}

absl::Status ChainModel::Begin(const BatchView& batch, const StepContext& context) {
  assert(batch.rows >= 1 && parameters_ != nullptr);
  for (uint64_t r = 0; r < batch.rows; ++r) {
    if (batch.labels[r] < 0 || static_cast<uint32_t>(batch.labels[r]) >= classes_) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "batch: the label of row %d is %d, allowed is 0..%d", r, batch.labels[r], classes_ - 1));
    }
  }
  step_ = context;
  dx_ = batch.dx;
  row_gradients_ = batch.row_gradients;
  device_->BeginStep();
  const Input& other = inputs_[1 - input_];
  if (std::exchange(prefetched_, false) && batch.lookup == nullptr && other.x == batch.x &&
      other.rows == batch.rows) {
    input_ = 1 - input_;
  } else {
    Load(batch, &inputs_[input_]);
  }
  Input& input = inputs_[input_];
  if (batch.lookup != nullptr) {
    if (absl::Status status = LoadRows(batch); !status.ok()) return status;
  }
  loss_->SetLabels(input.labels);
  x_[0] = input.tensor.get();
  for (size_t i = 0; i < layers_.size(); ++i) {
    x_[i + 1] = layers_[i]->InPlace(step_) ? x_[i] : outputs_[i].get();
  }
  return absl::OkStatus();
}

void ChainModel::Load(const BatchView& batch, Input* input) {
  input->x = batch.x;
  input->rows = batch.rows;
  if (batch.lookup == nullptr) {
    device_->Upload(batch.x, layers_[0]->input(), batch.rows, input->tensor.get());
  }
  input->labels = device_->LoadLabels(batch.labels, batch.rows, input->label_memory.get());
}

absl::Status ChainModel::LoadRows(const BatchView& batch) {
  row_values_ = batch.lookup->keys * batch.lookup->dim;
  Tensor* x = inputs_[input_].tensor.get();
  absl::Status status = device_->Prepare(x, layers_[0]->input(), batch.rows);
  if (!status.ok()) return status;
  device_->LoadLookup(*batch.lookup, lookup_.get());
  const float* values =
      device_->LoadParameters(batch.row_values, MemoryKind::kHost, row_values_, row_memory_.get());
  device_->LookupForward(values, lookup_.get(), x);
  return absl::OkStatus();
}

void ChainModel::Prefetch(const BatchView& batch) {
  Load(batch, &inputs_[1 - input_]);
  prefetched_ = true;
}

absl::Status ChainModel::Forward(size_t stage) {
  Layer& layer = *layers_[stage];
  if (x_[stage + 1] != x_[stage]) {
    absl::Status status = device_->Prepare(x_[stage + 1], layer.output(), x_[stage]->rows());
    if (!status.ok()) return status;
  }
  const Range range = stage_tensors_[stage];
  StageMemory& memory = stages_[stage];
  if (range.size() == 2) {
    const Range parameters = ParametersOf(stage);
    memory.weight = device_->LoadParameters(parameters_ + parameters.begin, parameters_kind_,
                                            parameters.size(), memory.parameters.get());
    if (memory.weight == nullptr) return device_->Sync();  // says why
    memory.bias = memory.weight + (layout_.tensor(range.begin + 1).begin - parameters.begin);
  }
  layer.Forward({step_, memory.weight, memory.bias, x_[stage], x_[stage + 1]});
  // The next stage's weights may be long in coming.
  device_->Flush();
  if (stage + 1 == layers_.size()) forward_done_ = device_->MarkHere();
  return absl::OkStatus();
}

absl::StatusOr<BatchResult> ChainModel::Result() {
  if (absl::Status status = device_->Await(forward_done_); !status.ok()) return status;
  return loss_->result();
}

absl::Status ChainModel::Backward(size_t stage) {
  assert(step_.train && gradients_ != nullptr);
  Layer& layer = *layers_[stage];
  const Range range = stage_tensors_[stage];
  StageMemory& memory = stages_[stage];
  const bool wants_dx = dx_ != nullptr || row_gradients_ != nullptr || NeedsInputGradient(stage);
  if (!wants_dx && range.size() == 0) {
    memory.done = device_->MarkHere();
    return absl::OkStatus();
  }

  Tensor* dy = gradient_[current_gradient_].get();
  Tensor* dx = nullptr;
  if (wants_dx && layer.BackwardInPlace(step_)) {
    dx = dy;
  } else if (wants_dx) {
    current_gradient_ = 1 - current_gradient_;
    dx = gradient_[current_gradient_].get();
    absl::Status status = device_->Prepare(dx, layer.input(), x_[0]->rows());
    if (!status.ok()) return status;
  }
  Layer::BackwardArgs args{nullptr, nullptr, nullptr, x_[stage], x_[stage + 1], dy, dx};
  const Range parameters = range.size() == 2 ? ParametersOf(stage) : Range{};
  float* made = nullptr;
  if (range.size() == 2) {
    made = device_->PrepareGradients(gradients_ + parameters.begin, gradients_kind_,
                                     parameters.size(), memory.gradients.get());
    if (made == nullptr) return device_->Sync();
    args.weight = memory.weight;
    args.dweight = made;
    args.dbias = made + (memory.bias - memory.weight);
  }
  layer.Backward(args);
  if (range.size() == 2) {
    device_->StoreGradients(made, gradients_kind_, parameters.size(),
                            gradients_ + parameters.begin);
  }
  if (stage == 0) FinishInput(dx);
  memory.done = device_->MarkHere();
  return absl::OkStatus();
}

// The gradients that the caller wants of what stands in front of the model.
void ChainModel::FinishInput(Tensor* dx) {
  if (dx_ != nullptr) device_->Download(dx, dx_);
  if (row_gradients_ == nullptr) return;
  float* made = device_->PrepareGradients(row_gradients_, MemoryKind::kHost, row_values_,
                                          row_gradient_memory_.get());
  device_->LookupBackward(dx, lookup_.get(), made);
  device_->StoreGradients(made, MemoryKind::kHost, row_values_, row_gradients_);
}

double ChainModel::flops_per_sample() const {
  double flops = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    flops += layers_[i]->flops_per_sample(NeedsInputGradient(i));
  }
  return flops;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const pb::Model& config, SampleShape input,
                                                     uint32_t classes, uint64_t seed,
                                                     Device* device) {
  absl::StatusOr<LayerChain> chain = BuildLayers(config, input, classes, seed, device);
  if (!chain.ok()) return chain.status();
  // The layout is that of the table the parameters will live in; its partitions do not matter here.
  pb::TableSpec table;
  table.set_name("model");
  table.set_partition_elements(DenseLayout::kMaxElements);
  for (const std::unique_ptr<Layer>& layer : chain->layers) {
    for (pb::TensorSpec& tensor : layer->tensors()) *table.add_tensor() = std::move(tensor);
  }
  if (table.tensor().empty()) {
    return absl::InvalidArgumentError(
        "model: no layer has parameters to train; allowed is at least one linear or conv2d");
  }
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  return std::make_unique<ChainModel>(*std::move(chain), *std::move(layout), classes, device);
}

}  // namespace parley
