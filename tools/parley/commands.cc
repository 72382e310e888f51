#include "tools/parley/commands.h"

#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace parley {

std::optional<int> ParseFlags(FlagSet* flags, const CommandArgs& args) {
  if (absl::Status status = flags->Parse(args); !status.ok()) {
    fputs(absl::StrCat(status.message(), "\n").c_str(), stderr);
    return kExitUsage;
  }
  if (!flags->help_wanted()) return std::nullopt;
  fputs(flags->Help().c_str(), stdout);
  return kExitOk;
}

int Complain(const absl::Status& status, int exit_code) {
  for (absl::string_view line : absl::StrSplit(status.message(), '\n')) {
    const bool named = absl::StartsWith(line, "parley ");
    fputs(absl::StrCat(named ? "" : "parley: ", line, "\n").c_str(), stderr);
  }
  return exit_code;
}

}  // namespace parley
