// Key directories: what is written, what is read back, what is refused; and what a key may say.
#include "ps/net/security.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/cluster.pb.h"
#include "ps/net/address.h"
#include "ps/net/admission.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

namespace fs = std::filesystem;

constexpr PeerRole kRoles[] = {PeerRole::kScheduler, PeerRole::kServer, PeerRole::kWorker};

std::string Read(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

mode_t ModeOf(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(stat(path.c_str(), &status), 0) << path;
  return status.st_mode & 07777;
}

class Keys : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "parley_keys_XXXXXX";
    root_ = mkdtemp(pattern.data());
    dir_ = root_ + "/keys";
  }
  ~Keys() override { fs::remove_all(root_); }

  void MakeAll() {
    for (PeerRole role : kRoles) ASSERT_TRUE(MakeKeys(dir_, role, "main").ok());
  }
  std::string ErrorOfLoading(PeerRole role, absl::StatusCode code) {
    const absl::Status status = LoadKeys(dir_, role).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
    return std::string(status.message());
  }

  std::string root_, dir_;
};

TEST_F(Keys, AreReadBackAsTheyWereMade) {
  MakeAll();
  for (PeerRole role : kRoles) {
    const absl::StatusOr<NodeKeys> keys = LoadKeys(dir_, role);
    ASSERT_TRUE(keys.ok()) << keys.status();
    EXPECT_TRUE(IsKeyText(keys->public_key));
    EXPECT_TRUE(IsKeyText(keys->secret_key));
    EXPECT_EQ(keys->authorized.size(), 3u);
    EXPECT_EQ(keys->RoleOf(keys->public_key), role);
    EXPECT_EQ(*keys->TheKeyOf(role), keys->public_key);
  }
  EXPECT_EQ(LoadKeys(dir_, PeerRole::kServer)->RoleOf(std::string(40, '0')), PeerRole::kUnproven);
}

TEST_F(Keys, SecretsAreTheOwnersAlone) {
  MakeAll();
  EXPECT_EQ(ModeOf(dir_), 0700u);
  EXPECT_EQ(ModeOf(dir_ + "/server.key"), 0600u);
  const std::string secret = LoadKeys(dir_, PeerRole::kServer)->secret_key;
  for (const auto& entry : fs::directory_iterator(dir_ + "/authorized")) {
    EXPECT_THAT(Read(entry.path()), Not(HasSubstr(secret)));
  }
  for (const mode_t mode : {0640u, 0604u, 0620u, 0644u}) {
    ASSERT_EQ(chmod((dir_ + "/server.key").c_str(), mode), 0);
    EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kPermissionDenied),
                AllOf(HasSubstr("server.key"), HasSubstr("chmod 600")));
  }
  ASSERT_EQ(chmod((dir_ + "/server.key").c_str(), 0400), 0);
  EXPECT_TRUE(LoadKeys(dir_, PeerRole::kServer).ok());
}

TEST_F(Keys, WhoIsLetInIsTheOwnersToSay) {
  MakeAll();
  const std::string path = dir_ + "/authorized/worker-main.pub";
  ASSERT_EQ(chmod(path.c_str(), 0664), 0);
  EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kPermissionDenied),
              AllOf(HasSubstr("worker-main.pub"), HasSubstr("chmod 644")));
}

TEST_F(Keys, DirectoriesThatOthersCanWriteToAreRefused) {
  MakeAll();
  for (const std::string& path : {dir_, dir_ + "/authorized"}) {
    const mode_t before = ModeOf(path);
    for (const mode_t mode : {0775u, 0707u, 01777u}) {
      ASSERT_EQ(chmod(path.c_str(), mode), 0);
      EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kPermissionDenied),
                  AllOf(HasSubstr(path + ": mode"), HasSubstr(absl::StrFormat("%04o", mode)),
                        HasSubstr("chmod go-w")));
      const absl::Status made = MakeKeys(dir_, PeerRole::kServer, "other");
      EXPECT_EQ(made.code(), absl::StatusCode::kPermissionDenied) << made;
    }
    ASSERT_EQ(chmod(path.c_str(), before), 0);
  }
  EXPECT_TRUE(LoadKeys(dir_, PeerRole::kServer).ok());
  ASSERT_EQ(chmod(root_.c_str(), 01777), 0);
  EXPECT_TRUE(LoadKeys(dir_, PeerRole::kServer).ok()) << "what is above them is the user's to know";
}

