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
  void BindParameters(const float* parameters) override { parameters_ = parameters; }
  void BindGradients(float* gradients) override { gradients_ = gradients; }

  absl::Status Begin(const BatchView& batch, const StepContext& context) override;
  absl::Status Forward(size_t stage) override;
  BatchResult Result() const override { return loss_->result(); }
  absl::Status Backward(size_t stage) override;
  double flops_per_sample() const override;

 private:
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

  // One step. outputs_[i] belongs to stage i and is unused while that is in place; x_[i] is what
  // stage i reads and x_[i + 1] what it writes.
  StepContext step_;
  float* dx_ = nullptr;  // the caller's, or null
  std::unique_ptr<Tensor> input_;
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
      input_(device->NewTensor()),
      x_(layers_.size() + 1) {
  first_trained_ = layers_.size();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const uint64_t begin = tensors_.size();
    for (pb::TensorSpec& tensor : layers_[i]->tensors()) tensors_.push_back(std::move(tensor));
    stage_tensors_.push_back({begin, tensors_.size()});
    if (tensors_.size() > begin && first_trained_ == layers_.size()) first_trained_ = i;
    outputs_.push_back(device->NewTensor());
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
  loss_->SetLabels(batch.labels);
  device_->Upload(batch.x, layers_[0]->input(), batch.rows, input_.get());
  x_[0] = input_.get();
  for (size_t i = 0; i < layers_.size(); ++i) {
    x_[i + 1] = layers_[i]->InPlace(step_) ? x_[i] : outputs_[i].get();
  }
  return absl::OkStatus();
}

absl::Status ChainModel::Forward(size_t stage) {
  Layer& layer = *layers_[stage];
  if (x_[stage + 1] != x_[stage]) {
    absl::Status status = device_->Prepare(x_[stage + 1], layer.output(), x_[stage]->rows());
    if (!status.ok()) return status;
  }
  const Range range = stage_tensors_[stage];
  const float* weight = nullptr;
  const float* bias = nullptr;
  if (range.size() == 2) {
    weight = parameters_ + layout_.tensor(range.begin).begin;
    bias = parameters_ + layout_.tensor(range.begin + 1).begin;
  }
  layer.Forward({step_, weight, bias, x_[stage], x_[stage + 1]});
  // Only the last result is looked at; until then the device may run behind.
  return stage + 1 == layers_.size() ? device_->Sync() : absl::OkStatus();
}

absl::Status ChainModel::Backward(size_t stage) {
  assert(step_.train && gradients_ != nullptr);
  Layer& layer = *layers_[stage];
  const Range range = stage_tensors_[stage];
  const bool wants_dx = dx_ != nullptr || NeedsInputGradient(stage);
  if (!wants_dx && range.size() == 0) return absl::OkStatus();

  Tensor* dy = gradient_[current_gradient_].get();
  Tensor* dx = nullptr;
  if (wants_dx && layer.BackwardInPlace(step_)) {
    dx = dy;
  } else if (wants_dx) {
    current_gradient_ = 1 - current_gradient_;
    dx = gradient_[current_gradient_].get();
    absl::Status status = device_->Prepare(dx, layer.input(), input_->rows());
    if (!status.ok()) return status;
  }
  Layer::BackwardArgs args{nullptr, nullptr, nullptr, x_[stage], x_[stage + 1], dy, dx};
  if (range.size() == 2) {
    const uint64_t weight = layout_.tensor(range.begin).begin;
    args.weight = parameters_ + weight;
    args.dweight = gradients_ + weight;
    args.dbias = gradients_ + layout_.tensor(range.begin + 1).begin;
  }
  layer.Backward(args);
  if (stage == 0 && dx_ != nullptr) {
    device_->Download(dx, dx_);
    return device_->Sync();
  }
  // The caller sends these gradients off as soon as this returns.
  return range.size() > 0 ? device_->Sync() : absl::OkStatus();
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
