#include "ps/config/experiment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "ps/config/suggest.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Line 1 is the name, 2 the data, 3 the first layer, 4 the last, 5 the optimizer.
constexpr char kGood[] = R"(name: "tiny"
data { synthetic { width: 8 } }
model { layer { linear { out: 4 } }
        layer { log_softmax {} } }
optimizer { sgd {} lr: 0.1 }
)";

std::vector<std::string> Errors(const std::string& text, std::vector<std::string> overrides = {}) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(text, "f", overrides);
  if (loaded.ok()) return {};
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  return absl::StrSplit(std::string(loaded.status().message()), '\n');
}

// kGood with one line more, which is line 6.
std::vector<std::string> ErrorsWith(const std::string& line) {
  return Errors(std::string(kGood) + line + "\n");
}

std::vector<std::string> ErrorsReplacing(const std::string& from, const std::string& to) {
  const std::string text = absl::StrReplaceAll(kGood, {{from, to}});
  EXPECT_NE(text, kGood) << from;
  return Errors(text);
}

TEST(LoadExperiment, ResolvesEveryDefault) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(kGood, "f");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(loaded->has_seed());
  EXPECT_EQ(loaded->seed(), 1);
  EXPECT_TRUE(loaded->cluster().has_servers());
  EXPECT_EQ(loaded->cluster().partition_kib(), 256);
  EXPECT_TRUE(loaded->training().has_max_steps());
  EXPECT_TRUE(loaded->consistency().has_mode());
  EXPECT_TRUE(loaded->optimizer().has_clip_norm());
  EXPECT_TRUE(loaded->optimizer().sgd().has_nesterov());
  EXPECT_TRUE(loaded->optimizer().schedule().has_constant());
  EXPECT_TRUE(loaded->optimizer().schedule().has_warmup_steps());
  EXPECT_EQ(loaded->data().synthetic().classes(), 4);
  EXPECT_TRUE(loaded->cluster().has_replicas());
  EXPECT_EQ(loaded->cluster().worker_loss(), pb::Cluster::REPLACE);
  EXPECT_TRUE(loaded->checkpoints().has_every_steps());
  EXPECT_EQ(loaded->checkpoints().keep(), 3);
  EXPECT_FALSE(loaded->checkpoints().has_directory());
  // A oneof is not filled with what was not chosen.
  EXPECT_FALSE(loaded->data().has_idx());
  EXPECT_EQ(loaded->model().layer(0).name(), "fc1");
  EXPECT_EQ(loaded->model().layer(1).name(), "log_softmax1");
}

TEST(LoadExperiment, ResolvedTextReadsBackTheSame) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(kGood, "f");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::string text = ExperimentToText(*loaded);
  absl::StatusOr<pb::Experiment> again = LoadExperimentText(text, "resolved");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), loaded->SerializeAsString());
  EXPECT_EQ(ExperimentToText(*again), text);
}

TEST(LoadExperiment, ReadsTheExperimentsOfTheProject) {
  for (const char* name : {"fashion_convnet", "fashion_mlp", "fashion_softmax", "tiny_synthetic"}) {
    absl::StatusOr<pb::Experiment> loaded =
        LoadExperiment(absl::StrCat("experiments/", name, ".textproto"));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->name(), name);
  }
}

TEST(LoadExperiment, MissingFile) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperiment("no/such/file.textproto");
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(loaded.status().message()),
              HasSubstr("no/such/file.textproto: cannot be opened"));
  EXPECT_EQ(LoadExperiment("experiments").ok(), false);  // a directory
}

TEST(LoadExperiment, RefusesAFileThatIsTooLong) {
  const std::string path = testing::TempDir() + "/long.textproto";
  std::ofstream(path) << std::string(3 << 20, '#');
  EXPECT_THAT(std::string(LoadExperiment(path).status().message()), HasSubstr("longer than"));
}

