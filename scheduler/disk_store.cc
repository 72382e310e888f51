#include "scheduler/disk_store.h"

#include <sodium.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace parley {
namespace {

// "parley-scheduler-state 1 <BLAKE2b-256 of what follows, hex>\n", then the state.
constexpr absl::string_view kMagic = "parley-scheduler-state 1 ";
constexpr absl::string_view kName = "parley-scheduler-state ";  // of any version
constexpr size_t kHashBytes = 32;

std::string HashOf(absl::string_view bytes) {
  unsigned char hash[kHashBytes];
  crypto_generichash(hash, sizeof(hash), reinterpret_cast<const unsigned char*>(bytes.data()),
                     bytes.size(), nullptr, 0);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash), sizeof(hash)));
}

absl::StatusOr<std::string> Unpack(const std::string& path, absl::string_view content) {
  // A foreign file is not what --anew may remove; one that a disk has cut short is.
  const bool foreign = !absl::StartsWith(content, kName) && !absl::StartsWith(kName, content);
  const auto code = foreign ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss;
  const auto bad = [&path, code](absl::string_view what) {
    return absl::Status(
        code,
        absl::StrCat("'", path, "' ", what,
                     "; allowed: what a scheduler has written there, or no such file: then the job "
                     "begins anew"));
  };
  if (!absl::ConsumePrefix(&content, kMagic)) return bad("is no state of a scheduler");
  if (content.size() <= 2 * kHashBytes || content[2 * kHashBytes] != '\n') {
    return bad("is torn: it ends in its first line");
  }
  const absl::string_view hash = content.substr(0, 2 * kHashBytes);
  content.remove_prefix(2 * kHashBytes + 1);
  if (HashOf(content) != hash) return bad("is damaged: its checksum is another");
  return std::string(content);
}

// What to others of this program means "another leads", "try again" or "the job is over" is none of
// it from a disk: EISDIR, EBUSY; ESTALE; ECANCELED.
absl::Status OfDisk(const absl::Status& status) {
  const bool special =
      absl::IsFailedPrecondition(status) || absl::IsAborted(status) || absl::IsCancelled(status);
  return special ? absl::UnavailableError(status.message()) : status;
}

}  // namespace

absl::Status DiskStore::Lock() {
  if (!options_.lock || lock_.has_value()) return absl::OkStatus();
  absl::StatusOr<FileLock> taken = FileLock::Take(LockPath());
  if (absl::IsUnavailable(taken.status())) {
    return absl::UnavailableError(
        absl::StrCat("the state in '", options_.directory,
                     "' belongs to another scheduler that is running; allowed: a directory for "
                     "each job (--state DIR)"));
  }
  if (!taken.ok()) return taken.status();
  lock_.emplace(*std::move(taken));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> DiskStore::OpenNow() {
  if (sodium_init() < 0) return absl::InternalError("libsodium cannot be initialised");
  if (absl::Status made = options_.files->MakeDirectory(options_.directory); !made.ok()) {
    return OfDisk(made);
  }
  if (absl::Status locked = Lock(); !locked.ok()) return OfDisk(locked);
  if (!options_.files->Exists(StatePath())) return std::nullopt;
  absl::StatusOr<std::string> content = options_.files->ReadWhole(StatePath());
  if (!content.ok()) return OfDisk(content.status());
  return Unpack(StatePath(), *content);
}

absl::Status DiskStore::SaveNow(const std::string& state) {
  return OfDisk(
      options_.files->WriteWhole(StatePath(), absl::StrCat(kMagic, HashOf(state), "\n", state)));
}

absl::Status DiskStore::Forget() {
  absl::Status removed = options_.files->Remove(StatePath());
  if (lock_.has_value()) {
    removed.Update(lock_->Remove());
    lock_.reset();
  }
  // Unless somebody else keeps something there.
  absl::StatusOr<std::vector<std::string>> left = options_.files->List(options_.directory);
  if (left.ok() && left->empty()) removed.Update(options_.files->Remove(options_.directory));
  return removed;
}

}  // namespace parley
