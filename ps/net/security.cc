#include "ps/net/security.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "ps/net/address.h"

namespace parley {
namespace {

constexpr size_t kMaxFileBytes = 4096;
constexpr size_t kMaxAuthorized = 4096;
constexpr size_t kMaxName = 64;
constexpr size_t kKeyTextBytes = 41;  // with the zero at the end

constexpr mode_t kReadByOthers = S_IRWXG | S_IRWXO;
constexpr mode_t kWrittenByOthers = S_IWGRP | S_IWOTH;

std::string SecretPath(const std::string& directory, PeerRole role) {
  return absl::StrCat(directory, "/", std::string(RoleName(role)), ".key");
}

bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
         });
}

absl::Status MakeDirectory(const std::string& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) == 0 || errno == EEXIST) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("directory '", path, "' cannot be made"));
}

// kPermissionDenied unless what `status` tells of is its owner's alone as far as `forbidden` goes,
// and the owner is this user or root: whoever owns a file can make of it what it likes.
absl::Status CheckGuarded(const std::string& what, const struct stat& status, mode_t forbidden,
                          absl::string_view harm, absl::string_view allowed) {
  const bool ours = status.st_uid == geteuid() || status.st_uid == 0;
  if (ours && (status.st_mode & forbidden) == 0) return absl::OkStatus();
  const std::string others = geteuid() == 0 ? "" : " or 0";
  return absl::PermissionDeniedError(
      absl::StrFormat("%s: mode %04o, owner %d: others may %s; allowed: mode %s, owner %d%s", what,
                      status.st_mode & 07777, status.st_uid, harm, allowed, geteuid(), others));
}

// Who may write to the directory decides what is in it, whatever the modes of the files say.
absl::Status CheckDirectory(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("directory of keys ", path,
                                                   ": cannot be read (parley keygen makes "
                                                   "keys)"));
  }
  return CheckGuarded(absl::StrCat("directory of keys ", path), status, kWrittenByOthers,
                      "replace the keys in it", "0755 or less (chmod go-w)");
}

// A new file, whole and on disk. `instead`: what may be done if it is there.
absl::Status WriteNew(const std::string& path, mode_t mode, const std::string& text,
                      absl::string_view instead) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, ": there is a key already; allowed: ", instead));
  }
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be made"));
  const ssize_t written = write(fd, text.data(), text.size());
  const bool whole = written == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  const int error = errno;
  close(fd);
  if (whole) return absl::OkStatus();
  unlink(path.c_str());
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": cannot be written"));
}

// How a file of keys is to be kept.
struct Guard {
  mode_t forbidden;
  absl::string_view harm, allowed;
};
constexpr Guard kSecret = {kReadByOthers, "read this secret", "0600 (chmod 600)"};
constexpr Guard kPublic = {kWrittenByOthers, "change who is let in", "0644 (chmod 644)"};

absl::StatusOr<std::string> ReadGuarded(const std::string& path, const Guard& guard) {
  // A pipe that nobody writes to would be waited for.
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("key file ", path, ": cannot be opened (parley keygen makes keys)"));
  }
  struct stat status {};
  std::string text(kMaxFileBytes + 1, '\0');
  const bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  absl::Status guarded = absl::OkStatus();
  if (regular) {
    guarded = CheckGuarded(absl::StrCat("key file ", path), status, guard.forbidden, guard.harm,
                           guard.allowed);
  }
  const ssize_t size = regular && guarded.ok() ? read(fd, text.data(), text.size()) : -1;
  close(fd);
  if (!guarded.ok()) return guarded;
  if (size < 0 || static_cast<size_t>(size) > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("key file %s: is no file of a key; allowed: a regular file of up to %d "
                        "bytes",
                        path, kMaxFileBytes));
  }
  text.resize(size);
  return text;
}

using Fields = std::map<std::string, std::string>;

// Values are not in the errors: one may be a secret.
absl::StatusOr<Fields> ParseFields(const std::string& path, const std::string& text) {
  Fields fields;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty() || absl::StartsWith(line, "# ")) continue;
    const std::pair<std::string, std::string> field = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (!fields.insert(field).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("key file %s: two lines '%s', allowed is one", path, field.first));
    }
  }
  for (const char* key : {"public", "secret"}) {
    const auto found = fields.find(key);
    if (found == fields.end() ? key[0] == 'p' : !IsKeyText(found->second)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "key file %s: '%s' is to be a key of 40 characters, as parley keygen writes it", path,
          key));
    }
  }
  return fields;
}

absl::StatusOr<Fields> ReadFields(const std::string& path, const Guard& guard) {
  absl::StatusOr<std::string> text = ReadGuarded(path, guard);
  if (!text.ok()) return text.status();
  return ParseFields(path, *text);
}

absl::Status LoadSecret(const std::string& directory, NodeKeys* keys) {
  const std::string path = SecretPath(directory, keys->role);
  absl::StatusOr<Fields> fields = ReadFields(path, kSecret);
  if (!fields.ok()) return fields.status();
  keys->public_key = (*fields)["public"];
  keys->secret_key = (*fields)["secret"];
  if ((*fields)["role"] != RoleName(keys->role)) {
    return absl::InvalidArgumentError(absl::StrFormat("key file %s: role is '%s', allowed is '%s'",
                                                      path, (*fields)["role"],
                                                      std::string(RoleName(keys->role))));
  }
  std::array<char, kKeyTextBytes> derived{};
  if (keys->secret_key.empty() || zmq_curve_public(derived.data(), keys->secret_key.c_str()) != 0 ||
      keys->public_key != derived.data()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("key file %s: its two keys are no pair; make another", path));
  }
  return absl::OkStatus();
}