TEST(ParseErrors, UnknownFieldsAreAllFoundWithSuggestions) {
  EXPECT_THAT(ErrorsWith("clutser { servers: 2 } cluster { workerz: 3 }"),
              ElementsAre("f:6:1: field 'clutser': unknown field of Experiment, did you mean "
                          "'cluster'?; allowed: name, seed, cluster, data, model, training, "
                          "optimizer, consistency, compression, checkpoints, compute",
                          "f:6:34: field 'cluster.workerz': unknown field of Cluster, did you mean "
                          "'workers'?; allowed: servers, workers, shards_per_server, transport, "
                          "partition_kib, max_request_kib, heartbeat_ms, node_timeout_ms, "
                          "start_timeout_ms, progress_timeout_ms, compute_threads, push_pull, "
                          "replicas, replica_check_steps, worker_loss, max_restarts, "
                          "scheduler_timeout_ms, slow_worker_factor, insecure"));
  EXPECT_THAT(ErrorsReplacing("out: 4", "outputs: 4"),
              ElementsAre("f:3:26: field 'model.layer[0].linear.outputs': unknown field of Linear; "
                          "allowed: out"));
  EXPECT_THAT(ErrorsReplacing("log_softmax {}", "log_softmax { dim: 1 }"),
              ElementsAre("f:4:31: field 'model.layer[1].log_softmax.dim': unknown field of "
                          "LogSoftmax; allowed: nothing, it has no fields"));
}

TEST(ParseErrors, WrongTypes) {
  EXPECT_THAT(ErrorsWith("cluster {\n  servers: two\n}"),
              ElementsAre("f:7:3: field 'cluster.servers': value two does not fit; "
                          "allowed: 1..1024"));
  EXPECT_THAT(ErrorsWith("cluster { servers: -1 }"),
              ElementsAre("f:6:11: field 'cluster.servers': value -1 does not fit; "
                          "allowed: 1..1024"));
  EXPECT_THAT(ErrorsWith("seed: 1.5"),
              ElementsAre("f:6:1: field 'seed': value 1.5 does not fit; allowed: a whole number, "
                          "0..18446744073709551615"));
  EXPECT_THAT(ErrorsWith("training { evaluate: maybe }"),
              ElementsAre("f:6:12: field 'training.evaluate': value maybe does not fit; "
                          "allowed: true, false"));
  EXPECT_THAT(ErrorsReplacing("lr: 0.1", "lr: \"fast\""),
              ElementsAre("f:5:20: field 'optimizer.lr': value \"fast\" does not fit; "
                          "allowed: > 0, finite"));
  EXPECT_THAT(ErrorsReplacing("\"tiny\"", "tiny"),
              ElementsAre("f:1:1: field 'name': value tiny does not fit; "
                          "allowed: a text in quotes"));
  EXPECT_THAT(ErrorsWith("cluster { servers: 99999999999 }"),
              ElementsAre("f:6:11: field 'cluster.servers': value 99999999999 does not fit; "
                          "allowed: 1..1024"));
}

TEST(ParseErrors, EnumsListTheirValues) {
  EXPECT_THAT(ErrorsWith("consistency { mode: BPS }"),
              ElementsAre("f:6:15: field 'consistency.mode': 'BPS' is not one of its values, did "
                          "you mean 'BSP'?; allowed: BSP, SSP, ASP"));
  EXPECT_THAT(ErrorsWith("cluster { transport: ICP\n servers: 2 }"),
              ElementsAre("f:6:11: field 'cluster.transport': 'ICP' is not one of its values, did "
                          "you mean 'TCP'?; allowed: TCP, IPC, SHM, AUTO"));
}

TEST(ParseErrors, TwiceAndOneofs) {
  EXPECT_THAT(ErrorsWith("seed: 1 seed: 2"),
              ElementsAre("f:6:9: field 'seed': given twice; allowed: once"));
  EXPECT_THAT(ErrorsReplacing("sgd {}", "sgd {} adam {}"),
              ElementsAre("f:5:20: field 'optimizer.adam': a second rule; allowed: only one of "
                          "sgd, adagrad, adadelta, rmsprop, adam, adamw, ftrl, row_adagrad"));
}

// The parser quotes what it read: an experiment can hold the parser's own words, at fields they do
// not fit.
TEST(ParseErrors, TheParsersOwnWordsInTheText) {
  for (const char* words : {"enumeration value", "another member of oneof", "has no field named",
                            "is specified multiple times", "out of range", "Expected"}) {
    for (const char* field : {"seed: 7", "cluster", "compression"}) {
      const std::string name = std::string(field).substr(0, std::string(field).find(':'));
      EXPECT_THAT(
          ErrorsWith(absl::StrCat(field, " \"", words, "\"")),
          ElementsAre(testing::StartsWith(absl::StrCat("f:6:1: field '", name, "': expected "))))
          << words;
    }
    EXPECT_THAT(Errors(absl::StrCat("\"", words, "\"")),
                ElementsAre(HasSubstr(absl::StrCat(", got: \"", words, "\"; allowed: name:"))));
  }
  EXPECT_THAT(ErrorsWith("seed: 7 \"enumeration value\""),
              ElementsAre("f:6:1: field 'seed': expected identifier, got: \"enumeration value\"; "
                          "allowed: name: value, or name { ... }"));
}

