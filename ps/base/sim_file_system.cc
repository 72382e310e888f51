#include "ps/base/sim_file_system.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace parley {
namespace {

// What a disk writes whole.
constexpr uint64_t kSector = 512;

std::vector<std::string> PartsOf(absl::string_view path) {
  std::vector<std::string> parts = absl::StrSplit(path, '/', absl::SkipEmpty());
  parts.erase(std::remove(parts.begin(), parts.end(), "."), parts.end());
  return parts;
}

absl::Status NotFound(absl::string_view path) {
  return absl::NotFoundError(
      absl::StrCat("'", path, "' cannot be read: No such file or directory"));
}

}  // namespace

struct SimFileSystem::Node {
  explicit Node(bool directory) : is_directory(directory) {}

  const bool is_directory;
  std::string bytes;
  uint64_t synced = 0;  // of `bytes`: as they would be after a crash
  std::map<std::string, NodePtr> names;
  std::map<std::string, NodePtr> synced_names;
};

struct SimFileSystem::Change {
  NodePtr directory;
  std::string name;
  NodePtr node;  // null: none
};

class SimFileSystem::File final : public WritableFile {
 public:
  File(SimFileSystem* disk, std::string path, NodePtr node)
      : disk_(disk), boot_(disk->boots_), path_(std::move(path)), node_(std::move(node)) {}

  absl::Status Append(absl::Span<const std::byte> bytes) override {
    if (disk_->boots_ != boot_) return Gone();
    return disk_->Append(path_, *node_, bytes);
  }
  absl::Status Sync() override {
    if (disk_->boots_ != boot_) return Gone();
    return disk_->Sync(path_, *node_);
  }

 private:
  absl::Status Gone() const {
    return absl::UnavailableError(absl::StrCat("'", path_, "' was open when the machine crashed"));
  }

  SimFileSystem* const disk_;
  const uint64_t boot_;
  const std::string path_;
  const NodePtr node_;
};

SimFileSystem::SimFileSystem(uint64_t seed) : state_(seed), root_(std::make_shared<Node>(true)) {}
SimFileSystem::~SimFileSystem() = default;