absl::Status LoadAuthorized(const std::string& path, NodeKeys* keys) {
  absl::StatusOr<Fields> fields = ReadFields(path, kPublic);
  if (!fields.ok()) return fields.status();
  const std::optional<PeerRole> role = ParseRole((*fields)["role"]);
  if (!role || fields->contains("secret")) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "key file %s: allowed is a role (scheduler, server, worker) and a public key alone", path));
  }
  const auto [known, added] = keys->authorized.emplace((*fields)["public"], *role);
  if (added || known->second == *role) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("key file %s: the same key is of a %s and of a %s; allowed: one role", path,
                      std::string(RoleName(known->second)), std::string(RoleName(*role))));
}

absl::StatusOr<std::vector<std::string>> ListPublic(const std::string& directory) {
  struct Close {
    void operator()(DIR* dir) const { closedir(dir); }
  };
  const std::unique_ptr<DIR, Close> dir(opendir(directory.c_str()));
  if (dir == nullptr) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("directory of public keys '", directory, "' cannot be read"));
  }
  std::vector<std::string> paths;
  while (const dirent* entry = readdir(dir.get())) {
    if (!absl::EndsWith(entry->d_name, ".pub")) continue;
    paths.push_back(absl::StrCat(directory, "/", entry->d_name));
    if (paths.size() > kMaxAuthorized) {
      return absl::InvalidArgumentError(
          absl::StrFormat("directory %s: more than %d public keys", directory, kMaxAuthorized));
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

std::string_view RoleName(PeerRole role) {
  switch (role) {
    case PeerRole::kScheduler:
      return "scheduler";
    case PeerRole::kServer:
      return "server";
    case PeerRole::kWorker:
      return "worker";
    case PeerRole::kUnproven:
      break;
  }
  return "unproven";
}

std::optional<PeerRole> ParseRole(std::string_view name) {
  for (PeerRole role : {PeerRole::kScheduler, PeerRole::kServer, PeerRole::kWorker}) {
    if (name == RoleName(role)) return role;
  }
  return std::nullopt;
}

PeerRole NodeKeys::RoleOf(std::string_view public_key) const {
  const auto found = authorized.find(std::string(public_key));
  return found == authorized.end() ? PeerRole::kUnproven : found->second;
}

absl::StatusOr<std::string> NodeKeys::TheKeyOf(PeerRole role) const {
  std::string key;
  int count = 0;
  for (const auto& [candidate, of] : authorized) {
    if (of != role) continue;
    key = candidate;
    ++count;
  }
  if (count == 1) return key;
  return absl::FailedPreconditionError(absl::StrFormat(
      "authorized/ has %d keys of a %s; allowed: one, or an endpoint that names the key, "
      "tcp://host:port#KEY",
      count, std::string(RoleName(role))));
}

absl::Status MakeKeys(const std::string& directory, PeerRole role, const std::string& name) {
  if (!IsName(name)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "keygen: name '%s'; allowed: 1..%d letters, digits, '.', '-' and '_', no '.' first",
        name.substr(0, 100), kMaxName));
  }
  std::array<char, kKeyTextBytes> public_key{}, secret_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0) {
    return absl::UnimplementedError("keygen: this libzmq was built without CURVE (libsodium)");
  }
  const std::string authorized = directory + "/authorized";
  absl::Status status = MakeDirectory(directory, 0700);
  if (status.ok()) status = CheckDirectory(directory);
  if (status.ok()) status = MakeDirectory(authorized, 0755);
  if (status.ok()) status = CheckDirectory(authorized);
  if (!status.ok()) return status;
  const std::string role_name(RoleName(role));
  const std::string who =
      absl::StrCat("role ", role_name, "\nname ", name, "\npublic ", public_key.data(), "\n");
  const std::string open_path = absl::StrCat(authorized, "/", role_name, "-", name, ".pub");
  const std::string secret_path = SecretPath(directory, role);
  status =
      WriteNew(secret_path, 0600,
               absl::StrCat("# The secret key of a ", role_name, ": for nobody else to read.\n",
                            who, "secret ", secret_key.data(), "\n"),
               "another directory");  // a role has one secret in each
  if (!status.ok()) return status;
  status = WriteNew(open_path, 0644, who, "another directory, or another --name");
  if (!status.ok()) unlink(secret_path.c_str());
  return status;
}

absl::StatusOr<NodeKeys> LoadKeys(const std::string& directory, PeerRole role) {
  NodeKeys keys;
  keys.role = role;
  const std::string authorized = directory + "/authorized";
  absl::Status status = LoadSecret(directory, &keys);  // first, since its error names the file
  if (status.ok()) status = CheckDirectory(directory);
  if (status.ok()) status = CheckDirectory(authorized);
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<std::string>> paths = ListPublic(authorized);
  if (!paths.ok()) return paths.status();
  for (const std::string& path : *paths) {
    if (status = LoadAuthorized(path, &keys); !status.ok()) return status;
  }
  return keys;
}

absl::Status UseKeys(const std::string& directory, PeerRole role,
                     std::shared_ptr<const NodeKeys>* keys) {
  if (directory.empty()) return absl::OkStatus();
  absl::StatusOr<NodeKeys> loaded = LoadKeys(directory, role);
  if (loaded.ok()) *keys = std::make_shared<NodeKeys>(*std::move(loaded));
  return loaded.status();
}

}  // namespace parley
