// BenchPlan: what one cluster of `parley bench` is asked to do. The command and its workers share
// it; it crosses from one to the other as flags. Plain values; not thread-safe.
#ifndef PARLEY_TOOLS_BENCH_BENCH_PLAN_H_
#define PARLEY_TOOLS_BENCH_BENCH_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "ps/config/flags.h"

namespace parley {

struct BenchPlan {
  std::string load = "dense";  // dense, latency, rate, sparse
  // The cluster.
  uint32_t servers = 1, workers = 1, shards = 1;
  std::string transport = "auto";  // tcp, ipc, shm, auto
  uint32_t partition_kib = 256, max_request_kib = 1024;
  // How long loops look for work before they sleep. 0: as Resolve finds fit.
  uint32_t spin_us = 0;
  // How values travel: names of payload codecs and zstd's level on top.
  std::string codec = "none", pull_codec = "none";
  uint32_t zstd_level = 0;
  // Dense tables: in_flight vectors, each a table of its own, since one table has one pull at a
  // time.
  uint32_t bytes = 0;      // 0: as the load is usually measured (Resolve)
  uint32_t in_flight = 0;  // vectors; sparse: requests; rate: updates. 0: as usual
  // Sparse tables.
  uint32_t keys = 100'000;            // of a request
  uint32_t table_keys = 0, dim = 16;  // table_keys 0: as usual
  uint32_t key_lists = 0;             // requests repeat so many lists; 0: no two are alike
  std::string distribution = "uniform";
  std::string row_type = "fp32";
  // Time.
  uint32_t rounds = 5;
  uint32_t round_ms = 400;

  // The flags of all fields above but `load`; also those that only workers need.
  void AddFlags(FlagSet* flags);
  // Sets what is 0 for "as usual" and was not given. Loops spin over shared memory if each has a
  // core to itself of the `cores`; over sockets, where other threads carry the bytes, they do not.
  void Resolve(uint32_t cores);
  // The same as arguments that AddFlags reads back.
  std::vector<std::string> ToArgs() const;
  // kInvalidArgument names the flag, its value and what is allowed, beyond what flags check.
  absl::Status Check() const;
  // As one line of "name value" pairs, for people and the results: the fields that this load uses.
  std::vector<std::pair<std::string, std::string>> Settings() const;

  bool sparse() const { return load == "sparse" || load == "rate"; }
};

// What the scheduler is given: asynchronous (a push is applied by itself and at once), with the
// plan's cluster. The smallest data and model there are stand in it because an experiment needs
// them; nobody loads them, since tables are what the workers register.
pb::Experiment BenchExperiment(const BenchPlan& plan);

// The tables that every worker registers.
std::vector<pb::TableSpec> BenchTables(const BenchPlan& plan);

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_BENCH_PLAN_H_
