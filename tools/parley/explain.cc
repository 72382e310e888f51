#include "tools/parley/explain.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/base/dense_layout.h"
#include "ps/table/optimizer.h"
#include "scheduler/report/terminal_report.h"
#include "worker/data/sampler.h"
#include "worker/workload.h"

namespace parley {
namespace {

// Lists longer than this are cut: an explanation is one screen.
constexpr size_t kMostListed = 12;

Sampler MakeSampler(const pb::Experiment& experiment, uint64_t samples, uint32_t part) {
  Sampler::Options options;
  options.sharding = experiment.data().sharding();
  options.samples = samples;
  options.global_batch = experiment.training().global_batch();
  options.part = part;
  options.parts = experiment.cluster().workers();
  options.seed = experiment.seed();
  return Sampler(options);
}

void ExplainSteps(const pb::Experiment& experiment, Explanation* out) {
  for (uint32_t part = 0; part < experiment.cluster().workers(); ++part) {
    const Sampler sampler = MakeSampler(experiment, out->train_samples, part);
    out->ticks_per_epoch = std::max(out->ticks_per_epoch, sampler.ticks_per_epoch());
    out->rows_of_a_step.push_back(sampler.ticks_per_epoch() > 0 ? sampler.rows(0) : 0);
  }
  for (uint32_t part = 0; part < experiment.cluster().workers() && out->ticks_per_epoch > 0;
       ++part) {
    const Sampler sampler = MakeSampler(experiment, out->train_samples, part);
    // Under BY_WORKER some end earlier and have no rows in the last step.
    if (sampler.ticks_per_epoch() == out->ticks_per_epoch) {
      out->rows_of_last_step += sampler.rows(out->ticks_per_epoch - 1);
    }
  }
  out->steps = out->ticks_per_epoch * experiment.training().epochs();
  const uint64_t limit = experiment.training().max_steps();
  if (limit > 0) out->steps = std::min(out->steps, limit);
}

// As the scheduler deals them out: partition p to shard p modulo the shards.
void ExplainPartitions(const pb::Experiment& experiment, const DenseLayout& layout,
                       Explanation* out) {
  const pb::Cluster& cluster = experiment.cluster();
  for (uint32_t server = 0; server < cluster.servers(); ++server) {
    for (uint32_t shard = 0; shard < cluster.shards_per_server(); ++shard) {
      out->shards.push_back({server, shard, {}, 0});
    }
  }
  out->partitions = layout.partitions();
  for (uint32_t p = 0; p < out->partitions; ++p) {
    Explanation::Shard& owner = out->shards[p % out->shards.size()];
    owner.partitions.push_back(p);
    owner.elements += layout.partition(p).size();
  }
}

std::string Bytes(double bytes) {
  const char* unit = "B";
  for (const char* larger : {"KiB", "MiB", "GiB"}) {
    if (bytes < 1024) break;
    bytes /= 1024;
    unit = larger;
  }
  return absl::StrFormat(bytes == static_cast<int64_t>(bytes) ? "%.0f %s" : "%.1f %s", bytes, unit);
}

std::string Flops(double flops) {
  if (flops >= 1e9) return absl::StrFormat("%.2f GFLOP", flops / 1e9);
  return absl::StrFormat("%.3g MFLOP", flops / 1e6);
}

// "0, 1, 2 ... 19" for long lists.
template <typename T>
std::string Abridged(const std::vector<T>& values) {
  if (values.empty()) return "none";
  if (values.size() <= kMostListed) return absl::StrJoin(values, ", ");
  return absl::StrCat(absl::StrJoin(values.begin(), values.begin() + kMostListed - 2, ", "),
                      " ... ", values.back(), " (", values.size(), ")");
}

class Text {
 public:
  Text(const pb::Experiment& experiment, const Explanation& explained)
      : experiment_(experiment), cluster_(experiment.cluster()), explained_(explained) {}

  std::string Write() {
    Processes();
    Data();
    Tensors();
    Partitions();
    Traffic();
    return std::move(out_);
  }

 private:
  void Title(const std::string& title) { absl::StrAppend(&out_, "\n", title, "\n"); }
  void Row(const std::string& name, const std::string& value) {
    absl::StrAppendFormat(&out_, "  %-18s %s\n", name, value);
  }

