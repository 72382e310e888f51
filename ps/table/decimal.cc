#include "ps/table/decimal.h"

#include <charconv>
#include <cmath>

namespace parley {

double DecimalOf(float value) {
  if (!std::isfinite(value)) return value;
  char text[32];  // the longest is "-1.17549435e-38"
  const std::to_chars_result end = std::to_chars(text, text + sizeof(text), value);
  double decimal = value;
  std::from_chars(text, end.ptr, decimal);
  return decimal;
}

}  // namespace parley
