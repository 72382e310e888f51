#include "ps/config/validate.h"

#include <google/protobuf/text_format.h>

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/config/copied_partitions.h"
#include "ps/config/field_rules.h"
#include "ps/config/validate_compute.h"
#include "ps/config/validate_tables.h"

namespace parley {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr size_t kMaxNameLength = 64;
constexpr uint32_t kMaxReplicas = 3;  // as field_rules.cc has it
// Elements of one synthetic data set: 4 GiB as float32.
constexpr double kMaxSyntheticElements = 1 << 30;

class Validator {
 public:
  std::vector<ConfigProblem> Run(const pb::Experiment& experiment) {
    Name(experiment);
    Ranges("", experiment);
    Cluster(experiment.cluster());
    Failures(experiment);
    Data(experiment);
    Model(experiment);
    FindEmbeddingProblems(experiment, &problems_);
    Optimizer(experiment);
    Consistency(experiment);
    FindCompressionProblems(experiment, &problems_);
    FindComputeProblems(experiment, &problems_);
    return std::move(problems_);
  }

 private:
  void Add(std::string path, std::string what, std::string allowed) {
    problems_.push_back({std::move(path), std::move(what), std::move(allowed)});
  }

  void Name(const pb::Experiment& experiment) {
    const std::string& name = experiment.name();
    const std::string allowed =
        absl::StrCat("1 to ", kMaxNameLength, " of the characters a-z 0-9 _ -");
    if (name.empty()) return Add("name", "is missing", allowed);
    bool good = name.size() <= kMaxNameLength;
    for (unsigned char c : name) {
      good = good && (absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-');
    }
    if (!good) Add("name", absl::StrCat("'", name, "' cannot name a directory and a job"), allowed);
  }

  // Every number against its rule, through all messages that are there.
  void Ranges(const std::string& prefix, const Message& message) {
    const auto* descriptor = message.GetDescriptor();
    const auto* reflection = message.GetReflection();
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const FieldDescriptor* field = descriptor->field(i);
      const std::string path = prefix + field->name();
      if (field->is_repeated()) {
        for (int k = 0; k < reflection->FieldSize(message, field); ++k) {
          Ranges(absl::StrCat(path, "[", k, "]."),
                 reflection->GetRepeatedMessage(message, field, k));
        }
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        if (reflection->HasField(message, field)) {
          Ranges(path + ".", reflection->GetMessage(message, field));
        }
      } else {
        Range(path, message, field);
      }
    }
  }

  void Range(const std::string& path, const Message& message, const FieldDescriptor* field) {
    const FieldRule* rule = FindFieldRule(*field);
    if (rule == nullptr) return;
    const auto* reflection = message.GetReflection();
    if (!reflection->HasField(message, field)) {
      if (rule->required) Add(path, "is missing", rule->Allowed());
      return;  // defaults are good
    }
    double value = 0;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_UINT32:
        value = reflection->GetUInt32(message, field);
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        value = reflection->GetInt32(message, field);
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        value = static_cast<double>(reflection->GetUInt64(message, field));
        break;
      case FieldDescriptor::CPPTYPE_FLOAT:
        value = reflection->GetFloat(message, field);
        break;
      default:
        return;
    }
    if (rule->Allows(value)) return;
    std::string text;
    google::protobuf::TextFormat::PrintFieldValueToString(message, field, -1, &text);
    Add(path, absl::StrCat(text, " is out of range"), rule->Allowed());
  }

  void Cluster(const pb::Cluster& cluster) {
    if (cluster.partition_kib() % 4 != 0) {
      Add("cluster.partition_kib", absl::StrCat(cluster.partition_kib(), " is no multiple of 4"),
          "a multiple of 4 in 4..65536");
    }
    if (cluster.node_timeout_ms() < 3 * uint64_t{cluster.heartbeat_ms()}) {
      Add("cluster.node_timeout_ms",
          absl::StrCat(cluster.node_timeout_ms(), " is less than 3 heartbeats of ",
                       cluster.heartbeat_ms(), " ms"),
          absl::StrCat(">= ", 3 * uint64_t{cluster.heartbeat_ms()}));
    }
  }

  // What is to happen when something dies.
  void Failures(const pb::Experiment& experiment) {
    const pb::Cluster& cluster = experiment.cluster();
    if (cluster.replicas() > 0 && cluster.replicas() <= kMaxReplicas &&
        cluster.replicas() >= cluster.servers()) {
      Add("cluster.replicas",
          absl::StrCat(cluster.replicas(), " of ", cluster.servers(),
                       " servers: each copy of a partition needs a server of its own"),
          cluster.servers() > 1
              ? absl::StrCat("0..", cluster.servers() - 1, ", less than cluster.servers")
              : "0, or more cluster.servers");
    }
    if (cluster.replicas() > 0 && NormsForbidCopies(experiment)) {
      Add("cluster.replicas",
          absl::StrCat(cluster.replicas(), " with optimizer.clip_norm and mode ",
                       pb::Consistency::Mode_Name(experiment.consistency().mode())),
          "0, or optimizer.clip_norm 0, or mode BSP");
    }
    if (cluster.scheduler_timeout_ms() < cluster.node_timeout_ms()) {
      Add("cluster.scheduler_timeout_ms",
          absl::StrCat(cluster.scheduler_timeout_ms(), " is less than node_timeout_ms ",
                       cluster.node_timeout_ms()),
          absl::StrCat(">= ", cluster.node_timeout_ms(), ", cluster.node_timeout_ms"));
    }
    const float slow = cluster.slow_worker_factor();
    if (slow > 0 && slow <= 1) {
      Add("cluster.slow_worker_factor",
          absl::StrCat(slow, " would take work from workers as fast as the others"),
          "0 for off, or > 1");
    }
  }

