#include "ps/config/validate_tables.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/codec/payload_codec.h"
#include "ps/config/copied_partitions.h"
#include "ps/config/suggest.h"

namespace parley {
namespace {

// Keys of one synthetic data set: 8 GiB.
constexpr double kMaxSyntheticKeys = 1 << 30;

class Finder {
 public:
  Finder(const pb::Experiment& experiment, std::vector<ConfigProblem>* problems)
      : experiment_(experiment), problems_(problems) {}

  void Embeddings() {
    const pb::Model& model = experiment_.model();
    for (int i = 0; i < model.layer_size(); ++i) {
      if (!model.layer(i).has_embedding()) continue;
      const std::string path = absl::StrCat("model.layer[", i, "]");
      if (i > 0) {
        Add(path, "is an embedding behind other layers", "embedding {...} as the first layer only");
      } else {
        Embedding(path + ".embedding", model.layer(i).embedding());
      }
    }
    Data();
    switch (experiment_.optimizer().rule_case()) {
      case pb::Optimizer::kFtrl:
        return DenseRule("ftrl");
      case pb::Optimizer::kRowAdagrad:
        return DenseRule("row_adagrad");
      default:
        return;
    }
  }

  void Compressions() {
    const pb::Compression& dense = experiment_.compression();
    const bool no_push_is_lost = experiment_.consistency().backup_workers() == 0;
    const CodecUse push = {
        .allows_residual = no_push_is_lost,
        .otherwise =
            "with consistency.backup_workers what a push that comes too late brings is "
            "lost, though the worker believes it arrived",
        .remedy = ", or backup_workers 0"};
    Codec("compression.push", dense.push(), push);
    // Backup workers do no harm here: who was passed over and holds an old version is sent the
    // weights whole.
    Codec("compression.pull", dense.pull(), DensePulls());
    if (!HasEmbedding()) return;
    const std::string path = "model.layer[0].embedding.compression";
    const pb::Compression& sparse = experiment_.model().layer(0).embedding().compression();
    Codec(path + ".push", sparse.push(), push);
    Codec(path + ".pull", sparse.pull(), {.otherwise = "of rows, changes cannot be sent"});
  }

 private:
  struct CodecUse {
    bool allows_residual = false;
    std::string otherwise = "", remedy = "";  // why not, and what else would help
  };

  CodecUse DensePulls() const {
    const pb::Consistency& consistency = experiment_.consistency();
    if (consistency.mode() != pb::Consistency::BSP) {
      return {
          .otherwise = absl::StrCat("with mode ", pb::Consistency::Mode_Name(consistency.mode()),
                                    " readers hold no version that changes could be added to"),
          .remedy = ", or mode BSP"};
    }
    if (experiment_.cluster().replicas() > 0 && ChangesForbidCopies(experiment_)) {
      return {.otherwise =
                  "with cluster.replicas and consistency.backup_workers a reader may hold a "
                  "version that a failover makes another, to which changes do not apply",
              .remedy = ", or backup_workers 0, or replicas 0"};
    }
    return {.allows_residual = true};
  }

  void Add(std::string path, std::string what, std::string allowed) {
    problems_->push_back({std::move(path), std::move(what), std::move(allowed)});
  }

  bool HasEmbedding() const {
    const pb::Model& model = experiment_.model();
    return model.layer_size() > 0 && model.layer(0).has_embedding();
  }
  bool HasKeys() const {
    const pb::Data& data = experiment_.data();
    return data.has_click_log() || data.has_synthetic_clicks();
  }

