#include "ps/config/field_rules.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace parley {
namespace {

using google::protobuf::FieldDescriptor;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kHourMs = 3600e3;

// Upper ends are far beyond sensible use; they keep a slip of the finger (a batch of 128000000)
// from turning into an allocation.
constexpr FieldRule kRules[] = {
    {"parley.pb.Cluster.servers", 1, 1024},
    {"parley.pb.Cluster.workers", 1, 1024},
    {"parley.pb.Cluster.shards_per_server", 1, 64},
    {"parley.pb.Cluster.partition_kib", 4, 65536},
    {"parley.pb.Cluster.max_request_kib", 4, 65536},
    {"parley.pb.Cluster.heartbeat_ms", 10, 60000},
    {"parley.pb.Cluster.node_timeout_ms", 30, kHourMs},
    {"parley.pb.Cluster.start_timeout_ms", 100, kHourMs},
    {"parley.pb.Cluster.progress_timeout_ms", 100, kHourMs},
    {"parley.pb.Cluster.compute_threads", 1, 256},
    {"parley.pb.Cluster.replicas", 0, 3},
    {"parley.pb.Cluster.replica_check_steps", 0, 1e9},
    {"parley.pb.Cluster.max_restarts", 0, 1000000},
    {"parley.pb.Cluster.scheduler_timeout_ms", 30, 24 * kHourMs},
    {"parley.pb.Cluster.slow_worker_factor", 0, kInf},
    {"parley.pb.Checkpoints.every_minutes", 0, 525600},
    {"parley.pb.Checkpoints.keep", 1, 1000000},
    {"parley.pb.Checkpoints.full_every", 1, 1000000},
    {"parley.pb.Compression.top_k", 0, 1, true},
    {"parley.pb.Compression.block", 16, 65536},
    {"parley.pb.Compression.zstd_level", 0, 19},
    {"parley.pb.ClickLog.fields", 1, 1024},
    {"parley.pb.SyntheticClicks.train_samples", 1, 16777216},
    {"parley.pb.SyntheticClicks.test_samples", 1, 16777216},
    {"parley.pb.SyntheticClicks.fields", 1, 1024},
    {"parley.pb.SyntheticClicks.keys_per_field", 1, 1e12},
    {"parley.pb.SyntheticClicks.zipf", 0, 10},
    {"parley.pb.Embedding.dim", 1, 4096},
    {"parley.pb.Embedding.bound", 0, kInf},
    {"parley.pb.Embedding.partitions", 1, 65536},
    {"parley.pb.Ftrl.beta", 0, kInf},
    {"parley.pb.Ftrl.l1", 0, kInf},
    {"parley.pb.Ftrl.l2", 0, kInf},
    {"parley.pb.RowAdagrad.eps", 0, kInf, true},
    {"parley.pb.RowAdagrad.initial_accumulator", 0, kInf},
    {"parley.pb.Data.mean", -kInf, kInf},
    {"parley.pb.Data.std", 0, kInf, true},
    {"parley.pb.Synthetic.train_samples", 1, 16777216},
    {"parley.pb.Synthetic.test_samples", 1, 16777216},
    {"parley.pb.Synthetic.channels", 1, 1024},
    {"parley.pb.Synthetic.height", 1, 4096},
    {"parley.pb.Synthetic.width", 1, 4096},
    {"parley.pb.Synthetic.classes", 2, 65536},
    {"parley.pb.Synthetic.noise", 0, kInf},
    {"parley.pb.Linear.out", 1, 1048576, false, false, true},
    {"parley.pb.Conv2d.out_channels", 1, 65536, false, false, true},
    {"parley.pb.Conv2d.kernel", 1, 64},
    {"parley.pb.Conv2d.padding", 0, 63},
    {"parley.pb.MaxPool2d.kernel", 1, 64},
    {"parley.pb.Dropout.p", 0, 1, false, true},
    {"parley.pb.Training.epochs", 1, 1000000},
    {"parley.pb.Training.global_batch", 1, 1048576},
    {"parley.pb.Training.eval_batch", 1, 1048576},
    {"parley.pb.Optimizer.lr", 0, kInf, true},
    {"parley.pb.Optimizer.weight_decay", 0, kInf},
    {"parley.pb.Optimizer.clip_value", 0, kInf},
    {"parley.pb.Optimizer.clip_norm", 0, kInf},
    {"parley.pb.Sgd.momentum", 0, 1, false, true},
    {"parley.pb.Sgd.dampening", 0, 1},
    {"parley.pb.Adagrad.eps", 0, kInf, true},
    {"parley.pb.Adagrad.lr_decay", 0, kInf},
    {"parley.pb.Adagrad.initial_accumulator", 0, kInf},
    {"parley.pb.Adadelta.rho", 0, 1, false, true},
    {"parley.pb.Adadelta.eps", 0, kInf, true},
    {"parley.pb.RmsProp.alpha", 0, 1, false, true},
    {"parley.pb.RmsProp.eps", 0, kInf, true},
    {"parley.pb.RmsProp.momentum", 0, 1, false, true},
    {"parley.pb.Adam.beta1", 0, 1, false, true},
    {"parley.pb.Adam.beta2", 0, 1, false, true},
    {"parley.pb.Adam.eps", 0, kInf, true},
    {"parley.pb.AdamW.beta1", 0, 1, false, true},
    {"parley.pb.AdamW.beta2", 0, 1, false, true},
    {"parley.pb.AdamW.eps", 0, kInf, true},
    {"parley.pb.StepDecay.every", 1, 1e9, false, false, true},
    {"parley.pb.StepDecay.gamma", 0, 1, true},
    {"parley.pb.Cosine.steps", 1, 1e9, false, false, true},
    {"parley.pb.Cosine.min_factor", 0, 1},
    // The server holds at most this many open steps (Aggregator::kMaxAhead), with room to spare.
    {"parley.pb.Consistency.staleness", 0, 1000},
};

std::string Number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) {
    return absl::StrCat(static_cast<int64_t>(value));
  }
  return absl::StrCat(value);
}

}  // namespace