  void Data(const pb::Experiment& experiment) {
    const pb::Data& data = experiment.data();
    switch (data.source_case()) {
      case pb::Data::SOURCE_NOT_SET:
        return Add("data", experiment.has_data() ? "has no source" : "is missing",
                   "data { S { ... } } with S one of idx, synthetic, click_log, synthetic_clicks");
      case pb::Data::kIdx:
        return Idx(data.idx());
      case pb::Data::kSynthetic:
        return Synthetic(data.synthetic());
      case pb::Data::kClickLog:
      case pb::Data::kSyntheticClicks:
        return;  // in validate_tables.cc
    }
  }

  void Idx(const pb::IdxFiles& idx) {
    const auto* descriptor = idx.GetDescriptor();
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const FieldDescriptor* field = descriptor->field(i);
      // An empty directory is the current one.
      if (field->number() == pb::IdxFiles::kDirectoryFieldNumber) continue;
      if (idx.GetReflection()->GetString(idx, field).empty()) {
        Add(absl::StrCat("data.idx.", field->name()), "is empty",
            "the name of an IDX file, plain or gzip");
      }
    }
  }

  void Synthetic(const pb::Synthetic& data) {
    const double elements = 1.0 * data.channels() * data.height() * data.width() *
                            (1.0 * data.train_samples() + data.test_samples());
    if (elements > kMaxSyntheticElements) {
      Add("data.synthetic",
          absl::StrFormat("%.0f elements in samples x channels x height x width are too many",
                          elements),
          absl::StrFormat("up to %.0f", kMaxSyntheticElements));
    }
  }

  void Model(const pb::Experiment& experiment) {
    const pb::Model& model = experiment.model();
    if (!experiment.has_model() || model.layer_size() == 0) {
      return Add("model", experiment.has_model() ? "has no layers" : "is missing",
                 "model { layer { linear { out: 10 } } layer { log_softmax {} } } or the like");
    }
    std::set<std::string> names;
    const int last = model.layer_size() - 1;
    for (int i = 0; i <= last; ++i) {
      const std::string path = absl::StrCat("model.layer[", i, "]");
      const pb::Layer& layer = model.layer(i);
      LayerName(path, layer, &names);
      const bool log_softmax = layer.has_log_softmax();
      if (layer.kind_case() == pb::Layer::KIND_NOT_SET) {
        Add(path, "has no kind",
            "one of embedding, linear, conv2d, max_pool2d, relu, dropout, flatten, log_softmax");
      } else if (i == last && !log_softmax) {
        Add(path, "is the last layer and no log_softmax", "log_softmax {} as the last layer");
      } else if (i < last && log_softmax) {
        Add(path, "is a log_softmax ahead of other layers",
            "log_softmax {} as the last layer only");
      }
    }
  }

  void LayerName(const std::string& path, const pb::Layer& layer, std::set<std::string>* names) {
    if (!layer.has_name()) return;  // gets one when the experiment is resolved
    const std::string allowed =
        absl::StrCat("1 to ", kMaxNameLength, " of the characters A-Z a-z 0-9 _ -, once");
    const std::string& name = layer.name();
    bool good = !name.empty() && name.size() <= kMaxNameLength;
    for (unsigned char c : name) good = good && (absl::ascii_isalnum(c) || c == '_' || c == '-');
    if (!good) Add(path + ".name", absl::StrCat("'", name, "' is no name for a layer"), allowed);
    if (!names->insert(name).second) {
      Add(path + ".name", absl::StrCat("'", name, "' names two layers"), allowed);
    }
  }

  void Optimizer(const pb::Experiment& experiment) {
    const pb::Optimizer& optimizer = experiment.optimizer();
    if (optimizer.rule_case() == pb::Optimizer::RULE_NOT_SET) {
      Add("optimizer", experiment.has_optimizer() ? "has no rule" : "is missing",
          "one of sgd, adagrad, adadelta, rmsprop, adam, adamw, as in optimizer { sgd {} }");
    }
    const pb::Sgd& sgd = optimizer.sgd();
    if (sgd.nesterov() && (sgd.momentum() == 0 || sgd.dampening() != 0)) {
      Add("optimizer.sgd.nesterov", "true without momentum, or with dampening",
          "true only with momentum > 0 and dampening 0");
    }
  }

  void Consistency(const pb::Experiment& experiment) {
    const pb::Consistency& consistency = experiment.consistency();
    const std::string mode = pb::Consistency::Mode_Name(consistency.mode());
    if (consistency.staleness() != 0 && consistency.mode() != pb::Consistency::SSP) {
      Add("consistency.staleness", absl::StrCat(consistency.staleness(), " with mode ", mode),
          "0, or mode SSP");
    }
    if (consistency.backup_workers() == 0) return;
    if (consistency.mode() != pb::Consistency::BSP) {
      Add("consistency.backup_workers",
          absl::StrCat(consistency.backup_workers(), " with mode ", mode), "0, or mode BSP");
    } else if (consistency.backup_workers() >= experiment.cluster().workers()) {
      Add("consistency.backup_workers",
          absl::StrCat(consistency.backup_workers(), " of ", experiment.cluster().workers(),
                       " workers leaves none to wait for"),
          absl::StrCat("0..", experiment.cluster().workers() - 1, ", less than cluster.workers"));
    }
  }

  std::vector<ConfigProblem> problems_;
};

}  // namespace

std::vector<ConfigProblem> FindConfigProblems(const pb::Experiment& experiment) {
  return Validator().Run(experiment);
}

}  // namespace parley
