#include "ps/checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "ps/base/table_state.h"

namespace parley {
namespace {

constexpr char kMetadata[] = "__metadata__";
constexpr uint64_t kMaxHeadBytes = 100'000'000;
constexpr uint64_t kAlignment = 8;

// As the JSON library would write them, were it not for its exceptions.
bool IsUtf8(const std::string& text) {
  using Json = nlohmann::json;
  const std::string quoted = Json(text).dump(-1, ' ', false, Json::error_handler_t::ignore);
  const Json back = Json::parse(quoted, nullptr, /*allow_exceptions=*/false);
  return back.is_string() && back.get_ref<const std::string&>() == text;
}

}  // namespace

absl::StatusOr<SafetensorsHead> MakeSafetensorsHead(
    absl::Span<const SafetensorsTensor> tensors,
    const std::map<std::string, std::string>& metadata) {
  SafetensorsHead head;
  head.write_order.resize(tensors.size());
  std::iota(head.write_order.begin(), head.write_order.end(), size_t{0});
  std::stable_sort(head.write_order.begin(), head.write_order.end(), [&](size_t a, size_t b) {
    return DtypeBytes(tensors[a].array.dtype()) > DtypeBytes(tensors[b].array.dtype());
  });
  nlohmann::json json = nlohmann::json::object();
  if (!metadata.empty()) json[kMetadata] = metadata;
  absl::flat_hash_set<absl::string_view> names;
  head.offset.resize(tensors.size());
  uint64_t end = 0;
  for (const size_t i : head.write_order) {
    const SafetensorsTensor& tensor = tensors[i];
    const auto refused = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' ", why));
    };
    if (!IsUtf8(tensor.name)) return refused("has a name that is no UTF-8");
    if (tensor.name == kMetadata) return refused("has a name that means something else");
    if (!names.insert(tensor.name).second) return refused("is there twice; allowed: once");
    uint64_t bytes = 0;
    if (absl::Status status = ArrayBytes(tensor.array, &bytes); !status.ok()) {
      return refused(absl::StrCat(": ", status.message()));
    }
    if (end + bytes < end) return refused("makes the file larger than 2^64 bytes");
    head.offset[i] = end;
    end += bytes;
    nlohmann::json& entry = json[tensor.name];
    entry["dtype"] = tensor.array.dtype();
    entry["shape"] =
        std::vector<uint64_t>(tensor.array.shape().begin(), tensor.array.shape().end());
    entry["data_offsets"] = {head.offset[i], end};
  }
  std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  if (text.size() > kMaxHeadBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensors.size(), " tensors make a safetensors head of ", text.size(),
                     " bytes; allowed: ", kMaxHeadBytes));
  }
  for (int shift = 0; shift < 64; shift += 8) {
    head.bytes.push_back(static_cast<char>(text.size() >> shift & 0xFF));
  }
  head.bytes += text;
  for (uint64_t& offset : head.offset) offset += head.bytes.size();
  head.file_bytes = head.bytes.size() + end;
  return head;
}

}  // namespace parley
