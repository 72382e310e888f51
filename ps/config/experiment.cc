#include "ps/config/experiment.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/base/layer_names.h"
#include "ps/config/overrides.h"
#include "ps/config/parse_text.h"
#include "ps/config/source_map.h"
#include "ps/config/validate.h"

namespace parley {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Experiments are a few KiB; more is a mistake (a data file given for an experiment).
constexpr size_t kMaxFileBytes = size_t{1} << 20;

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rb"), fclose);
  const std::string allowed = "; allowed: a readable Protobuf text file";
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be opened", allowed));
  std::string text(kMaxFileBytes + 1, '\0');
  text.resize(fread(text.data(), 1, text.size(), file.get()));
  if (ferror(file.get())) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be read", allowed));
  }
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": longer than ", kMaxFileBytes,
                                                   " bytes, so not an experiment", allowed));
  }
  return text;
}

void SetDefault(Message* message, const FieldDescriptor* field) {
  const auto* reflection = message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->SetInt32(message, field, field->default_value_int32());
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->SetUInt32(message, field, field->default_value_uint32());
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->SetUInt64(message, field, field->default_value_uint64());
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection->SetFloat(message, field, field->default_value_float());
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->SetBool(message, field, field->default_value_bool());
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->SetEnum(message, field, field->default_value_enum());
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->SetString(message, field, field->default_value_string());
    default:
      return;  // no field of experiment.proto has another type
  }
}

void SetDefaults(Message* message) {
  const auto* descriptor = message->GetDescriptor();
  const auto* reflection = message->GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated()) {
      for (int k = 0; k < reflection->FieldSize(*message, field); ++k) {
        SetDefaults(reflection->MutableRepeatedMessage(message, field, k));
      }
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (reflection->HasField(*message, field)) {
        SetDefaults(reflection->MutableMessage(message, field));
      }
    } else if (field->has_default_value() && !reflection->HasField(*message, field)) {
      SetDefault(message, field);
    }
  }
}

void ResolveSchedule(pb::Optimizer* optimizer) {
  pb::Schedule* schedule = optimizer->mutable_schedule();
  if (schedule->kind_case() == pb::Schedule::KIND_NOT_SET) schedule->mutable_constant();
}

// Nodes that gave up on the scheduler before it gives up on them would end a job in good health.
void ResolveSchedulerTimeout(pb::Cluster* cluster) {
  if (cluster->has_scheduler_timeout_ms()) return;
  cluster->set_scheduler_timeout_ms(
      std::max(cluster->scheduler_timeout_ms(), cluster->node_timeout_ms()));
}

void NameLayers(pb::Model* model) {
  const std::vector<std::string> names = LayerNames(*model);
  for (int i = 0; i < model->layer_size(); ++i) model->mutable_layer(i)->set_name(names[i]);
}

std::string Line(const ConfigProblem& problem) {
  return absl::StrCat("field '", problem.path, "': ", problem.what, "; allowed: ", problem.allowed);
}

}  // namespace

absl::StatusOr<pb::Experiment> LoadExperiment(const std::string& path,
                                              const std::vector<std::string>& overrides) {
  absl::StatusOr<std::string> text = ReadText(path);
  if (!text.ok()) return text.status();
  return LoadExperimentText(*text, path, overrides);
}

absl::StatusOr<pb::Experiment> LoadExperimentText(const std::string& text, const std::string& name,
                                                  const std::vector<std::string>& overrides) {
  pb::Experiment experiment;
  SourceMap source(name);
  std::vector<std::string> errors = ParseExperimentText(text, &source, &experiment);
  for (const std::string& assignment : overrides) {
    if (absl::Status status = ApplyOverride(assignment, &experiment); !status.ok()) {
      errors.emplace_back(status.message());
      continue;
    }
    source.AddOverride(assignment.substr(0, assignment.find('=')),
                       absl::StrCat("--set ", assignment));
  }
  // What a broken file did not get to say would only show up as missing: stop here.
  if (errors.empty()) {
    ResolveExperiment(&experiment);
    for (const ConfigProblem& problem : FindConfigProblems(experiment)) {
      errors.push_back(absl::StrCat(source.Locate(problem.path), ": ", Line(problem)));
    }
  }
  if (!errors.empty()) return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
  return experiment;
}

void ResolveExperiment(pb::Experiment* experiment) {
  experiment->mutable_cluster();
  experiment->mutable_training();
  experiment->mutable_consistency();
  experiment->mutable_checkpoints();
  ResolveSchedulerTimeout(experiment->mutable_cluster());
  if (experiment->has_optimizer()) ResolveSchedule(experiment->mutable_optimizer());
  if (experiment->has_model()) {
    for (pb::Layer& layer : *experiment->mutable_model()->mutable_layer()) {
      if (layer.has_embedding() && layer.embedding().has_optimizer()) {
        ResolveSchedule(layer.mutable_embedding()->mutable_optimizer());
      }
    }
  }
  SetDefaults(experiment);
  if (experiment->has_model()) NameLayers(experiment->mutable_model());
}

absl::Status ValidateExperiment(const pb::Experiment& experiment) {
  std::vector<std::string> lines;
  for (const ConfigProblem& problem : FindConfigProblems(experiment))
    lines.push_back(Line(problem));
  if (lines.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

std::string ExperimentToText(const pb::Experiment& experiment) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(experiment, &text);
  return text;
}

}  // namespace parley
