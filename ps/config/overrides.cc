#include "ps/config/overrides.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "ps/config/field_rules.h"
#include "ps/config/suggest.h"

namespace parley {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

class Override {
 public:
  explicit Override(const std::string& assignment) : assignment_(assignment) {}

  absl::Status Apply(Message* root) {
    const size_t equals = assignment_.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--set ", assignment_, ": no '='; allowed: path=value, as in cluster.workers=4"));
    }
    value_ = std::string(absl::StripAsciiWhitespace(assignment_.substr(equals + 1)));
    const std::string path(absl::StripAsciiWhitespace(assignment_.substr(0, equals)));
    const std::vector<std::string> segments = absl::StrSplit(path, '.');
    Message* message = root;
    for (size_t i = 0; i + 1 < segments.size(); ++i) {
      if (absl::Status status = Enter(segments[i], &message); !status.ok()) return status;
    }
    return SetLast(segments.back(), message);
  }

 private:
  absl::Status Error(absl::string_view what, absl::string_view allowed) const {
    return absl::InvalidArgumentError(absl::StrCat("--set ", assignment_, ": field '", path_,
                                                   "': ", what, "; allowed: ", allowed));
  }

  // Looks up one segment of the path; *index is -1 without brackets.
  absl::Status Find(const std::string& segment, const Message& message,
                    const FieldDescriptor** field, int* index) {
    absl::StrAppend(&path_, path_.empty() ? "" : ".", segment);
    const size_t bracket = segment.find('[');
    const std::string name = segment.substr(0, bracket);
    *field = message.GetDescriptor()->FindFieldByName(name);
    if (*field == nullptr) {
      const std::vector<std::string> names = FieldNames(*message.GetDescriptor());
      return Error(absl::StrCat("unknown field of ", message.GetDescriptor()->name(),
                                DidYouMean(name, names)),
                   names.empty() ? "nothing, it has no fields" : absl::StrJoin(names, ", "));
    }
    *index = -1;
    const bool indexed = bracket != std::string::npos;
    if ((*field)->is_repeated() != indexed) {
      return indexed ? Error("is not repeated, so it takes no index", name)
                     : Error("is repeated, so it needs an index", absl::StrCat(name, "[0]"));
    }
    if (!indexed) return absl::OkStatus();
    const int size = message.GetReflection()->FieldSize(message, *field);
    std::string digits = segment.substr(bracket + 1);
    if (!absl::EndsWith(digits, "]") ||
        !absl::SimpleAtoi(digits.substr(0, digits.size() - 1), index) || *index < 0 ||
        *index > size) {
      return Error("no such element",
                   size == 0 ? absl::StrCat(name, "[0], which is new")
                             : absl::StrCat(name, "[0]..", name, "[", size, "], the last is new"));
    }
    return absl::OkStatus();
  }

  // The message that `field` holds, created if it is not there.
  static Message* Mutable(Message* message, const FieldDescriptor* field, int index) {
    const auto* reflection = message->GetReflection();
    if (!field->is_repeated()) return reflection->MutableMessage(message, field);
    if (index == reflection->FieldSize(*message, field)) {
      return reflection->AddMessage(message, field);
    }
    return reflection->MutableRepeatedMessage(message, field, index);
  }

  absl::Status Enter(const std::string& segment, Message** message) {
    const FieldDescriptor* field;
    int index;
    if (absl::Status status = Find(segment, **message, &field, &index); !status.ok()) return status;
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      return Error("has no fields of its own", absl::StrCat(path_, "=VALUE"));
    }
    *message = Mutable(*message, field, index);
    return absl::OkStatus();
  }

  absl::Status SetLast(const std::string& segment, Message* message) {
    const FieldDescriptor* field;
    int index;
    if (absl::Status status = Find(segment, *message, &field, &index); !status.ok()) return status;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return SetMessage(field, Mutable(message, field, index));
    }
    return SetScalar(field, message);
  }

  absl::Status SetMessage(const FieldDescriptor* field, Message* message) {
    const bool braces = absl::StartsWith(value_, "{") && absl::EndsWith(value_, "}");
    TextFormat::Parser parser;
    Quiet quiet;
    parser.RecordErrorsTo(&quiet);
    if (!braces || !parser.ParseFromString(value_.substr(1, value_.size() - 2), message)) {
      return Error(absl::StrCat("value ", value_.empty() ? "''" : value_, " does not fit",
                                quiet.first.empty() ? "" : absl::StrCat(" (", quiet.first, ")")),
                   AllowedValues(*field));
    }
    return absl::OkStatus();
  }

  // Scalars go through the text parser too, so that a value means here what it means in a file;
  // only the quotes around a text may be left out, since shells eat them.
  absl::Status SetScalar(const FieldDescriptor* field, Message* message) {
    std::string text = value_;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      message->GetReflection()->SetString(message, field, Unquoted(text));
      return absl::OkStatus();
    }
    TextFormat::Parser parser;
    Quiet quiet;
    parser.RecordErrorsTo(&quiet);
    if (!parser.ParseFieldValueFromString(text, field, message)) {
      const std::string hint = field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM
                                   ? DidYouMean(text, EnumNames(*field->enum_type()))
                                   : "";
      return Error(absl::StrCat("value ", text.empty() ? "''" : text, " does not fit", hint),
                   AllowedValues(*field));
    }
    return absl::OkStatus();
  }

  static std::string Unquoted(const std::string& text) {
    const bool quoted =
        text.size() >= 2 && (text[0] == '"' || text[0] == '\'') && text.front() == text.back();
    return quoted ? text.substr(1, text.size() - 2) : text;
  }

  // Keeps the parser from writing to stderr.
  struct Quiet : google::protobuf::io::ErrorCollector {
    void AddError(int, int, const std::string& message) override {
      if (first.empty()) first = message;
    }
    std::string first;
  };

  const std::string& assignment_;
  std::string value_;
  std::string path_;  // walked so far
};

}  // namespace

absl::Status ApplyOverride(const std::string& assignment, pb::Experiment* experiment) {
  pb::Experiment changed = *experiment;
  if (absl::Status status = Override(assignment).Apply(&changed); !status.ok()) return status;
  *experiment = std::move(changed);
  return absl::OkStatus();
}

}  // namespace parley
