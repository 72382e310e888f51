#include "tests/sim/faults.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

const char* const kWords[] = {"crashes",         "stands still",
                              "jumps ahead",     "is mute",
                              "is isolated",     "is slow",
                              "has a slow link", "loses its power",
                              "disk lost",       "disk lies",
                              "disk full",       "disk errors",
                              "state disk full", "state disk errors",
                              "a server joins",  "a worker joins",
                              "resize",          "checkpoint asked for"};

}  // namespace

std::string Describe(const SimFault& fault) {
  std::string text;
  if (fault.kind <= SimFault::kSlowLink) {
    text = fault.process == kSchedulerProcess ? "the scheduler "
                                              : absl::StrCat("process ", fault.process, " ");
  }
  absl::StrAppend(&text, kWords[fault.kind]);
  if (fault.kind == SimFault::kMute || fault.kind == SimFault::kSlowLink) {
    absl::StrAppend(
        &text, " to ",
        fault.other == kSchedulerProcess ? "the scheduler" : absl::StrCat("process ", fault.other));
  }
  if (fault.count > 0) absl::StrAppend(&text, " (", fault.count, ")");
  if (fault.updates > 0) {
    absl::StrAppendFormat(&text, " after %d updates and %d events", fault.updates, fault.events);
  } else {
    absl::StrAppend(&text, " at ", absl::FormatDuration(fault.at));
  }
  if (fault.length == absl::InfiniteDuration()) {
    absl::StrAppend(&text, ", for good");
  } else if (fault.length > absl::ZeroDuration()) {
    absl::StrAppend(&text, ", for ", absl::FormatDuration(fault.length));
  }
  return text;
}

}  // namespace parley