  static std::string Paths(pb::Cluster::Transport transport) {
    switch (transport) {
      case pb::Cluster::TCP:
        return "tcp, loopback with `parley run`";
      case pb::Cluster::IPC:
        return "unix sockets, this machine only";
      case pb::Cluster::SHM:
        return "shared memory, this machine only";
      case pb::Cluster::AUTO:
        return "shared memory on one machine, else unix sockets, else tcp";
    }
    return "";
  }

  void Processes() {
    std::string mode = pb::Consistency::Mode_Name(experiment_.consistency().mode());
    if (experiment_.consistency().mode() == pb::Consistency::SSP) {
      absl::StrAppend(&mode, ", staleness ", experiment_.consistency().staleness());
    }
    if (experiment_.consistency().backup_workers() > 0) {
      absl::StrAppend(&mode, ", ", experiment_.consistency().backup_workers(), " backup workers");
    }
    absl::StrAppend(&out_, experiment_.name(), ": ", 1 + cluster_.servers() + cluster_.workers(),
                    " processes, ", mode, "\n");
    Title("processes");
    Row("scheduler", "1");
    Row("servers", absl::StrCat(cluster_.servers(), " x ", cluster_.shards_per_server(),
                                " shards, each with its own event loop"));
    Row("workers", absl::StrCat(cluster_.workers(), ", each on ", explained_.device));
    Row("transport", Paths(cluster_.transport()));
  }

  void Data() {
    Title("data and steps");
    Row("training", absl::StrCat(WithCommas(explained_.train_samples), " samples ",
                                 explained_.sample_shape, ", ", explained_.classes, " classes"));
    Row("test", absl::StrCat(WithCommas(explained_.test_samples), " samples"));
    Row("a step", absl::StrCat(experiment_.training().global_batch(),
                               " samples; by worker: ", Abridged(explained_.rows_of_a_step)));
    Row("an epoch", absl::StrCat(WithCommas(explained_.ticks_per_epoch), " steps, the last with ",
                                 explained_.rows_of_last_step, " samples"));
    Row("the run", absl::StrCat(experiment_.training().epochs(), " epochs, ",
                                WithCommas(explained_.steps), " steps"));
  }

  void Tensors() {
    Title("tensors");
    size_t width = 18;
    for (const pb::TensorSpec& tensor : explained_.table.tensor()) {
      width = std::max(width, tensor.name().size());
    }
    for (const pb::TensorSpec& tensor : explained_.table.tensor()) {
      uint64_t count = 1;
      for (uint32_t extent : tensor.shape()) count *= extent;
      absl::StrAppendFormat(&out_, "  %-*s %-20s %12s\n", width, tensor.name(),
                            absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]"),
                            WithCommas(count));
    }
    absl::StrAppendFormat(&out_, "  %-*s %-20s %12s  %s\n", width, "in all", "",
                          WithCommas(explained_.parameters), Bytes(4.0 * explained_.parameters));
  }

  void Partitions() {
    Title(absl::StrCat("partitions: ", explained_.partitions, " of up to ",
                       cluster_.partition_kib(), " KiB"));
    size_t listed = 0;
    for (const Explanation::Shard& shard : explained_.shards) {
      if (listed++ == kMostListed) {
        Row("...", absl::StrCat(explained_.shards.size() - kMostListed, " shards more"));
        break;
      }
      const double weights = 4.0 * shard.elements;
      Row(absl::StrCat("server ", shard.server, " shard ", shard.shard),
          absl::StrCat("weights ", Bytes(weights), ", optimizer ",
                       Bytes(weights * explained_.slots), "; partitions ",
                       Abridged(shard.partitions)));
    }
  }