  void Embedding(const std::string& path, const pb::Embedding& embedding) {
    const uint32_t partitions = embedding.partitions();
    if ((partitions & (partitions - 1)) != 0) {
      Add(path + ".partitions", absl::StrCat(partitions, " is no power of two"),
          "a power of two in 1..65536");
    }
    if (!embedding.has_optimizer()) {
      return NoNorm("optimizer", experiment_.optimizer());
    }
    const pb::Optimizer& optimizer = embedding.optimizer();
    NoNorm("optimizer", experiment_.optimizer());
    NoNorm(path + ".optimizer", optimizer);
    if (optimizer.rule_case() == pb::Optimizer::RULE_NOT_SET) {
      Add(path + ".optimizer", "has no rule",
          "one of sgd, adagrad, adadelta, rmsprop, adam, adamw, ftrl, row_adagrad");
    }
    const pb::Sgd& sgd = optimizer.sgd();
    if (sgd.nesterov() && (sgd.momentum() == 0 || sgd.dampening() != 0)) {
      Add(path + ".optimizer.sgd.nesterov", "true without momentum, or with dampening",
          "true only with momentum > 0 and dampening 0");
    }
  }

  void NoNorm(const std::string& path, const pb::Optimizer& optimizer) {
    if (optimizer.clip_norm() == 0) return;
    Add(path + ".clip_norm",
        absl::StrCat(optimizer.clip_norm(),
                     " with an embedding, whose rows take part in no norm over all servers"),
        "0, or clip_value in its place");
  }

  void DenseRule(const std::string& rule) {
    Add("optimizer", absl::StrCat(rule, " is for rows of sparse tables"),
        absl::StrCat("one of sgd, adagrad, adadelta, rmsprop, adam, adamw here; ", rule,
                     " in embedding { optimizer { ... } }"));
  }

  void Data() {
    const pb::Data& data = experiment_.data();
    if (data.has_click_log() && data.click_log().train().empty()) {
      Add("data.click_log.train", data.click_log().has_train() ? "is empty" : "is missing",
          "the name of a text file, plain or gzip");
    }
    const pb::SyntheticClicks& clicks = data.synthetic_clicks();
    const double keys =
        1.0 * clicks.fields() * (1.0 * clicks.train_samples() + clicks.test_samples());
    if (data.has_synthetic_clicks() && keys > kMaxSyntheticKeys) {
      Add("data.synthetic_clicks",
          absl::StrFormat("%.0f keys in samples x fields are too many", keys),
          absl::StrFormat("up to %.0f", kMaxSyntheticKeys));
    }
    if (experiment_.model().layer_size() == 0 || data.source_case() == pb::Data::SOURCE_NOT_SET) {
      return;  // said elsewhere
    }
    if (HasKeys() && !HasEmbedding()) {
      Add("model.layer[0]", "is no embedding, and the data are keys",
          "embedding {...} as the first layer, or other data");
    } else if (!HasKeys() && HasEmbedding()) {
      Add("model.layer[0]", "is an embedding, and the data have no keys",
          "data { click_log {...} } or data { synthetic_clicks {...} }");
    }
  }

  void Codec(const std::string& path, const std::string& name, const CodecUse& use) {
    const std::vector<std::string> names = PayloadCodec::Names();
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return Add(path, absl::StrCat("'", name, "' is no codec", DidYouMean(name, names)),
                 absl::StrJoin(names, ", "));
    }
    if (!KeepsResidual(name)) return;
    if (use.allows_residual) return;
    Add(path, absl::StrCat("'", name, "' keeps what it loses, and ", use.otherwise),
        absl::StrCat(absl::StrJoin(Stateless(names), ", "), use.remedy));
  }

  static std::vector<std::string> Stateless(std::vector<std::string> names) {
    std::erase_if(names, KeepsResidual);
    return names;
  }

  const pb::Experiment& experiment_;
  std::vector<ConfigProblem>* const problems_;
};

}  // namespace

void FindEmbeddingProblems(const pb::Experiment& experiment, std::vector<ConfigProblem>* problems) {
  Finder(experiment, problems).Embeddings();
}

void FindCompressionProblems(const pb::Experiment& experiment,
                             std::vector<ConfigProblem>* problems) {
  Finder(experiment, problems).Compressions();
}

}  // namespace parley