TEST_F(Keys, WhatAnotherUserOwnsIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  MakeAll();
  constexpr uid_t kOther = 12345;
  for (const std::string name : {"", "/server.key", "/authorized", "/authorized/worker-main.pub"}) {
    const std::string path = dir_ + name;
    ASSERT_EQ(chown(path.c_str(), kOther, -1), 0);
    EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kPermissionDenied),
                AllOf(HasSubstr(path + ": mode"), HasSubstr("owner 12345"),
                      HasSubstr("allowed: mode"), HasSubstr("owner 0")));
    ASSERT_EQ(chown(path.c_str(), 0, -1), 0);
  }
  EXPECT_TRUE(LoadKeys(dir_, PeerRole::kServer).ok());
}

TEST_F(Keys, APipeIsNotWaitedFor) {
  MakeAll();
  ASSERT_EQ(mkfifo((dir_ + "/authorized/x.pub").c_str(), 0600), 0);
  EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("x.pub"), HasSubstr("regular file")));
}

TEST_F(Keys, NothingIsOverwritten) {
  MakeAll();
  const std::string before = Read(dir_ + "/server.key");
  const absl::Status made = MakeKeys(dir_, PeerRole::kServer, "other");
  EXPECT_EQ(made.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(
      std::string(made.message()),
      AllOf(HasSubstr("server.key"), HasSubstr("another directory"), Not(HasSubstr("--name"))));
  // A public key's name is of the caller's choosing.
  ASSERT_TRUE(fs::remove(dir_ + "/worker.key"));
  EXPECT_THAT(std::string(MakeKeys(dir_, PeerRole::kWorker, "main").message()),
              AllOf(HasSubstr("worker-main.pub"), HasSubstr("another --name")));
  EXPECT_FALSE(fs::exists(dir_ + "/worker.key"));
  EXPECT_EQ(Read(dir_ + "/server.key"), before);
  EXPECT_FALSE(fs::exists(dir_ + "/authorized/server-other.pub"));
}

TEST_F(Keys, NamesStayInTheirDirectory) {
  for (const std::string name : {"", "a/b", "..", ".x", "a b", std::string(65, 'a').c_str()}) {
    EXPECT_EQ(MakeKeys(dir_, PeerRole::kServer, name).code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_FALSE(fs::exists(dir_));
}

TEST_F(Keys, BrokenFilesAreNamedAndSecretsAreNot) {
  MakeAll();
  const std::string path = dir_ + "/server.key";
  const std::string good = Read(path), secret = LoadKeys(dir_, PeerRole::kServer)->secret_key;
  const std::string other = LoadKeys(dir_, PeerRole::kWorker)->secret_key;
  const std::string bad[] = {"",
                             absl::StrCat(good, "secret ", secret, "\n"),
                             absl::StrReplaceAll(good, {{"role server", "role worker"}}),
                             absl::StrReplaceAll(good, {{secret, secret.substr(1)}}),
                             absl::StrReplaceAll(good, {{secret, other}}),
                             absl::StrReplaceAll(good, {{"secret ", "sacred "}}),
                             absl::StrCat(good, std::string(5000, '\n'))};
  for (const std::string& text : bad) {
    std::ofstream(path) << text;
    EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kInvalidArgument),
                AllOf(HasSubstr("server.key"), Not(HasSubstr(secret)), Not(HasSubstr(other))));
  }
  fs::remove(path);
  EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kNotFound),
              HasSubstr("server.key"));
}