TEST(ParseErrors, Syntax) {
  EXPECT_THAT(Errors("name: \"x\" data {"), ElementsAre(HasSubstr("f:1:11: field 'data': ")));
  EXPECT_THAT(Errors("}"), ElementsAre(HasSubstr("f:1:1: ")));
  EXPECT_THAT(Errors("name: \"unfinished\n"),
              ElementsAre(HasSubstr("f:1:1: field 'name': string literals")));
  EXPECT_FALSE(Errors(std::string("\0\xff\x01 {{{", 7)).empty());
  EXPECT_FALSE(Errors("").empty());
}

// One field that cannot be, and the line it must lead to.
struct BadValue {
  const char* override_;
  const char* error;
};

class ImpossibleValue : public testing::TestWithParam<BadValue> {};

TEST_P(ImpossibleValue, IsRefused) {
  EXPECT_THAT(
      Errors(kGood, {GetParam().override_}),
      ElementsAre(absl::StrCat("--set ", GetParam().override_, ": field '", GetParam().error)));
}

INSTANTIATE_TEST_SUITE_P(
    All, ImpossibleValue,
    testing::Values(
        BadValue{"cluster.servers=0", "cluster.servers': 0 is out of range; allowed: 1..1024"},
        BadValue{"cluster.workers=1025",
                 "cluster.workers': 1025 is out of range; allowed: 1..1024"},
        BadValue{"cluster.shards_per_server=65",
                 "cluster.shards_per_server': 65 is out of range; allowed: 1..64"},
        BadValue{"cluster.partition_kib=131072",
                 "cluster.partition_kib': 131072 is out of range; allowed: 4..65536"},
        BadValue{"cluster.partition_kib=6",
                 "cluster.partition_kib': 6 is no multiple of 4; allowed: a multiple of 4 in "
                 "4..65536"},
        BadValue{"cluster.node_timeout_ms=1000",
                 "cluster.node_timeout_ms': 1000 is less than 3 heartbeats of 500 ms; allowed: >= "
                 "1500"},
        BadValue{"cluster.compute_threads=0",
                 "cluster.compute_threads': 0 is out of range; allowed: 1..256"},
        BadValue{"cluster.replicas=4", "cluster.replicas': 4 is out of range; allowed: 0..3"},
        BadValue{"cluster.max_restarts=2000000",
                 "cluster.max_restarts': 2000000 is out of range; allowed: 0..1000000"},
        BadValue{"cluster.scheduler_timeout_ms=4000",
                 "cluster.scheduler_timeout_ms': 4000 is less than node_timeout_ms 5000; allowed: "
                 ">= 5000, cluster.node_timeout_ms"},
        BadValue{"cluster.slow_worker_factor=0.5",
                 "cluster.slow_worker_factor': 0.5 would take work from workers as fast as the "
                 "others; allowed: 0 for off, or > 1"},
        BadValue{"cluster.slow_worker_factor=1",
                 "cluster.slow_worker_factor': 1 would take work from workers as fast as the "
                 "others; allowed: 0 for off, or > 1"},
        BadValue{"cluster.slow_worker_factor=-1",
                 "cluster.slow_worker_factor': -1 is out of range; allowed: >= 0, finite"},
        BadValue{"cluster.worker_loss=RETRY",
                 "cluster.worker_loss': value RETRY does not fit; allowed: REPLACE, SKIP, FAIL"},
        BadValue{"checkpoints.keep=0", "checkpoints.keep': 0 is out of range; allowed: 1..1000000"},
        BadValue{"checkpoints.full_every=0",
                 "checkpoints.full_every': 0 is out of range; allowed: 1..1000000"},
        BadValue{"checkpoints.every_minutes=1000000",
                 "checkpoints.every_minutes': 1000000 is out of range; allowed: 0..525600"},
        BadValue{"name=Upper",
                 "name': 'Upper' cannot name a directory and a job; allowed: 1 to 64 "
                 "of the characters a-z 0-9 _ -"},
        BadValue{"name=../x",
                 "name': '../x' cannot name a directory and a job; allowed: 1 to 64 "
                 "of the characters a-z 0-9 _ -"},
        BadValue{"data.std=0", "data.std': 0 is out of range; allowed: > 0, finite"},
        BadValue{"data.mean=nan", "data.mean': nan is out of range; allowed: any finite number"},
        BadValue{"data.synthetic.classes=1",
                 "data.synthetic.classes': 1 is out of range; allowed: 2..65536"},
        BadValue{
            "data.idx.test_labels=",
            "data.idx.test_labels': is empty; allowed: the name of an IDX file, plain or gzip"},
        BadValue{"training.epochs=0", "training.epochs': 0 is out of range; allowed: 1..1000000"},
        BadValue{"training.global_batch=0",
                 "training.global_batch': 0 is out of range; allowed: 1..1048576"},
        BadValue{"optimizer.lr=0", "optimizer.lr': 0 is out of range; allowed: > 0, finite"},
        BadValue{"optimizer.lr=-1", "optimizer.lr': -1 is out of range; allowed: > 0, finite"},
        BadValue{"optimizer.lr=inf", "optimizer.lr': inf is out of range; allowed: > 0, finite"},
        BadValue{"optimizer.weight_decay=-0.1",
                 "optimizer.weight_decay': -0.1 is out of range; allowed: >= 0, finite"},
        BadValue{"optimizer.adam.beta2=1",
                 "optimizer.adam.beta2': 1 is out of range; allowed: [0, 1)"},
        BadValue{"optimizer.adadelta.rho=1.5",
                 "optimizer.adadelta.rho': 1.5 is out of range; allowed: [0, 1)"},
        BadValue{"optimizer.sgd.nesterov=true",
                 "optimizer.sgd.nesterov': true without momentum, or with dampening; allowed: true "
                 "only with momentum > 0 and dampening 0"},
        BadValue{"model.layer[0].linear.out=0",
                 "model.layer[0].linear.out': 0 is out of range; allowed: 1..1048576"},
        BadValue{"model.layer[0].dropout.p=1",
                 "model.layer[0].dropout.p': 1 is out of range; allowed: [0, 1)"},
        BadValue{"consistency.staleness=2",
                 "consistency.staleness': 2 with mode BSP; allowed: 0, or mode SSP"},
        BadValue{"consistency.backup_workers=2",
                 "consistency.backup_workers': 2 of 2 workers leaves none to wait for; allowed: "
                 "0..1, less than cluster.workers"}));

