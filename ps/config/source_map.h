// Where each field of an experiment was given: a line of its file, or an override on the command
// line.
//
// Filled while loading, then only read. Not thread-safe while it is being filled.
#ifndef PARLEY_PS_CONFIG_SOURCE_MAP_H_
#define PARLEY_PS_CONFIG_SOURCE_MAP_H_

#include <google/protobuf/text_format.h>

#include <map>
#include <string>

#include "absl/strings/string_view.h"

namespace parley {

class SourceMap {
 public:
  explicit SourceMap(std::string file) : file_(std::move(file)) {}

  const std::string& file() const { return file_; }
  google::protobuf::TextFormat::ParseInfoTree* tree() { return &tree_; }

  // Fields at and below `path` come from "--set path=value" from now on.
  void AddOverride(std::string path, std::string assignment);

  // "file:line:col", counted from 1, of the field or of the nearest enclosing one that is there;
  // "--set a.b=c" if that is where it comes from; the file's name if nothing is nearer.
  std::string Locate(absl::string_view path) const;

 private:
  std::string file_;
  google::protobuf::TextFormat::ParseInfoTree tree_;
  std::map<std::string, std::string, std::less<>> overrides_;
};

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_SOURCE_MAP_H_