bool FieldRule::Allows(double value) const {
  if (!std::isfinite(value)) return false;
  return (min_open ? value > min : value >= min) && (max_open ? value < max : value <= max);
}

std::string FieldRule::Allowed() const {
  if (min == -kInf && max == kInf) return "any finite number";
  if (max == kInf) return absl::StrCat(min_open ? "> " : ">= ", Number(min), ", finite");
  if (min_open || max_open || max <= 1) {
    return absl::StrCat(min_open ? "(" : "[", Number(min), ", ", Number(max), max_open ? ")" : "]");
  }
  return absl::StrCat(Number(min), "..", Number(max));
}

const FieldRule* FindFieldRule(const FieldDescriptor& field) {
  for (const FieldRule& rule : kRules) {
    if (field.full_name() == rule.field) return &rule;
  }
  return nullptr;
}

std::string AllowedValues(const FieldDescriptor& field) {
  if (const FieldRule* rule = FindFieldRule(field)) return rule->Allowed();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
      return "a whole number";
    case FieldDescriptor::CPPTYPE_UINT32:
      return "a whole number, 0..4294967295";
    case FieldDescriptor::CPPTYPE_UINT64:
      return "a whole number, 0..18446744073709551615";
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "a number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true, false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrJoin(EnumNames(*field.enum_type()), ", ");
    case FieldDescriptor::CPPTYPE_STRING:
      return "a text in quotes";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return absl::StrCat("{ ... } with ", absl::StrJoin(FieldNames(*field.message_type()), ", "));
  }
  return "";
}

std::vector<std::string> FieldNames(const google::protobuf::Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return names;
}

}  // namespace parley
