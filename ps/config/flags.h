// Command-line flags of one command; no globals, so that a program may have several commands.
//
//   uint32_t shards = 1;
//   std::string scheduler;
//   FlagSet flags("parley-server", "Holds a part of the weights.");
//   flags.Required("scheduler", &scheduler, "ENDPOINT", "where the scheduler listens")
//       .Number("shards", &shards, 1, 64, "event loops in this process");
//   if (absl::Status status = flags.Parse(argc, argv); !status.ok()) ...   // exit code 2
//   if (flags.help_wanted()) { print flags.Help(); return 0; }
//
// "--name=value" and "--name value" mean the same; "--" ends the flags. Not thread-safe. The
// targets must outlive Parse; what they hold before it is the default that --help shows.
//
// Errors, kInvalidArgument with one line: an unknown flag with the nearest known one, a wrong or
// missing value with what is allowed, a surplus or missing argument.
#ifndef PARLEY_PS_CONFIG_FLAGS_H_
#define PARLEY_PS_CONFIG_FLAGS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace parley {

class FlagSet {
 public:
  // `command` as the user types it, `purpose` is one sentence for --help.
  FlagSet(std::string command, std::string purpose);

  // `value` stands for the value in --help: "DIR", "ENDPOINT".
  FlagSet& Text(const std::string& name, std::string* target, const std::string& value,
                const std::string& help);
  // A text that must be given and not be empty.
  FlagSet& Required(const std::string& name, std::string* target, const std::string& value,
                    const std::string& help);
  // May be given several times; appends.
  FlagSet& Repeated(const std::string& name, std::vector<std::string>* target,
                    const std::string& value, const std::string& help);
  FlagSet& Number(const std::string& name, uint32_t* target, uint32_t min, uint32_t max,
                  const std::string& help);
  // A number that may stay unset: 0 then, which is shown as no default.
  FlagSet& OptionalNumber(const std::string& name, uint32_t* target, uint32_t min, uint32_t max,
                          const std::string& help);
  // A number for which there is no default, not even 0.
  FlagSet& MaybeNumber(const std::string& name, std::optional<uint32_t>* target, uint32_t min,
                       uint32_t max, const std::string& help);
  FlagSet& Choice(const std::string& name, std::string* target,
                  const std::vector<std::string>& choices, const std::string& help);
  // "--quiet" or "--quiet=true|false".
  FlagSet& Switch(const std::string& name, bool* target, const std::string& help);
  // An argument without a name; those added first come first. Required.
  FlagSet& Argument(const std::string& name, std::string* target, const std::string& help);
  // One that may be left out. REQUIRES: it is added last.
  FlagSet& OptionalArgument(const std::string& name, std::string* target, const std::string& help);

  absl::Status Parse(int argc, const char* const* argv);  // argv[0] is skipped
  absl::Status Parse(const std::vector<std::string>& args);

  // For a main: parses, and tells with which exit code the program should end now - 0 after --help,
  // which is printed, or 2 after an error, which is printed on stderr. Empty: go on.
  std::optional<int> ParseForMain(int argc, const char* const* argv);

  // --help or -h was among the arguments; then nothing required is missed.
  bool help_wanted() const { return help_wanted_; }
  std::string Help() const;

 private:
  struct Flag {
    std::string name, value, help, default_text;
    bool required = false, is_switch = false, seen = false;
    std::string allowed = {};
    std::function<bool(const std::string&)> set = {};  // false: not allowed
  };
  struct Positional {
    std::string name, help;
    std::string* target;
    bool required = true;
  };
  FlagSet& Add(Flag flag);
  FlagSet& AddNumber(Flag flag, uint32_t min, uint32_t max, std::function<void(uint32_t)> store);
  Flag* Find(const std::string& name);
  absl::Status UnknownFlag(const std::string& name) const;
  absl::Status ParseFlag(const std::vector<std::string>& args, size_t* index);
  absl::Status CheckMissing(size_t arguments_given) const;
  absl::Status Error(const std::string& what) const;

  const std::string command_, purpose_;
  std::vector<Flag> flags_;
  std::vector<Positional> arguments_;
  bool help_wanted_ = false;
};

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_FLAGS_H_