TEST_F(Keys, AKeyHasOneRole) {
  MakeAll();
  const std::string worker = Read(dir_ + "/authorized/worker-main.pub");
  std::ofstream(dir_ + "/authorized/server-x.pub")
      << absl::StrReplaceAll(worker, {{"role worker", "role server"}});
  EXPECT_THAT(ErrorOfLoading(PeerRole::kServer, absl::StatusCode::kInvalidArgument),
              HasSubstr("one role"));
}

TEST_F(Keys, OneOfSeveralSchedulersHasToBeNamed) {
  MakeAll();
  ASSERT_TRUE(MakeKeys(root_ + "/more", PeerRole::kScheduler, "second").ok());
  fs::copy(root_ + "/more/authorized/scheduler-second.pub", dir_ + "/authorized");
  const NodeKeys keys = *LoadKeys(dir_, PeerRole::kWorker);
  EXPECT_EQ(keys.TheKeyOf(PeerRole::kScheduler).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(keys.TheKeyOf(PeerRole::kWorker).ok());
}

pb::FrameHeader Of(pb::Kind kind) {
  pb::FrameHeader header;
  header.set_kind(kind);
  return header;
}

TEST(PeerRoles, SayWhatIsTheirs) {
  struct Case {
    pb::Kind kind;
    bool scheduler, server, worker;
  };
  for (const Case& c :
       {Case{pb::REGISTER, false, true, true},     Case{pb::HEARTBEAT, false, true, true},
        Case{pb::REPORT, false, true, true},       Case{pb::FINISHED, false, true, true},
        Case{pb::BACKUP_NEWS, false, true, false}, Case{pb::CONTROL, true, false, false},
        Case{pb::ASSIGN, true, false, false},      Case{pb::STOP, true, false, false},
        Case{pb::COUNT, true, false, false},       Case{pb::CHECKPOINT, true, false, false},
        Case{pb::PING, true, false, false},        Case{pb::PUSH, false, false, true},
        Case{pb::PULL, false, false, true},        Case{pb::PUSH_PULL, false, false, true},
        Case{pb::LEAVE, false, false, true},       Case{pb::NORM, false, true, false},
        Case{pb::REPLICATE, false, true, false},   Case{pb::SYNC, false, true, false},
        Case{pb::REPLY, true, true, true},         Case{pb::PARKED, true, true, true},
        Case{pb::FAILED, true, true, true}}) {
    const pb::FrameHeader header = Of(c.kind);
    EXPECT_TRUE(CheckPeerRole(PeerRole::kUnproven, header).ok());
    EXPECT_EQ(CheckPeerRole(PeerRole::kScheduler, header).ok(), c.scheduler) << c.kind;
    EXPECT_EQ(CheckPeerRole(PeerRole::kServer, header).ok(), c.server) << c.kind;
    EXPECT_EQ(CheckPeerRole(PeerRole::kWorker, header).ok(), c.worker) << c.kind;
  }
}

TEST(PeerRoles, JoinAsWhatTheirKeySays) {
  for (pb::Role said : {pb::SCHEDULER, pb::SERVER, pb::WORKER}) {
    pb::Hello hello;
    hello.set_role(said);
    pb::FrameHeader header = Of(pb::HELLO);
    header.set_body(hello.SerializeAsString());
    EXPECT_TRUE(CheckPeerRole(PeerRole::kUnproven, header).ok());
    EXPECT_FALSE(CheckPeerRole(PeerRole::kScheduler, header).ok());
    EXPECT_EQ(CheckPeerRole(PeerRole::kServer, header).ok(), said == pb::SERVER);
    EXPECT_EQ(CheckPeerRole(PeerRole::kWorker, header).ok(), said == pb::WORKER);
  }
  EXPECT_THAT(std::string(CheckPeerRole(PeerRole::kWorker, Of(pb::STOP)).message()),
              AllOf(HasSubstr("STOP"), HasSubstr("worker")));
}

}  // namespace
}  // namespace parley