  void Traffic() {
    const parley::Traffic& traffic = explained_.traffic;
    LinkTraffic all;
    for (const LinkTraffic& link : traffic.links) {
      all.pushed += link.pushed;
      all.pulled += link.pulled;
      all.to_server += link.to_server;
      all.to_worker += link.to_worker;
      all.requests += link.requests;
    }
    const double workers = cluster_.workers();
    const double step_rows = experiment_.training().global_batch();
    const std::string most = traffic.bound ? "up to " : "";
    Title("each step");
    Codecs();
    if (traffic.keys > 0) {
      Row("keys", absl::StrFormat("%.0f by each worker, each once", traffic.keys));
    }
    Row("pulled", absl::StrCat(most, Bytes(all.pulled), " by each worker, ",
                               Bytes(all.pulled * workers), " in all"));
    Row("pushed", absl::StrCat(most, Bytes(all.pushed), " by each worker, ",
                               Bytes(all.pushed * workers), " in all"));
    Row("requests", absl::StrFormat("%.0f by each worker", all.requests));
    // With frame headers, to a tenth of a percent: this is what a measurement is compared with.
    Row("wire", absl::StrFormat("%s%.0f B to servers and %.0f B back, by each worker", most,
                                all.to_server, all.to_worker));
    for (size_t server = 0; server < traffic.links.size() && server < kMostListed; ++server) {
      const LinkTraffic& link = traffic.links[server];
      Row(absl::StrCat("  server ", server),
          absl::StrFormat("%s%.0f B from and %.0f B to each worker", most, link.to_server,
                          link.to_worker));
    }
    Row("arithmetic", absl::StrCat(Flops(explained_.flops_per_sample), " a sample, ",
                                   Flops(explained_.flops_per_sample * step_rows), " in all"));
    Row("intensity", absl::StrFormat("%.1f FLOP for each byte that travels",
                                     explained_.flops_per_sample * step_rows /
                                         ((all.to_server + all.to_worker) * workers)));
  }

  void Codecs() {
    const auto say = [this](const std::string& name, const pb::Compression& compression) {
      if (compression.push() == "none" && compression.pull() == "none" &&
          compression.zstd_level() == 0) {
        return;
      }
      const std::string zstd =
          compression.zstd_level() > 0 ? absl::StrCat(", zstd ", compression.zstd_level()) : "";
      Row(name, absl::StrCat("push ", compression.push(), ", pull ", compression.pull(), zstd));
    };
    say("codecs", experiment_.compression());
    if (const pb::Embedding* embedding = FindEmbedding(experiment_.model())) {
      say("codecs of rows", embedding->compression());
    }
  }

  const pb::Experiment& experiment_;
  const pb::Cluster& cluster_;
  const Explanation& explained_;
  std::string out_;
};

}  // namespace

absl::StatusOr<Explanation> Explain(const pb::Experiment& experiment) {
  absl::StatusOr<std::unique_ptr<Workload>> workload = LoadWorkload(experiment);
  std::string missing;  // what this machine has not, which others may have
  if (absl::IsUnavailable(workload.status()) &&
      experiment.compute().device() == pb::Compute::CUDA) {
    missing = absl::StrCat("cuda; here there is none: ", workload.status().message());
    pb::Experiment elsewhere = experiment;
    elsewhere.mutable_compute()->set_device(pb::Compute::CPU);
    workload = LoadWorkload(elsewhere);
  }
  if (!workload.ok()) return workload.status();
  const Dataset& train = *(*workload)->data.train;
  Explanation out;
  out.train_samples = train.samples();
  out.test_samples = (*workload)->data.test->samples();
  const SampleShape shape = train.shape();
  out.sample_shape = train.keys_per_row() > 0 ? absl::StrFormat("of %u keys", train.keys_per_row())
                                              : absl::StrFormat("[%u, %u, %u]", shape.channels,
                                                                shape.height, shape.width);
  out.classes = train.classes();
  out.device = missing.empty() ? (*workload)->device->description() : missing;
  if (missing.empty() && !(*workload)->device_note.empty()) {
    absl::StrAppend(&out.device, "; ", (*workload)->device_note);
  }
  out.flops_per_sample = (*workload)->model->flops_per_sample();

  out.table = ModelTable(experiment, *(*workload)->model);
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(out.table);
  if (!layout.ok()) return layout.status();
  out.parameters = layout->elements();
  out.bytes_per_worker_and_step = out.parameters * sizeof(float);
  ExplainPartitions(experiment, *layout, &out);

  absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(experiment.optimizer());
  if (!optimizer.ok()) return optimizer.status();
  out.slots = (*optimizer)->slots();
  ExplainSteps(experiment, &out);
  absl::StatusOr<Traffic> traffic = ForetellTraffic(experiment, **workload, *layout, out.steps);
  if (!traffic.ok()) return traffic.status();
  out.traffic = *std::move(traffic);
  return out;
}

std::string ToText(const pb::Experiment& experiment, const Explanation& explanation) {
  return Text(experiment, explanation).Write();
}

}  // namespace parley
