#include "tools/bench/bench_plan.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/limits/key_pool.h"

namespace parley {
namespace {

constexpr uint32_t kSparsePartitions = 16;
// About what waking a sleeping thread takes.
constexpr uint32_t kSpinMicroseconds = 50;
// Small enough that weights stay finite however long it runs.
constexpr float kLearningRate = 1e-6f;

pb::RowType RowTypeOf(const std::string& name) {
  pb::RowType type = pb::FP32;
  pb::RowType_Parse(absl::AsciiStrToUpper(name), &type);
  return type;
}

}  // namespace

void BenchPlan::AddFlags(FlagSet* flags) {
  flags->Number("servers", &servers, 1, 64, "server processes")
      .Number("workers", &workers, 1, 64, "worker processes")
      .Number("shards", &shards, 1, 64, "event loops of a server process")
      .Choice("transport", &transport, {"tcp", "ipc", "shm", "auto"}, "how payloads travel")
      .Number("partition-kib", &partition_kib, 4, 65536, "size of a dense partition")
      .Number("max-request-kib", &max_request_kib, 4, 65536, "larger requests are cut")
      .OptionalNumber("spin-us", &spin_us, 1, 1'000'000,
                      "microseconds that loops look for work before sleeping; else 50 over shared "
                      "memory if every loop has a core")
      .Text("codec", &codec, "NAME", "payload codec of pushes: none, fp16, bf16, int8, ...")
      .Text("pull-codec", &pull_codec, "NAME", "payload codec of pulls: none, fp16 or bf16")
      .Number("zstd-level", &zstd_level, 0, 19, "zstd on top of the codec; 0 = off")
      .OptionalNumber("bytes", &bytes, 64, 1u << 30,
                      "dense, latency: bytes of a vector; else 64 MiB and 1 MiB, and 4 KiB")
      .OptionalNumber("in-flight", &in_flight, 1, 1'000'000,
                      "on their way at once; else dense: 8 vectors up to 4 MiB and 1 above, "
                      "latency: 1, sparse: 4 requests, rate: 20,000 updates")
      .Number("keys", &keys, 1, 1'000'000, "sparse: keys of a request")
      .OptionalNumber("table-keys", &table_keys, 1, 1'000'000'000,
                      "sparse, rate: rows that the table has; else 10,000,000 and 100,000")
      .Number("dim", &dim, 1, 4096, "sparse, rate: floats of a row")
      .Number("key-lists", &key_lists, 0, 1000,
              "sparse: requests repeat so many key lists; 0 = no two are alike")
      .Text("distribution", &distribution, "NAME", "sparse: uniform, or zipf:S as zipf:1.05")
      .Choice("row-type", &row_type, {"fp32", "fp16", "bf16"}, "sparse, rate: how rows are kept")
      .Number("rounds", &rounds, 1, 1000, "values that the median is of")
      .Number("round-ms", &round_ms, 10, 600'000, "length of a round");
}

void BenchPlan::Resolve(uint32_t cores) {
  const bool shared_memory = transport == "shm" || transport == "auto";
  if (spin_us == 0 && shared_memory && servers * shards + workers <= cores) {
    spin_us = kSpinMicroseconds;
  }
  if (bytes == 0) bytes = load == "latency" ? 4 << 10 : 1 << 20;
  if (table_keys == 0) table_keys = load == "rate" ? 100'000 : 10'000'000;
  if (in_flight > 0) return;
  if (load == "dense") in_flight = bytes <= (4u << 20) ? 8 : 1;
  if (load == "latency") in_flight = 1;
  if (load == "sparse") in_flight = 4;
  if (load == "rate") in_flight = 20'000;
}

std::vector<std::string> BenchPlan::ToArgs() const {
  std::vector<std::string> args;
  const auto add = [&](const char* name, const auto& value) {
    args.push_back(absl::StrCat("--", name, "=", value));
  };
  add("servers", servers);
  add("workers", workers);
  add("shards", shards);
  add("transport", transport);
  add("partition-kib", partition_kib);
  add("max-request-kib", max_request_kib);
  if (spin_us > 0) add("spin-us", spin_us);
  add("codec", codec);
  add("pull-codec", pull_codec);
  add("zstd-level", zstd_level);
  if (bytes > 0) add("bytes", bytes);
  if (in_flight > 0) add("in-flight", in_flight);
  add("keys", keys);
  if (table_keys > 0) add("table-keys", table_keys);
  add("dim", dim);
  add("key-lists", key_lists);
  add("distribution", distribution);
  add("row-type", row_type);
  add("rounds", rounds);
  add("round-ms", round_ms);
  return args;
}

absl::Status BenchPlan::Check() const {
  const auto bad = [](const std::string& flag, const auto& value, const std::string& allowed) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", value, ": allowed is ", allowed));
  };
  if (partition_kib % 4 != 0) return bad("--partition-kib", partition_kib, "a multiple of 4");
  if (bytes % 4 != 0) return bad("--bytes", bytes, "a multiple of 4");
  if (!sparse() && in_flight > 64) return bad("--in-flight", in_flight, "1..64 vectors");
  if (load == "sparse" && in_flight > 256) return bad("--in-flight", in_flight, "1..256 requests");
  if (load == "sparse" && keys > KeyPool::Options().draws) {
    return bad("--keys", keys, absl::StrCat("1..", KeyPool::Options().draws));
  }
  return KeyPool::ParseDistribution(distribution).status();
}

std::vector<std::pair<std::string, std::string>> BenchPlan::Settings() const {
  std::vector<std::pair<std::string, std::string>> settings;
  const auto add = [&](const char* name, const auto& value) {
    settings.emplace_back(name, absl::StrCat(value));
  };
  add("load", load);
  add("servers", servers);
  add("workers", workers);
  add("shards", shards);
  add("transport", transport);
  add("codec", codec);
  add("pull_codec", pull_codec);
  if (zstd_level > 0) add("zstd_level", zstd_level);
  if (!sparse()) {
    add("bytes", bytes);
    add("partition_kib", partition_kib);
  } else {
    add("table_keys", table_keys);
    add("dim", dim);
    add("row_type", row_type);
    add("distribution", distribution);
  }
  if (load == "sparse") {
    add("keys", keys);
    add("key_lists", key_lists);
  }
  add("max_request_kib", max_request_kib);
  add("spin_us", spin_us);
  add("in_flight", in_flight);
  add("rounds", rounds);
  add("round_ms", round_ms);
  return settings;
}

pb::Experiment BenchExperiment(const BenchPlan& plan) {
  pb::Experiment experiment;
  experiment.set_name("bench");
  pb::Cluster& cluster = *experiment.mutable_cluster();
  cluster.set_servers(plan.servers);
  cluster.set_workers(plan.workers);
  cluster.set_shards_per_server(plan.shards);
  cluster.set_partition_kib(plan.partition_kib);
  cluster.set_max_request_kib(plan.max_request_kib);
  pb::Cluster::Transport transport = pb::Cluster::TCP;
  pb::Cluster::Transport_Parse(absl::AsciiStrToUpper(plan.transport), &transport);
  cluster.set_transport(transport);
  // A loop that fills a table or is one of many on a core may be silent for a while.
  cluster.set_node_timeout_ms(20'000);
  experiment.mutable_data()->mutable_synthetic()->set_train_samples(1);
  experiment.mutable_data()->mutable_synthetic()->set_test_samples(1);
  experiment.mutable_model()->add_layer()->mutable_flatten();
  experiment.mutable_model()->add_layer()->mutable_linear()->set_out(4);
  experiment.mutable_model()->add_layer()->mutable_log_softmax();
  experiment.mutable_optimizer()->mutable_sgd();
  experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
  return experiment;
}

std::vector<pb::TableSpec> BenchTables(const BenchPlan& plan) {
  pb::TableSpec table;
  table.set_seed(1);
  table.mutable_optimizer()->mutable_sgd();
  table.mutable_optimizer()->set_lr(kLearningRate);
  table.mutable_optimizer()->mutable_schedule()->mutable_constant();
  if (plan.codec != "none" || plan.pull_codec != "none" || plan.zstd_level > 0) {
    pb::Compression& compression = *table.mutable_compression();
    compression.set_push(plan.codec);
    compression.set_pull(plan.pull_codec);
    compression.set_zstd_level(static_cast<int32_t>(plan.zstd_level));
  }
  std::vector<pb::TableSpec> tables;
  if (plan.sparse()) {
    table.set_id(1);
    table.set_name("rows");
    table.mutable_sparse()->set_dim(plan.dim);
    table.mutable_sparse()->set_partitions(kSparsePartitions);
    table.mutable_sparse()->set_row_type(RowTypeOf(plan.row_type));
    return {table};
  }
  table.set_partition_elements(uint64_t{plan.partition_kib} * 1024 / sizeof(float));
  for (uint32_t i = 0; i < plan.in_flight; ++i) {
    table.set_id(i + 1);
    table.set_name(absl::StrCat("vector", i));
    table.clear_tensor();
    pb::TensorSpec& tensor = *table.add_tensor();
    tensor.set_name("values");
    tensor.add_shape(plan.bytes / sizeof(float));
    tensor.set_init(pb::TensorSpec::UNIFORM);
    tensor.set_bound(0.01f);
    tables.push_back(table);
  }
  return tables;
}

}  // namespace parley
