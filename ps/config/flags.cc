#include "ps/config/flags.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/config/suggest.h"

namespace parley {

FlagSet::FlagSet(std::string command, std::string purpose)
    : command_(std::move(command)), purpose_(std::move(purpose)) {}

FlagSet& FlagSet::Add(Flag flag) {
  flags_.push_back(std::move(flag));
  return *this;
}

FlagSet& FlagSet::Text(const std::string& name, std::string* target, const std::string& value,
                       const std::string& help) {
  Flag flag{name, value, help, *target};
  flag.allowed = absl::StrCat("a ", value);
  flag.set = [target](const std::string& text) {
    *target = text;
    return true;
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::Required(const std::string& name, std::string* target, const std::string& value,
                           const std::string& help) {
  Flag flag{name, value, help, ""};
  flag.required = true;
  flag.allowed = absl::StrCat("a ", value, ", not empty");
  flag.set = [target](const std::string& text) {
    *target = text;
    return !text.empty();
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::Repeated(const std::string& name, std::vector<std::string>* target,
                           const std::string& value, const std::string& help) {
  Flag flag{name, value, help + "; may be repeated", ""};
  flag.allowed = absl::StrCat("a ", value);
  flag.set = [target](const std::string& text) {
    target->push_back(text);
    return true;
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::AddNumber(Flag flag, uint32_t min, uint32_t max,
                            std::function<void(uint32_t)> store) {
  flag.allowed = absl::StrCat("a whole number in ", min, "..", max);
  flag.set = [store = std::move(store), min, max](const std::string& text) {
    uint32_t value;
    if (!absl::SimpleAtoi(text, &value) || value < min || value > max) return false;
    store(value);
    return true;
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::Number(const std::string& name, uint32_t* target, uint32_t min, uint32_t max,
                         const std::string& help) {
  return AddNumber(Flag{name, "N", help, absl::StrCat(*target)}, min, max,
                   [target](uint32_t value) { *target = value; });
}

FlagSet& FlagSet::OptionalNumber(const std::string& name, uint32_t* target, uint32_t min,
                                 uint32_t max, const std::string& help) {
  return AddNumber(Flag{name, "N", help, ""}, min, max,
                   [target](uint32_t value) { *target = value; });
}

FlagSet& FlagSet::MaybeNumber(const std::string& name, std::optional<uint32_t>* target,
                              uint32_t min, uint32_t max, const std::string& help) {
  return AddNumber(Flag{name, "N", help, ""}, min, max,
                   [target](uint32_t value) { *target = value; });
}

FlagSet& FlagSet::Choice(const std::string& name, std::string* target,
                         const std::vector<std::string>& choices, const std::string& help) {
  Flag flag{name, absl::StrJoin(choices, "|"), help, *target};
  flag.allowed = absl::StrJoin(choices, ", ");
  flag.set = [target, choices](const std::string& text) {
    *target = text;
    return std::find(choices.begin(), choices.end(), text) != choices.end();
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::Switch(const std::string& name, bool* target, const std::string& help) {
  Flag flag{name, "", help, ""};
  flag.is_switch = true;
  flag.allowed = "true, false, or no value for true";
  flag.set = [target](const std::string& text) {
    *target = text == "true";
    return text == "true" || text == "false";
  };
  return Add(std::move(flag));
}

FlagSet& FlagSet::Argument(const std::string& name, std::string* target, const std::string& help) {
  arguments_.push_back({name, help, target});
  return *this;
}

FlagSet& FlagSet::OptionalArgument(const std::string& name, std::string* target,
                                   const std::string& help) {
  arguments_.push_back({name, help, target, false});
  return *this;
}

FlagSet::Flag* FlagSet::Find(const std::string& name) {
  for (Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::Status FlagSet::Error(const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrCat(command_, ": ", what));
}

absl::Status FlagSet::UnknownFlag(const std::string& name) const {
  std::vector<std::string> names;
  for (const Flag& flag : flags_) names.push_back(absl::StrCat("--", flag.name));
  names.push_back("--help");
  return Error(absl::StrCat("unknown flag '--", name, "'",
                            DidYouMean(absl::StrCat("--", name), names),
                            "; allowed: ", absl::StrJoin(names, ", ")));
}

absl::Status FlagSet::Parse(int argc, const char* const* argv) {
  return Parse(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

absl::Status FlagSet::Parse(const std::vector<std::string>& args) {
  size_t given = 0;
  bool flags_over = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (!flags_over && arg == "--") {
      flags_over = true;
    } else if (!flags_over && (arg == "--help" || arg == "-h")) {
      help_wanted_ = true;
    } else if (!flags_over && arg.size() > 1 && arg[0] == '-') {
      if (absl::Status status = ParseFlag(args, &i); !status.ok()) return status;
    } else if (given < arguments_.size()) {
      *arguments_[given++].target = arg;
    } else {
      return Error(absl::StrCat("surplus argument '", arg, "'; allowed: ", arguments_.size(),
                                " besides flags"));
    }
  }
  return help_wanted_ ? absl::OkStatus() : CheckMissing(given);
}

absl::Status FlagSet::ParseFlag(const std::vector<std::string>& args, size_t* index) {
  const std::string& arg = args[*index];
  const size_t dashes = absl::StartsWith(arg, "--") ? 2 : 1;
  const size_t equals = arg.find('=');
  const std::string name =
      arg.substr(dashes, equals == std::string::npos ? equals : equals - dashes);
  Flag* flag = dashes == 2 ? Find(name) : nullptr;
  if (flag == nullptr) return UnknownFlag(name);
  std::string value;
  if (equals != std::string::npos) {
    value = arg.substr(equals + 1);
  } else if (flag->is_switch) {
    value = "true";
  } else if (*index + 1 < args.size() && !absl::StartsWith(args[*index + 1], "--")) {
    value = args[++*index];
  } else {
    return Error(absl::StrCat("flag --", name, " has no value; allowed: ", flag->allowed));
  }
  if (!flag->set(value)) {
    return Error(
        absl::StrCat("flag --", name, ": '", value, "' does not fit; allowed: ", flag->allowed));
  }
  flag->seen = true;
  return absl::OkStatus();
}

absl::Status FlagSet::CheckMissing(size_t arguments_given) const {
  if (arguments_given < arguments_.size() && arguments_[arguments_given].required) {
    const Positional& missing = arguments_[arguments_given];
    return Error(
        absl::StrCat(missing.name, " is missing: ", missing.help, "; see ", command_, " --help"));
  }
  for (const Flag& flag : flags_) {
    if (flag.required && !flag.seen) {
      return Error(absl::StrCat("flag --", flag.name, " is missing: ", flag.help, "; see ",
                                command_, " --help"));
    }
  }
  return absl::OkStatus();
}

std::optional<int> FlagSet::ParseForMain(int argc, const char* const* argv) {
  if (absl::Status status = Parse(argc, argv); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 2;
  }
  if (!help_wanted_) return std::nullopt;
  std::fputs(Help().c_str(), stdout);
  return 0;
}

std::string FlagSet::Help() const {
  std::string usage = absl::StrCat("usage: ", command_);
  for (const Positional& argument : arguments_) {
    absl::StrAppend(&usage, " ", argument.required ? "" : "[", argument.name,
                    argument.required ? "" : "]");
  }
  for (const Flag& flag : flags_) {
    if (flag.required) absl::StrAppend(&usage, " --", flag.name, " ", flag.value);
  }
  absl::StrAppend(&usage, " [flags]\n\n", purpose_, "\n\n");

  std::vector<std::pair<std::string, std::string>> rows;
  for (const Positional& argument : arguments_) rows.push_back({argument.name, argument.help});
  for (const Flag& flag : flags_) {
    std::string left = absl::StrCat("--", flag.name, flag.value.empty() ? "" : " ", flag.value);
    std::string right = flag.help;
    if (!flag.default_text.empty()) absl::StrAppend(&right, " (default ", flag.default_text, ")");
    if (flag.required) absl::StrAppend(&right, " (required)");
    rows.push_back({std::move(left), std::move(right)});
  }
  rows.push_back({"--help", "this text"});
  size_t width = 0;
  for (const auto& [left, right] : rows) width = std::max(width, left.size());
  for (const auto& [left, right] : rows) {
    absl::StrAppend(&usage, "  ", left, std::string(width - left.size() + 2, ' '), right, "\n");
  }
  return usage;
}

}  // namespace parley
