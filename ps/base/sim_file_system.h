// SimFileSystem: a disk in memory that loses, on a crash, what it never promised to keep, and that
// can be made to lie, to fail and to fill up.
//
// What a crash leaves of bytes that were not synced: nothing, a beginning, some of their sectors
// with zeros in the place of others, or all. Of names that were not synced, per directory, a
// beginning of what was done; a rename within a directory is done or not. Files with more than one
// name are one file. The seed and the calls decide everything.
//
// Thread-safety: none; for simulations and tests. Paths are relative to one root, "/a//b" is "a/b".
#ifndef PARLEY_PS_BASE_SIM_FILE_SYSTEM_H_
#define PARLEY_PS_BASE_SIM_FILE_SYSTEM_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ps/base/file_system.h"

namespace parley {

class SimFileSystem final : public FileSystem {
 public:
  // Chances are in [0, 1], drawn for each call.
  struct Faults {
    double lost_sync = 0;    // Sync and SyncDirectory say OK and do nothing
    double read_error = 0;   // Read, Size and List: kUnknown
    double write_error = 0;  // what changes anything: kUnknown, after a part of an Append
    uint64_t capacity_bytes = std::numeric_limits<uint64_t>::max();  // past it kResourceExhausted
  };

  explicit SimFileSystem(uint64_t seed);
  ~SimFileSystem() override;
  SimFileSystem(const SimFileSystem&) = delete;
  SimFileSystem& operator=(const SimFileSystem&) = delete;

  void SetFaults(const Faults& faults) { faults_ = faults; }

  // The machine loses its power and is started again at once. Open files are gone: calls on them
  // fail. (A process that dies alone loses nothing that it wrote.)
  void Crash();
  // The machine stops within the operation after the next `operations`: that one may be half done,
  // and all calls fail, kUnavailable, until Crash. Operations are calls that change something or
  // sync; a directory made or removed with others in it counts once for each.
  void HaltAfter(uint64_t operations);
  bool halted() const { return halted_; }
  uint64_t operations() const { return operations_; }  // so far

  // What a bad disk does to a file: its bytes, to be changed at will; null if there is none.
  // Valid until the next call.
  std::string* Content(const std::string& path);
  // Flips one bit of one of the files below `directory`; returns which file, "" if all are empty.
  std::string FlipRandomBit(const std::string& directory);
  // All files below `directory`, with their paths, sorted.
  std::vector<std::string> Files(const std::string& directory) const;
  uint64_t used_bytes() const;

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override;
  absl::StatusOr<uint64_t> Size(const std::string& path) override;
  absl::Status Read(const std::string& path, uint64_t offset, uint64_t size,
                    std::byte* to) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override;
  bool Exists(const std::string& path) override;
  absl::Status MakeDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Link(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& directory) override;

 private:
  class File;
  struct Node;    // a file's bytes, or a directory's names
  struct Change;  // a directory, a name, what it stands for then
  using NodePtr = std::shared_ptr<Node>;
  using Operation = std::vector<Change>;  // of names; whole or not at all
  // Where a path leads; `directory` is null if its parent is not there.
  struct Place {
    NodePtr directory;
    std::string name;
    NodePtr node;
  };

  uint64_t Random();
  bool Chance(double probability);
  Place Find(absl::string_view path) const;
  // What every call begins with. `path` is for the message.
  absl::Status BeginRead(absl::string_view path);
  absl::Status BeginOperation(absl::string_view path);
  absl::Status Append(absl::string_view path, Node& node, absl::Span<const std::byte> bytes);
  absl::Status Sync(absl::string_view path, Node& node);
  absl::Status RemoveNode(const std::string& path, const Place& place);
  absl::Status SyncNames(const std::string& path, const NodePtr& directory);
  void Do(Operation operation);

  uint64_t state_;
  Faults faults_;
  uint64_t operations_ = 0;
  uint64_t halt_at_ = std::numeric_limits<uint64_t>::max();
  bool halted_ = false;
  uint64_t boots_ = 0;
  NodePtr root_;
  std::vector<Operation> unsynced_;  // in order
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_SIM_FILE_SYSTEM_H_
