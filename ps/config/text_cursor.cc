#include "ps/config/text_cursor.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <map>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::io::Tokenizer;

// The parser has reported what is wrong already.
class Silent : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

// One open "{".
struct Level {
  const Descriptor* message;
  std::string prefix;               // "model.layer[0]."
  std::map<std::string, int> seen;  // repeated fields: how many so far
  TextCursor opened_by;
};

class Walker {
 public:
  explicit Walker(const Descriptor& root) { levels_.push_back({&root, "", {}, {}}); }

  TextCursor& cursor() { return cursor_; }

  void Name(const Tokenizer::Token& token) {
    Level& level = levels_.back();
    cursor_ = TextCursor();
    cursor_.line = token.line;
    cursor_.column = token.column;
    cursor_.name = token.text;
    cursor_.parent = level.message;
    cursor_.field = level.message ? level.message->FindFieldByName(token.text) : nullptr;
    cursor_.path = level.prefix + token.text;
    list_next_ = false;
    Count();
  }
  void Open() {
    // "layer: [{..}, {..}]": the second brace has no name of its own.
    if (list_next_) Count();
    const Descriptor* inner = cursor_.field ? cursor_.field->message_type() : nullptr;
    levels_.push_back({inner, cursor_.path + ".", {}, cursor_});
    list_next_ = false;
  }
  void Close() {
    if (levels_.size() == 1) return;
    cursor_ = levels_.back().opened_by;
    levels_.pop_back();
    list_next_ = true;
  }

 private:
  void Count() {
    if (!cursor_.field || !cursor_.field->is_repeated()) return;
    Level& level = levels_.back();
    const int index = level.seen[cursor_.name]++;
    cursor_.path = absl::StrCat(level.prefix, cursor_.name, "[", index, "]");
  }

  std::vector<Level> levels_;
  TextCursor cursor_;
  bool list_next_ = false;
};

}  // namespace

TextCursor FindTextCursor(const std::string& text, const Descriptor& root, int line, int column) {
  google::protobuf::io::ArrayInputStream input(text.data(), static_cast<int>(text.size()));
  Silent silent;
  Tokenizer tokenizer(&input, &silent);
  tokenizer.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
  tokenizer.set_allow_f_after_float(true);
  tokenizer.set_require_space_after_number(false);
  tokenizer.set_allow_multiline_strings(true);

  Walker walker(root);
  bool value_next = false;  // after ":": an identifier is a value, not a name
  while (tokenizer.Next()) {
    const Tokenizer::Token token = tokenizer.current();
    const bool reached = std::tie(token.line, token.column) >= std::tie(line, column);
    if (value_next) {
      std::string& value = walker.cursor().value;
      if (token.text == "{" || token.text == "<" || token.text == "[") {
        value_next = false;
      } else {
        value += token.text;
        value_next = token.text == "-";
        if (!value_next && reached) break;
        continue;
      }
    }
    if (reached) break;
    if (token.text == ":") {
      value_next = true;
    } else if (token.text == "{" || token.text == "<") {
      walker.Open();
    } else if (token.text == "}" || token.text == ">") {
      walker.Close();
    } else if (token.type == Tokenizer::TYPE_IDENTIFIER) {
      walker.Name(token);
    }
  }
  return walker.cursor();
}

}  // namespace parley
