#include "ps/config/parse_text.h"

#include <google/protobuf/io/tokenizer.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "ps/config/field_rules.h"
#include "ps/config/suggest.h"
#include "ps/config/text_cursor.h"

namespace parley {
namespace {

using google::protobuf::FieldDescriptor;

std::string Allowed(absl::string_view what) { return absl::StrCat("; allowed: ", what); }

std::string DescribeUnknownField(const TextCursor& at) {
  if (at.parent == nullptr) return absl::StrCat("unknown field");
  const std::vector<std::string> names = FieldNames(*at.parent);
  const std::string allowed =
      names.empty() ? "nothing, it has no fields" : absl::StrJoin(names, ", ");
  return absl::StrCat("unknown field of ", at.parent->name(), DidYouMean(at.name, names),
                      Allowed(allowed));
}

// Names the oneof that `field` belongs to and its members.
std::string DescribeOneof(const FieldDescriptor& field) {
  std::vector<std::string> members;
  const auto* oneof = field.real_containing_oneof();
  for (int i = 0; i < oneof->field_count(); ++i) members.push_back(oneof->field(i)->name());
  return absl::StrCat("a second ", oneof->name(), Allowed("only one of "),
                      absl::StrJoin(members, ", "));
}

// "Expected integer, got: abc" where abc is the value, rather than what stands behind it.
bool IsAboutValue(const std::string& message, const std::string& value) {
  if (!absl::StartsWith(message, "Expected")) return false;
  return absl::StartsWith(value, "-") || absl::StrContains(message, absl::StrCat("got: ", value));
}

// `message` is the parser's, in its own words. After "Expected" it quotes what it read, which can
// hold any of the words looked for here. The field is the best guess: what is said must fit it.
std::string Describe(const std::string& message, const TextCursor& at) {
  const std::string words = absl::StartsWith(message, "Expected") ? "" : message;
  if (absl::StrContains(words, "has no field named")) return DescribeUnknownField(at);
  if (at.field != nullptr) {
    if (absl::StrContains(words, "is specified multiple times")) {
      return absl::StrCat("given twice", Allowed("once"));
    }
    if (at.field->real_containing_oneof() != nullptr &&
        absl::StrContains(words, "another member of oneof")) {
      return DescribeOneof(*at.field);
    }
    if (at.field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM &&
        absl::StrContains(words, "enumeration value")) {
      return absl::StrCat("'", at.value, "' is not one of its values",
                          DidYouMean(at.value, EnumNames(*at.field->enum_type())),
                          Allowed(AllowedValues(*at.field)));
    }
    if (!at.value.empty() && at.field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE &&
        (IsAboutValue(message, at.value) || absl::StrContains(words, "out of range") ||
         absl::StrContains(words, "Invalid value") || absl::StartsWith(words, "Unable"))) {
      return absl::StrCat("value ", at.value, " does not fit", Allowed(AllowedValues(*at.field)));
    }
  }
  std::string text(absl::StripSuffix(message, "."));
  if (!text.empty()) text[0] = absl::ascii_tolower(static_cast<unsigned char>(text[0]));
  return absl::StrCat(text, Allowed("name: value, or name { ... }"));
}

class Collector : public google::protobuf::io::ErrorCollector {
 public:
  Collector(const std::string& text, const std::string& file) : text_(text), file_(file) {}

  void AddError(int line, int column, const std::string& message) override {
    const TextCursor at = FindTextCursor(text_, *pb::Experiment::descriptor(), line, column);
    // The parser points behind the name or the value; people look for the field.
    const bool syntax = at.path.empty();
    const int shown_line = syntax ? line : at.line, shown_column = syntax ? column : at.column;
    errors_.push_back(absl::StrCat(file_, ":", shown_line + 1, ":", shown_column + 1, ": ",
                                   syntax ? std::string() : absl::StrCat("field '", at.path, "': "),
                                   Describe(message, at)));
  }
  // Unknown fields are let through as warnings, so that all of them are found in one go.
  void AddWarning(int line, int column, const std::string& message) override {
    AddError(line, column, message);
  }

  std::vector<std::string> TakeErrors() { return std::move(errors_); }

 private:
  const std::string& text_;
  const std::string& file_;
  std::vector<std::string> errors_;
};

}  // namespace

std::vector<std::string> ParseExperimentText(const std::string& text, SourceMap* source,
                                             pb::Experiment* experiment) {
  Collector collector(text, source->file());
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  parser.WriteLocationsTo(source->tree());
  parser.AllowUnknownField(true);
  parser.ParseFromString(text, experiment);
  return collector.TakeErrors();
}

}  // namespace parley
