#include "ps/config/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Fixture : testing::Test {
  Fixture() : flags("prog run", "Runs it.") {
    flags.Argument("FILE", &file, "the experiment")
        .Repeated("set", &sets, "A=B", "changes a field")
        .Number("workers", &workers, 1, 1024, "worker processes")
        .Choice("transport", &transport, {"tcp", "ipc"}, "how frames travel")
        .Text("run-dir", &dir, "DIR", "where results go")
        .Switch("quiet", &quiet, "no progress");
  }
  std::string Error(std::vector<std::string> args) {
    absl::Status status = flags.Parse(args);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  }
  FlagSet flags;
  std::string file, transport = "tcp", dir;
  std::vector<std::string> sets;
  uint32_t workers = 2;
  bool quiet = false;
};
using Flags = Fixture;

TEST_F(Flags, BothSpellingsAndRepeats) {
  ASSERT_TRUE(flags
                  .Parse({"--set", "a.b=c", "e.textproto", "--set=d=e", "--workers", "4",
                          "--transport=ipc", "--quiet"})
                  .ok());
  EXPECT_EQ(file, "e.textproto");
  EXPECT_THAT(sets, ElementsAre("a.b=c", "d=e"));
  EXPECT_EQ(workers, 4);
  EXPECT_EQ(transport, "ipc");
  EXPECT_TRUE(quiet);
  EXPECT_FALSE(flags.help_wanted());
}

TEST_F(Flags, DoubleDashEndsFlags) {
  ASSERT_TRUE(flags.Parse({"--quiet=false", "--", "--odd"}).ok());
  EXPECT_EQ(file, "--odd");
  EXPECT_FALSE(quiet);
}

TEST_F(Flags, Errors) {
  EXPECT_EQ(Error({"f", "--worker=3"}),
            "prog run: unknown flag '--worker', did you mean '--workers'?; allowed: --set, "
            "--workers, --transport, --run-dir, --quiet, --help");
  EXPECT_THAT(Error({"f", "-w", "3"}), HasSubstr("unknown flag '--w'"));
  EXPECT_EQ(Error({"f", "--workers=0"}),
            "prog run: flag --workers: '0' does not fit; allowed: a whole number in 1..1024");
  EXPECT_THAT(Error({"f", "--workers=-1"}), HasSubstr("'-1' does not fit"));
  EXPECT_THAT(Error({"f", "--workers=99999999999"}), HasSubstr("does not fit"));
  EXPECT_EQ(Error({"f", "--workers"}),
            "prog run: flag --workers has no value; allowed: a whole number in 1..1024");
  EXPECT_THAT(Error({"f", "--run-dir", "--quiet"}), HasSubstr("--run-dir has no value"));
  EXPECT_EQ(Error({"f", "--transport=udp"}),
            "prog run: flag --transport: 'udp' does not fit; allowed: tcp, ipc");
  EXPECT_THAT(Error({"f", "--quiet=perhaps"}), HasSubstr("allowed: true, false"));
  EXPECT_EQ(Error({"f", "g"}), "prog run: surplus argument 'g'; allowed: 1 besides flags");
}

TEST_F(Flags, Missing) {
  EXPECT_EQ(Error({}), "prog run: FILE is missing: the experiment; see prog run --help");
  std::string endpoint;
  FlagSet required("parley-server", "Holds weights.");
  required.Required("scheduler", &endpoint, "ENDPOINT", "where the scheduler listens");
  EXPECT_THAT(std::string(required.Parse(std::vector<std::string>{}).message()),
              HasSubstr("flag --scheduler is missing"));
  EXPECT_FALSE(required.Parse({"--scheduler="}).ok());
}

TEST_F(Flags, Help) {
  ASSERT_TRUE(flags.Parse({"--help"}).ok());
  EXPECT_TRUE(flags.help_wanted());
  EXPECT_EQ(flags.Help(),
            "usage: prog run FILE [flags]\n\nRuns it.\n\n"
            "  FILE                 the experiment\n"
            "  --set A=B            changes a field; may be repeated\n"
            "  --workers N          worker processes (default 2)\n"
            "  --transport tcp|ipc  how frames travel (default tcp)\n"
            "  --run-dir DIR        where results go\n"
            "  --quiet              no progress\n"
            "  --help               this text\n");
}

TEST(FlagSet, AnArgumentThatMayBeLeftOut) {
  std::string file, more;
  FlagSet flags("tool", "Does things.");
  flags.Argument("FILE", &file, "what to read").OptionalArgument("MORE", &more, "what else");
  EXPECT_TRUE(flags.Parse({"a"}).ok());
  EXPECT_EQ(file + "," + more, "a,");
  EXPECT_TRUE(flags.Parse({"a", "b"}).ok());
  EXPECT_EQ(file + "," + more, "a,b");
  EXPECT_FALSE(flags.Parse({"a", "b", "c"}).ok());
  EXPECT_FALSE(flags.Parse(std::vector<std::string>{}).ok());
  EXPECT_THAT(flags.Help(), HasSubstr("usage: tool FILE [MORE] [flags]"));
}

}  // namespace
}  // namespace parley