// SplitMix64 (Steele, Lea, Flood): small, and good enough for faults.
uint64_t SimFileSystem::Random() {
  uint64_t x = state_ += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

bool SimFileSystem::Chance(double probability) {
  // No draw for what cannot happen, so that a fault that is off changes no other.
  return probability > 0 && static_cast<double>(Random() >> 11) * 0x1p-53 < probability;
}

SimFileSystem::Place SimFileSystem::Find(absl::string_view path) const {
  Place place{.directory = nullptr, .name = "", .node = root_};
  for (std::string& part : PartsOf(path)) {
    if (place.node == nullptr || !place.node->is_directory) return {};
    place.directory = place.node;
    const auto found = place.directory->names.find(part);
    place.node = found == place.directory->names.end() ? nullptr : found->second;
    place.name = std::move(part);
  }
  return place;
}

absl::Status SimFileSystem::BeginRead(absl::string_view path) {
  if (halted_) return absl::UnavailableError(absl::StrCat("'", path, "': the machine is off"));
  if (Chance(faults_.read_error)) {
    return absl::UnknownError(absl::StrCat("'", path, "' cannot be read: Input/output error"));
  }
  return absl::OkStatus();
}

absl::Status SimFileSystem::BeginOperation(absl::string_view path) {
  if (!halted_ && operations_++ >= halt_at_) halted_ = true;
  if (halted_) return absl::UnavailableError(absl::StrCat("'", path, "': the machine is off"));
  if (Chance(faults_.write_error)) {
    return absl::UnknownError(absl::StrCat("'", path, "' cannot be written: Input/output error"));
  }
  return absl::OkStatus();
}

void SimFileSystem::HaltAfter(uint64_t operations) { halt_at_ = operations_ + operations; }

void SimFileSystem::Do(Operation operation) {
  for (const Change& change : operation) {
    if (change.node == nullptr) {
      change.directory->names.erase(change.name);
    } else {
      change.directory->names[change.name] = change.node;
    }
  }
  unsynced_.push_back(std::move(operation));
}

void SimFileSystem::Crash() {
  ++boots_;
  halted_ = false;
  halt_at_ = std::numeric_limits<uint64_t>::max();
  // Whole crashes that lose, or keep, everything are those that tests of chance rarely make.
  const uint64_t style = Random() % 4;
  const double kept = style == 0 ? 0 : style == 1 ? 1 : 0.5;
  std::set<const Node*> cut;  // directories of which nothing later is kept
  for (const Operation& operation : unsynced_) {
    bool keep = Chance(kept);
    for (const Change& change : operation) keep = keep && cut.count(change.directory.get()) == 0;
    for (const Change& change : operation) {
      if (!keep) {
        cut.insert(change.directory.get());
      } else if (change.node == nullptr) {
        change.directory->synced_names.erase(change.name);
      } else {
        change.directory->synced_names[change.name] = change.node;
      }
    }
  }
  unsynced_.clear();
  std::set<const Node*> seen;
  std::vector<NodePtr> left = {root_};
  while (!left.empty()) {
    const NodePtr node = left.back();
    left.pop_back();
    if (!seen.insert(node.get()).second) continue;
    if (node->is_directory) {
      node->names = node->synced_names;
      for (const auto& [name, child] : node->names) left.push_back(child);
      continue;
    }
    const uint64_t tail = node->bytes.size() - node->synced;
    if (tail != 0 && !Chance(kept * kept)) {
      const uint64_t stays = kept == 0 ? 0 : Random() % (tail + 1);
      node->bytes.resize(node->synced + stays);
      // The length may reach the disk before the bytes do.
      const bool torn = Random() % 2 == 0;
      for (uint64_t at = node->synced; torn && at < node->bytes.size();) {
        const uint64_t end = std::min<uint64_t>((at / kSector + 1) * kSector, node->bytes.size());
        if (Random() % 2 == 0) std::memset(node->bytes.data() + at, 0, end - at);
        at = end;
      }
    }
    node->synced = node->bytes.size();
  }
}

std::vector<std::string> SimFileSystem::Files(const std::string& directory) const {
  std::vector<std::string> paths;
  std::vector<std::pair<std::string, NodePtr>> left = {{directory, Find(directory).node}};
  while (!left.empty()) {
    const auto [path, node] = left.back();
    left.pop_back();
    if (node == nullptr) continue;
    if (!node->is_directory) paths.push_back(path);
    for (const auto& [name, child] : node->names) {
      left.emplace_back(absl::StrCat(path, "/", name), child);
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

uint64_t SimFileSystem::used_bytes() const {
  uint64_t used = 0;
  std::set<const Node*> seen;
  for (const std::string& path : Files("")) {
    const NodePtr node = Find(path).node;
    if (seen.insert(node.get()).second) used += node->bytes.size();
  }
  return used;
}

std::string* SimFileSystem::Content(const std::string& path) {
  const NodePtr node = Find(path).node;
  return node == nullptr || node->is_directory ? nullptr : &node->bytes;
}

std::string SimFileSystem::FlipRandomBit(const std::string& directory) {
  std::vector<std::string> paths = Files(directory);
  paths.erase(std::remove_if(paths.begin(), paths.end(),
                             [&](const std::string& path) { return Content(path)->empty(); }),
              paths.end());
  if (paths.empty()) return "";
  const std::string& path = paths[Random() % paths.size()];
  std::string& bytes = *Content(path);
  const uint64_t bit = Random() % (bytes.size() * 8);
  bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  return path;
}

absl::StatusOr<std::unique_ptr<WritableFile>> SimFileSystem::Create(const std::string& path) {
  if (absl::Status status = BeginOperation(path); !status.ok()) return status;
  const Place place = Find(path);
  if (place.directory == nullptr) return NotFound(path);
  if (place.node != nullptr && place.node->is_directory) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", path, "' cannot be replaced: Is a directory"));
  }
  const auto node = std::make_shared<Node>(false);
  Do({{place.directory, place.name, node}});
  return std::make_unique<File>(this, path, node);
}

absl::Status SimFileSystem::Append(absl::string_view path, Node& node,
                                   absl::Span<const std::byte> bytes) {
  const bool was_on = !halted_;
  absl::Status status = BeginOperation(path);
  uint64_t taken = bytes.size();
  if (!status.ok()) taken = was_on ? Random() % (bytes.size() + 1) : 0;
  if (faults_.capacity_bytes != std::numeric_limits<uint64_t>::max()) {
    const uint64_t used = used_bytes();
    const uint64_t room = faults_.capacity_bytes - std::min(faults_.capacity_bytes, used);
    if (taken > room) {
      taken = room;
      if (status.ok()) {
        status = absl::ResourceExhaustedError(
            absl::StrCat("'", path, "' cannot be written: No space left on device"));
      }
    }
  }
  node.bytes.append(reinterpret_cast<const char*>(bytes.data()), taken);
  return status;
}

absl::Status SimFileSystem::Sync(absl::string_view path, Node& node) {
  if (absl::Status status = BeginOperation(path); !status.ok()) return status;
  if (!Chance(faults_.lost_sync)) node.synced = node.bytes.size();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SimFileSystem::Size(const std::string& path) {
  if (absl::Status status = BeginRead(path); !status.ok()) return status;
  const NodePtr node = Find(path).node;
  if (node == nullptr) return NotFound(path);
  if (node->is_directory) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is no regular file"));
  }
  return node->bytes.size();
}

absl::Status SimFileSystem::Read(const std::string& path, uint64_t offset, uint64_t size,
                                 std::byte* to) {
  if (absl::Status status = BeginRead(path); !status.ok()) return status;
  const NodePtr node = Find(path).node;
  if (node == nullptr || node->is_directory) return NotFound(path);
  if (offset > node->bytes.size() || size > node->bytes.size() - offset) {
    return absl::DataLossError(absl::StrCat("'", path, "' has ", node->bytes.size(),
                                            " bytes; expected at least ", offset + size));
  }
  std::memcpy(to, node->bytes.data() + offset, size);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SimFileSystem::List(const std::string& directory) {
  if (absl::Status status = BeginRead(directory); !status.ok()) return status;
  const NodePtr node = Find(directory).node;
  if (node == nullptr || !node->is_directory) return NotFound(directory);
  std::vector<std::string> names;
  for (const auto& [name, child] : node->names) names.push_back(name);
  return names;
}

bool SimFileSystem::Exists(const std::string& path) {
  return halted_ || Find(path).node != nullptr;
}

absl::Status SimFileSystem::MakeDirectory(const std::string& path) {
  std::string built;
  const std::vector<std::string> parts = PartsOf(path);
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string& part = parts[i];
    const std::string parent = built;
    absl::StrAppend(&built, "/", part);
    const Place place = Find(built);
    if (place.node != nullptr && place.node->is_directory) {
      if (i + 1 < parts.size() && place.node->names.count(parts[i + 1]) != 0) continue;
      // Who made it may have been unable to sync its name.
      if (absl::Status status = SyncNames(parent, place.directory); !status.ok()) return status;
      continue;
    }
    if (place.node != nullptr) {
      return absl::AlreadyExistsError(
          absl::StrCat("directory '", path, "' cannot be made: a file has this name"));
    }
    if (absl::Status status = BeginOperation(path); !status.ok()) return status;
    Do({{place.directory, part, std::make_shared<Node>(true)}});
    if (absl::Status status = SyncNames(parent, place.directory); !status.ok()) return status;
  }
  return halted_ ? BeginOperation(path) : absl::OkStatus();
}

absl::Status SimFileSystem::Rename(const std::string& from, const std::string& to) {
  if (absl::Status status = BeginOperation(from); !status.ok()) return status;
  const Place source = Find(from), target = Find(to);
  if (source.directory == nullptr || source.node == nullptr) return NotFound(from);
  if (target.directory == nullptr) return NotFound(to);
  if (source.node == target.node) return absl::OkStatus();
  if (target.node != nullptr &&
      (target.node->is_directory != source.node->is_directory || !target.node->names.empty())) {
    return absl::AlreadyExistsError(
        absl::StrCat("'", from, "' cannot be renamed to '", to, "': Directory not empty"));
  }
  Do({{source.directory, source.name, nullptr}, {target.directory, target.name, source.node}});
  return absl::OkStatus();
}

absl::Status SimFileSystem::Link(const std::string& from, const std::string& to) {
  if (absl::Status status = BeginOperation(from); !status.ok()) return status;
  const Place source = Find(from), target = Find(to);
  if (source.node == nullptr || source.node->is_directory) return NotFound(from);
  if (target.directory == nullptr) return NotFound(to);
  if (target.node != nullptr) {
    return absl::AlreadyExistsError(
        absl::StrCat("'", from, "' cannot be linked as '", to, "': File exists"));
  }
  Do({{target.directory, target.name, source.node}});
  return absl::OkStatus();
}

absl::Status SimFileSystem::RemoveNode(const std::string& path, const Place& place) {
  if (place.node->is_directory) {
    const auto names = place.node->names;
    for (const auto& [name, child] : names) {
      absl::Status status = RemoveNode(absl::StrCat(path, "/", name), {place.node, name, child});
      if (!status.ok()) return status;
    }
  }
  if (absl::Status status = BeginOperation(path); !status.ok()) return status;
  Do({{place.directory, place.name, nullptr}});
  return absl::OkStatus();
}

absl::Status SimFileSystem::Remove(const std::string& path) {
  const Place place = Find(path);
  if (place.directory == nullptr || place.node == nullptr) {
    return halted_ ? BeginOperation(path) : absl::OkStatus();
  }
  return RemoveNode(path, place);
}

absl::Status SimFileSystem::SyncDirectory(const std::string& directory) {
  const NodePtr node = Find(directory).node;
  if (node == nullptr || !node->is_directory) return NotFound(directory);
  return SyncNames(directory, node);
}

absl::Status SimFileSystem::SyncNames(const std::string& path, const NodePtr& directory) {
  if (absl::Status status = BeginOperation(path); !status.ok()) return status;
  if (Chance(faults_.lost_sync)) return absl::OkStatus();
  // What was done here, and what came before that in the other directory of a rename.
  std::set<const Node*> synced = {directory.get()};
  std::vector<bool> now(unsynced_.size(), false);
  for (size_t i = unsynced_.size(); i-- > 0;) {
    for (const Change& change : unsynced_[i]) {
      now[i] = now[i] || synced.count(change.directory.get()) != 0;
    }
    for (const Change& change : unsynced_[i]) {
      if (now[i]) synced.insert(change.directory.get());
    }
  }
  std::vector<Operation> later;
  for (size_t i = 0; i < unsynced_.size(); ++i) {
    if (!now[i]) {
      later.push_back(std::move(unsynced_[i]));
      continue;
    }
    for (const Change& change : unsynced_[i]) {
      if (change.node == nullptr) {
        change.directory->synced_names.erase(change.name);
      } else {
        change.directory->synced_names[change.name] = change.node;
      }
    }
  }
  unsynced_ = std::move(later);
  return absl::OkStatus();
}

}  // namespace parley
