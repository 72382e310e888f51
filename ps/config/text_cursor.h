// Finds out which field a position in a Protobuf text belongs to, since the parser's own errors
// often say only line and column. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_TEXT_CURSOR_H_
#define PARLEY_PS_CONFIG_TEXT_CURSOR_H_

#include <google/protobuf/descriptor.h>

#include <string>

namespace parley {

struct TextCursor {
  int line = 0, column = 0;  // of the field's name, from 0
  std::string path;          // "model.layer[1].linear.out"; empty before the first field
  std::string name;          // its last part
  std::string value;         // the value as written, empty if it is a message or missing
  const google::protobuf::Descriptor* parent = nullptr;      // null inside an unknown field
  const google::protobuf::FieldDescriptor* field = nullptr;  // null if there is no such field
};

// The last field whose name stands before (line, column), both from 0. Text that is not well formed
// gives the best guess.
TextCursor FindTextCursor(const std::string& text, const google::protobuf::Descriptor& root,
                          int line, int column);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_TEXT_CURSOR_H_
