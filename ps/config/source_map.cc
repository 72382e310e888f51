#include "ps/config/source_map.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/experiment.pb.h"

namespace parley {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::TextFormat;

// "layer[3]" -> ("layer", 3); "lr" -> ("lr", -1), which is what the parser's tree wants.
std::pair<std::string, int> SplitIndex(absl::string_view segment) {
  const size_t bracket = segment.find('[');
  int index = -1;
  if (bracket != absl::string_view::npos) {
    absl::string_view digits = segment.substr(bracket + 1);
    if (!digits.empty()) digits.remove_suffix(1);
    if (!absl::SimpleAtoi(digits, &index)) index = -1;
  }
  return {std::string(segment.substr(0, bracket)), index};
}

}  // namespace

void SourceMap::AddOverride(std::string path, std::string assignment) {
  overrides_[std::move(path)] = std::move(assignment);
}

std::string SourceMap::Locate(absl::string_view path) const {
  // The longest overridden prefix that ends at a dot.
  for (absl::string_view prefix = path; !prefix.empty();) {
    if (auto found = overrides_.find(prefix); found != overrides_.end()) return found->second;
    const size_t dot = prefix.rfind('.');
    if (dot == absl::string_view::npos) break;
    prefix = prefix.substr(0, dot);
  }

  const Descriptor* message = pb::Experiment::descriptor();
  const TextFormat::ParseInfoTree* tree = &tree_;
  std::string best = file_;
  for (absl::string_view segment : absl::StrSplit(path, '.', absl::SkipEmpty())) {
    const auto [name, index] = SplitIndex(segment);
    const FieldDescriptor* field = message ? message->FindFieldByName(name) : nullptr;
    if (!field || !tree) break;
    const auto location = tree->GetLocation(field, index);
    if (location.line < 0) break;
    best = absl::StrCat(file_, ":", location.line + 1, ":", location.column + 1);
    message = field->message_type();
    tree = message ? tree->GetTreeForNested(field, index) : nullptr;
  }
  return best;
}

}  // namespace parley
