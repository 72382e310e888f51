#include "scheduler/report/json_line.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace parley {
namespace {

// Length of the UTF-8 sequence at the front of `text`; 0 if there is none (also for overlong forms
// and surrogates).
size_t Utf8Length(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead < 0xE0   ? 2
                        : lead >= 0xE0 && lead < 0xF0 ? 3
                        : lead >= 0xF0 && lead < 0xF5 ? 4
                                                      : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xED && byte(1) >= 0xA0;
  const bool too_large = lead == 0xF4 && byte(1) >= 0x90;
  return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

std::string JsonText(absl::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const char c = text[0];
    if (length == 0) {
      out += "\\ufffd";
    } else if (length > 1) {
      out.append(text.data(), length);
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&out, "\\u%04x", c);
    } else {
      out += c;
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  out += '"';
  return out;
}

std::string JsonNumber(double value) {
  if (!std::isfinite(value)) return "null";
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
}

JsonLine& JsonLine::Raw(absl::string_view key, absl::string_view json) {
  fields_.push_back(absl::StrCat(JsonText(key), ": ", json));
  return *this;
}

JsonLine& JsonLine::Text(absl::string_view key, absl::string_view value) {
  return Raw(key, JsonText(value));
}

JsonLine& JsonLine::Number(absl::string_view key, double value) {
  return Raw(key, JsonNumber(value));
}

JsonLine& JsonLine::Count(absl::string_view key, uint64_t value) {
  return Raw(key, absl::StrCat(value));
}

JsonLine& JsonLine::Flag(absl::string_view key, bool value) {
  return Raw(key, value ? "true" : "false");
}

std::string JsonLine::str() const { return absl::StrCat("{", absl::StrJoin(fields_, ", "), "}"); }

std::string JsonLine::Indented() const {
  return absl::StrCat("{\n  ", absl::StrJoin(fields_, ",\n  "), "\n}\n");
}

}  // namespace parley