TEST(Validate, ReplicasNeedServersOfTheirOwn) {
  EXPECT_THAT(
      Errors(kGood, {"cluster.replicas=2"}),
      ElementsAre("--set cluster.replicas=2: field 'cluster.replicas': 2 of 2 servers: each "
                  "copy of a partition needs a server of its own; allowed: 0..1, less than "
                  "cluster.servers"));
  EXPECT_THAT(
      Errors(kGood, {"cluster.replicas=1", "cluster.servers=1"}),
      ElementsAre("--set cluster.replicas=1: field 'cluster.replicas': 1 of 1 servers: each "
                  "copy of a partition needs a server of its own; allowed: 0, or more "
                  "cluster.servers"));
  EXPECT_THAT(Errors(kGood, {"cluster.replicas=1"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {"cluster.replicas=3", "cluster.servers=4"}), ElementsAre());
  // Nothing to replicate, nothing to complain of.
  EXPECT_THAT(Errors(kGood, {"cluster.replicas=0", "cluster.servers=1"}), ElementsAre());
}

TEST(Validate, ReplicasClipByTheNormUnderBspOnly) {
  const std::string replicas = "cluster.replicas=1", clip = "optimizer.clip_norm=1";
  for (const char* mode : {"SSP", "ASP"}) {
    EXPECT_THAT(
        Errors(kGood, {replicas, clip, absl::StrCat("consistency.mode=", mode)}),
        ElementsAre(absl::StrCat("--set cluster.replicas=1: field 'cluster.replicas': 1 with "
                                 "optimizer.clip_norm and mode ",
                                 mode, "; allowed: 0, or optimizer.clip_norm 0, or mode BSP")));
  }
  EXPECT_THAT(Errors(kGood, {replicas, clip}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {replicas, "consistency.mode=ASP"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {clip, "consistency.mode=ASP"}), ElementsAre());
}

TEST(LoadExperiment, NodesNeverGiveUpTheSchedulerBeforeItGivesThemUp) {
  const auto timeout = [](std::vector<std::string> sets) {
    absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(kGood, "f", sets);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded.ok() ? loaded->cluster().scheduler_timeout_ms() : 0;
  };
  EXPECT_EQ(timeout({}), 60000);
  EXPECT_EQ(timeout({"cluster.node_timeout_ms=600000"}), 600000);
  EXPECT_EQ(timeout({"cluster.scheduler_timeout_ms=5000"}), 5000);
}

TEST(Validate, PointsAtTheLine) {
  EXPECT_THAT(ErrorsWith("cluster {\n  servers: 0\n  workers: 5000\n}"),
              ElementsAre("f:7:3: field 'cluster.servers': 0 is out of range; allowed: 1..1024",
                          "f:8:3: field 'cluster.workers': 5000 is out of range; allowed: "
                          "1..1024"));
  // A missing field: the nearest that is there.
  EXPECT_THAT(ErrorsReplacing("linear { out: 4 }", "linear {}"),
              ElementsAre("f:3:17: field 'model.layer[0].linear.out': is missing; allowed: "
                          "1..1048576"));
}

TEST(Validate, SeveralProblemsOfOneOverride) {
  EXPECT_THAT(Errors(kGood, {"optimizer.schedule.step.gamma=2"}),
              ElementsAre("f:5:1: field 'optimizer.schedule.step.every': is missing; allowed: "
                          "1..1000000000",
                          "--set optimizer.schedule.step.gamma=2: field "
                          "'optimizer.schedule.step.gamma': 2 is out of range; allowed: (0, 1]"));
}

TEST(Validate, MissingParts) {
  EXPECT_THAT(
      Errors("seed: 3"),
      ElementsAre("f: field 'name': is missing; allowed: 1 to 64 of the characters a-z 0-9 _ -",
                  "f: field 'data': is missing; allowed: data { S { ... } } with S one of idx, "
                  "synthetic, click_log, synthetic_clicks",
                  "f: field 'model': is missing; allowed: model { layer { linear { out: 10 } } "
                  "layer { log_softmax {} } } or the like",
                  "f: field 'optimizer': is missing; allowed: one of sgd, adagrad, adadelta, "
                  "rmsprop, adam, adamw, as in optimizer { sgd {} }"));
}

TEST(Validate, Layers) {
  EXPECT_THAT(ErrorsReplacing("log_softmax {}", "relu {}"),
              ElementsAre("f:4:9: field 'model.layer[1]': is the last layer and no log_softmax; "
                          "allowed: log_softmax {} as the last layer"));
  EXPECT_THAT(ErrorsReplacing("linear { out: 4 }", "log_softmax {}"),
              ElementsAre("f:3:9: field 'model.layer[0]': is a log_softmax ahead of other layers; "
                          "allowed: log_softmax {} as the last layer only"));
  EXPECT_THAT(ErrorsReplacing("linear { out: 4 }", "name: \"log_softmax1\" linear { out: 4 }"),
              ElementsAre(HasSubstr("'log_softmax1' names two layers")));
  EXPECT_THAT(ErrorsReplacing("linear { out: 4 }", "name: \"odd\""),
              ElementsAre(HasSubstr("field 'model.layer[0]': has no kind; allowed: one of")));
}

TEST(Validate, CombinationsThatMustWork) {
  EXPECT_THAT(Errors(kGood, {"consistency.mode=SSP", "consistency.staleness=3"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {"consistency.backup_workers=1"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {"data.sharding=BY_WORKER"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {"training.global_batch=1"}), ElementsAre());
  EXPECT_THAT(Errors(kGood, {"optimizer.schedule={ cosine { steps: 5 } warmup_steps: 2 }"}),
              ElementsAre());
}

TEST(Overrides, SetNestedRepeatedAndOneof) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(
      kGood, "f",
      {"cluster.workers=4", "model.layer[0].linear.out=5", "consistency.mode=ASP",
       "optimizer.adam={beta1: 0.5}", "data.idx.directory=/d", "name=other",
       "model.layer[2].log_softmax={}", "model.layer[1].relu={}"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->cluster().workers(), 4);
  EXPECT_EQ(loaded->model().layer(0).linear().out(), 5);
  EXPECT_EQ(loaded->consistency().mode(), pb::Consistency::ASP);
  EXPECT_TRUE(loaded->optimizer().has_adam());
  EXPECT_FALSE(loaded->optimizer().has_sgd());
  EXPECT_EQ(loaded->optimizer().adam().beta1(), 0.5f);
  EXPECT_EQ(loaded->data().idx().directory(), "/d");
  EXPECT_EQ(loaded->name(), "other");
  ASSERT_EQ(loaded->model().layer_size(), 3);
  EXPECT_TRUE(loaded->model().layer(1).has_relu());
  EXPECT_TRUE(loaded->model().layer(2).has_log_softmax());
}

TEST(Overrides, LaterOnesWin) {
  absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(kGood, "f", {"seed=5", "seed=6"});
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->seed(), 6);
}

TEST(Overrides, Errors) {
  const auto one = [](const std::string& set) {
    const std::vector<std::string> errors = Errors(kGood, {set});
    return errors.size() == 1 ? errors[0] : absl::StrCat(errors.size(), " errors");
  };
  EXPECT_EQ(one("workers"), "--set workers: no '='; allowed: path=value, as in cluster.workers=4");
  EXPECT_EQ(one("=4"), "--set =4: no '='; allowed: path=value, as in cluster.workers=4");
  EXPECT_THAT(one("cluster.worker=4"),
              HasSubstr("--set cluster.worker=4: field 'cluster.worker': unknown field of Cluster, "
                        "did you mean 'workers'?; allowed: servers, workers,"));
  EXPECT_EQ(one("cluster.workers=many"),
            "--set cluster.workers=many: field 'cluster.workers': value many does not fit; "
            "allowed: 1..1024");
  EXPECT_EQ(one("cluster.workers=4 servers: 9"),
            "--set cluster.workers=4 servers: 9: field 'cluster.workers': value 4 servers: 9 does "
            "not fit; allowed: 1..1024");
  EXPECT_EQ(one("consistency.mode=SPP"),
            "--set consistency.mode=SPP: field 'consistency.mode': value SPP does not fit, did you "
            "mean 'SSP'?; allowed: BSP, SSP, ASP");
  EXPECT_EQ(one("cluster.workers.x=1"),
            "--set cluster.workers.x=1: field 'cluster.workers': has no fields of its own; "
            "allowed: cluster.workers=VALUE");
  EXPECT_EQ(one("model.layer.relu={}"),
            "--set model.layer.relu={}: field 'model.layer': is repeated, so it needs an index; "
            "allowed: layer[0]");
  EXPECT_EQ(one("cluster[0].workers=1"),
            "--set cluster[0].workers=1: field 'cluster[0]': is not repeated, so it takes no "
            "index; allowed: cluster");
  EXPECT_EQ(one("model.layer[7].relu={}"),
            "--set model.layer[7].relu={}: field 'model.layer[7]': no such element; allowed: "
            "layer[0]..layer[2], the last is new");
  EXPECT_THAT(one("optimizer.adam=yes"), HasSubstr("value yes does not fit; allowed: { ... } with "
                                                   "beta1, beta2, eps, amsgrad"));
  EXPECT_THAT(one("optimizer.adam={beta3: 1}"), HasSubstr("no field named \"beta3\""));
  EXPECT_THAT(one("model.layer[x].relu={}"), HasSubstr("no such element"));
}

TEST(Overrides, AllWrongOnesAreReported) {
  EXPECT_THAT(Errors(kGood, {"sead=1", "cluster.servers=x"}),
              ElementsAre(HasSubstr("did you mean 'seed'?"), HasSubstr("value x does not fit")));
}

TEST(Suggest, Distances) {
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("mode", "moed"), 1);
  EXPECT_EQ(NearestName("batch", {"epochs", "global_batch"}), "global_batch");
  EXPECT_EQ(NearestName("zzzz", {"epochs", "global_batch"}), "");
}

}  // namespace
}  // namespace parley
