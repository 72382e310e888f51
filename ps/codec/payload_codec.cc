#include "ps/codec/payload_codec.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "ps/codec/builtin_codecs.h"

namespace parley {
namespace {

using Registry = std::map<std::string, PayloadCodec::Factory>;
using Made = absl::StatusOr<std::unique_ptr<PayloadCodec>>;

constexpr uint32_t kMinBlock = 16, kMaxBlock = 65536;
constexpr int kMaxZstdLevel = 19;

absl::Status Refuse(absl::string_view field, double value, absl::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("field 'compression.", field, "': ", value, "; allowed: ", allowed));
}

// Ours are in the list from the start: a registration in a file of its own would be lost where the
// linker leaves out what nobody refers to.
Registry& TheRegistry() {
  static auto* const registry = new Registry{
      {"fp16", [](const pb::Compression&) -> Made { return MakeFp16Codec(); }},
      {"bf16", [](const pb::Compression&) -> Made { return MakeBf16Codec(); }},
      {"int8", [](const pb::Compression& c) -> Made { return MakeInt8Codec(c.block()); }},
      {"one_bit", [](const pb::Compression& c) -> Made { return MakeOneBitCodec(c.block()); }},
      {"top_k", [](const pb::Compression& c) -> Made { return MakeTopKCodec(c.top_k()); }},
  };
  return *registry;
}

absl::Status CheckSettings(const pb::Compression& config) {
  if (!(config.top_k() > 0 && config.top_k() <= 1)) {
    return Refuse("top_k", config.top_k(), "> 0, <= 1");
  }
  if (config.block() < kMinBlock || config.block() > kMaxBlock) {
    return Refuse("block", config.block(), absl::StrCat(kMinBlock, "..", kMaxBlock));
  }
  if (config.zstd_level() < 0 || config.zstd_level() > kMaxZstdLevel) {
    return Refuse("zstd_level", config.zstd_level(), absl::StrCat("0..", kMaxZstdLevel));
  }
  return absl::OkStatus();
}

}  // namespace

Made PayloadCodec::Create(std::string_view name, const pb::Compression& config) {
  if (auto status = CheckSettings(config); !status.ok()) return status;
  std::unique_ptr<PayloadCodec> codec;
  if (name != "none") {
    const auto found = TheRegistry().find(std::string(name));
    if (found == TheRegistry().end()) {
      return absl::InvalidArgumentError(absl::StrCat("no codec is named '", std::string(name),
                                                     "'; allowed: ", absl::StrJoin(Names(), ", ")));
    }
    Made made = found->second(config);
    if (!made.ok()) return made;
    codec = *std::move(made);
  }
  if (config.zstd_level() > 0) codec = MakeZstdCodec(std::move(codec), config.zstd_level());
  return codec;
}

bool PayloadCodec::Register(std::string name, Factory factory) {
  TheRegistry()[std::move(name)] = std::move(factory);
  return true;
}

std::vector<std::string> PayloadCodec::Names() {
  std::vector<std::string> names = {"none"};
  for (const auto& [name, factory] : TheRegistry()) names.push_back(name);
  return names;
}

}  // namespace parley
