#include "tests/fuzz/state_seeds.h"

#include <zmq.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/scheduler.pb.h"
#include "ps/checkpoint/manifest.h"
#include "tests/fuzz/good_disk.h"

namespace parley {
namespace {

template <typename T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string U8(size_t value) { return Raw(static_cast<uint8_t>(value)); }
std::string U16(size_t value) { return Raw(static_cast<uint16_t>(value)); }

// Without what it is not of a seed's size for.
std::string WithLength(const std::string& bytes) { return U16(bytes.size()) + bytes; }

constexpr const char* kNames[] = {"dense", "published", "clipped", "stale", "rows", "evicted"};

std::string Body(const std::string& manifest) {
  return manifest.substr(0, manifest.find(",\n \"checksum\""));
}

// As fuzz_replica.cc takes them apart.
enum Step : uint8_t { kSync, kState, kOperation, kTrue, kPrimary, kPromote, kUpdate };

std::string StateStep(const PartitionSnapshot& snapshot, uint8_t attempt) {
  const std::string header = snapshot.values.header.SerializeAsString();
  std::string step = U8(kState) + U8(1) + U8(attempt) + U8(snapshot.index) + U16(header.size()) +
                     U16(snapshot.server_state.size()) + header + snapshot.server_state;
  for (const Buffer& array : snapshot.values.bytes) step += std::string(array.view());
  return step;
}

std::string OperationStep(const pb::ReplicaOp& op, const SummedGradient& sum) {
  const std::string body = op.SerializeAsString();
  return U8(kOperation) + U8(3) + U16(body.size()) + U16(sum.keys.size()) + U16(sum.values.size()) +
         body + std::string(sum.keys.view()) + std::string(sum.values.view());
}

std::string Operations(std::vector<pb::ReplicaOp> ops) {
  std::string steps;
  for (pb::ReplicaOp& op : ops) steps += OperationStep(op, {});
  return steps;
}

pb::ReplicaOp Op(pb::ReplicaOp::Kind kind, uint32_t worker, uint64_t tick) {
  pb::ReplicaOp op;
  op.set_kind(kind);
  op.set_worker(worker);
  op.set_tick(tick);
  return op;
}

// Two workers' gradients are in the weights, a third one's is held, one is left out.
PartitionSnapshot Saved(FuzzTable* table) {
  HostedPartition* asked = nullptr;
  const auto partition =
      table->Make([&](uint32_t, NormGroup group, double share) { asked->OnNorm(group, share); });
  asked = partition.get();
  for (uint32_t w = 0; w < FuzzTable::kWorkers; ++w) table->Push(partition.get(), w, 0);
  table->Push(partition.get(), 1, 1);
  table->Push(partition.get(), 1, 2);
  partition->OnWorker(1, 2);
  partition->OnLeave(2, 1);
  return partition->Save();
}

pb::SchedulerState SchedulerStateOf(int servers, int workers, bool training) {
  pb::SchedulerState state;
  state.set_format(1);
  state.set_job("job");
  state.set_servers_wanted(static_cast<uint32_t>(servers));
  for (int i = 0; i < servers + workers; ++i) {
    const bool server = i < servers;
    const int rank = server ? i : i - servers;
    pb::MemberState* member = state.add_member();
    member->set_node(100 + static_cast<uint64_t>(i));
    member->set_role(server ? pb::SERVER : pb::WORKER);
    member->set_rank(static_cast<uint32_t>(rank));
    member->set_incarnation(1);
    if (server) member->set_process(100 + static_cast<uint64_t>(i));
    member->set_name("host");
    member->set_endpoint(absl::StrCat("sim://", 100 + i));
    member->set_ready(true);
  }
  pb::TableSpec* table = state.mutable_tables()->add_table();
  table->set_id(1);
  table->set_name("model");
  table->set_partition_elements(4);
  table->add_tensor()->add_shape(16);
  if (!training) return state;
  pb::Assignment* assignment = state.mutable_assignment();
  *assignment->mutable_table() = state.tables().table();
  assignment->set_generation(1);
  assignment->set_workers(static_cast<uint32_t>(workers));
  assignment->set_data_parts(static_cast<uint32_t>(workers));
  pb::PartitionMap* map = assignment->mutable_map();
  map->set_epoch(3);
  pb::TableMap* owners = map->add_table();
  owners->set_table(1);
  for (int i = 0; i < servers; ++i) {
    pb::ShardAddress* shard = map->add_shard();
    shard->set_node(100 + static_cast<uint64_t>(i));
    shard->set_server_rank(static_cast<uint32_t>(i));
    shard->set_endpoint(absl::StrCat("sim://", 100 + i));
  }
  for (uint32_t p = 0; p < 4; ++p) {
    owners->add_owner(p % static_cast<uint32_t>(servers));
    if (servers < 2) continue;
    pb::Backup* backup = owners->add_backup();
    backup->set_partition(p);
    backup->set_shard((p + 1) % static_cast<uint32_t>(servers));
    backup->set_synced(true);
    backup->set_since(2);
  }
  for (int w = 0; w < workers; ++w) {
    assignment->add_worker_node(100 + static_cast<uint64_t>(servers + w));
    assignment->add_worker_incarnation(1);
  }
  state.mutable_tally()->add_epoch()->set_train_loss(1);
  pb::Report* report = state.mutable_tally()->add_report();
  report->set_data_epoch(1);
  report->set_rank(0);
  state.add_checkpoint(8);
  return state;
}

void WriteKeys(const SeedWriter& write) {
  std::array<char, 41> open{};
  // Any 32 bytes are a secret; these are nobody's.
  const std::string secret = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
  if (zmq_curve_public(open.data(), secret.c_str()) != 0) return;
  const std::string who = absl::StrCat("role server\nname main\npublic ", open.data(), "\n");
  const std::string file =
      absl::StrCat("# The secret key of a server.\n", who, "secret ", secret, "\n");
  const auto seed = [&](uint8_t modes, const std::string& key, const std::string& authorized) {
    return U8(2) + U8(1) + U8(modes) + WithLength(key) + authorized;
  };
  write("keys", seed(0, file, who));
  write("keys_readable", seed(1, file, who));
  write("keys_writable", seed(2, file, who));
  write("keys_no_pair", seed(0, absl::StrCat(who, "secret ", std::string(40, '0'), "\n"), who));
  write("keys_secret_let_in", seed(0, file, file));
}

}  // namespace

void WriteCheckpointSeeds(const SeedWriter& write) {
  for (uint8_t kind = 0; kind < FuzzTable::kKinds; ++kind) {
    FuzzTable table(kind);
    GoodDisk::Contents disk = GoodDisk::Make(&table);
    const std::string directory = CheckpointDirectory(GoodDisk::kRoot, GoodDisk::kStep);
    const std::string& text = disk[directory + "/" + kManifestName];
    pb::CheckpointManifest manifest = *ParseManifest(text, "seed");
    std::string files;
    for (pb::CheckpointFile& file : *manifest.mutable_file()) {
      files += WithLength(disk[directory + "/" + file.name()]);
    }
    const std::string message = manifest.SerializeAsString();
    write(absl::StrCat("message_", kNames[kind]),
          U8(1) + U8(7) + U8(kind) + WithLength(message) + files);
    const auto edit = [](uint8_t file, uint8_t what, uint16_t where, uint8_t value) {
      return U8(file) + U8(what) + U16(where) + U8(value);
    };
    write(absl::StrCat("damaged_", kNames[kind]),
          U8(2) + U8(kind) + edit(static_cast<uint8_t>(kind + 3), kind, 77, 0x20));
    if (kind != FuzzTable::kRows) continue;
    auto* saved = manifest.mutable_file(0)->mutable_partition(0);
    saved->clear_server_state_bytes();  // whose offset is behind the arrays'
    saved->mutable_offset()->RemoveLast();
    saved->mutable_crc32()->RemoveLast();
    for (int i = 0; i < 9; ++i) {
      pb::StateArray* array = saved->mutable_state()->add_array();
      *array = saved->state().array(0);
      array->set_name(absl::StrCat("again", i));
      saved->mutable_offset()->Add(saved->offset(0));
      saved->mutable_crc32()->Add(saved->crc32(0));
    }
    const std::string again = manifest.SerializeAsString();
    write("arrays_over_each_other", U8(1) + U8(7) + U8(kind) + WithLength(again) + files);
    write("text", U8(0) + U8(1) + Body(text));
    write("text_with_its_checksum", U8(0) + U8(0) + text);
    write("not_damaged", U8(2) + U8(kind));
    write("both_damaged", U8(2) + U8(kind) + edit(1, 0, 9, 1) + edit(5, 1, 300, 0));
  }
}

void WriteReplicaSeeds(const SeedWriter& write) {
  for (uint8_t kind = 0; kind < FuzzTable::kKinds; ++kind) {
    FuzzTable table(kind);
    const PartitionSnapshot saved = Saved(&table);
    const auto step = [](uint8_t what, uint8_t value) { return U8(what) + U8(value); };
    std::string updates;
    for (uint8_t tick = 0; tick < 4; ++tick) {
      for (uint8_t w = 0; w < FuzzTable::kWorkers; ++w) updates += U8(kUpdate) + U8(w) + U8(tick);
    }
    write(absl::StrCat("state_", kNames[kind]), U8(kind) + StateStep(saved, 1));
    write(absl::StrCat("promoted_", kNames[kind]),
          U8(kind) + StateStep(saved, 1) + U8(kPromote) + updates);
    write(absl::StrCat("primary_", kNames[kind]),
          U8(kind) + step(kTrue, 0) + step(kTrue, 7) + step(kTrue, 7) + U8(kPromote) + updates);
    pb::ReplicaOp drop = Op(pb::ReplicaOp::DROP, 0, 0), late = drop;
    drop.add_push()->set_sequence(9);
    late.add_push()->set_superseded(true);
    pb::ReplicaOp replaced = Op(pb::ReplicaOp::WORKER, 1, 0);
    replaced.set_incarnation(3);
    pb::ReplicaOp update = Op(pb::ReplicaOp::STEP, 0, saved.index);
    update.add_push()->set_weight(2);
    update.add_closed(0);
    update.set_inverse_weight(0.5);
    SummedGradient sum;
    const uint64_t keys[] = {40, 7};
    const std::vector<float> values(table.Make()->values(2), 0.5f);
    if (table.sparse()) {
      sum.keys = Buffer::Copy({reinterpret_cast<const char*>(keys), sizeof(keys)});
    }
    sum.values =
        Buffer::Copy({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
    update.set_tick(1);
    write(absl::StrCat("operations_", kNames[kind]),
          U8(kind) + StateStep(saved, 1) + OperationStep(update, sum) +
              Operations({drop, late, replaced, Op(pb::ReplicaOp::LEAVE, 0, 3)}) + U8(kPromote) +
              updates);
  }
  pb::PartitionState first;
  first.set_index(1);
  first.set_total_bytes(20);
  pb::StateArray* array = first.mutable_values()->add_array();
  array->set_name("weights");
  array->set_dtype("F32");
  array->add_shape(5);
  const auto piece = [](uint8_t attempt, const pb::PartitionState& body, size_t bytes) {
    return U8(kSync) + U8(attempt) + WithLength(body.SerializeAsString()) + U8(1) + U16(bytes) +
           std::string(bytes, 'w');
  };
  pb::PartitionState second;
  second.set_offset(12);
  write("pieces", U8(0) + piece(1, first, 12) + piece(1, second, 8));
  write("piece_missing", U8(0) + piece(1, first, 4) + piece(1, second, 8));
  array->set_shape(0, uint64_t{1} << 33);
  first.set_total_bytes(uint64_t{1} << 35);
  write("much_announced", U8(0) + piece(1, first, 12) + piece(1, second, 8));
}

void WriteJournalSeeds(const SeedWriter& write) {
  const auto seed = [](uint8_t how, uint8_t cluster, const pb::SchedulerState& state) {
    return U8(1) + U8(how) + U8(cluster) + state.SerializeAsString();
  };
  // The cluster's bits: servers - 1, shards - 1, workers - 1, replicas, then worker_loss.
  write("gathering", seed(7, 5, SchedulerStateOf(2, 2, false)));
  write("training", seed(7, 13, SchedulerStateOf(2, 2, true)));
  write("training_alone", seed(3, 13, SchedulerStateOf(2, 2, true)));
  write("training_small", seed(7, 0, SchedulerStateOf(1, 1, true)));
  write("of_fewer_workers", seed(7, 13, SchedulerStateOf(2, 1, true)));
  pb::SchedulerState lost = SchedulerStateOf(2, 2, true);
  lost.mutable_member()->DeleteSubrange(0, 1);
  write("server_lost", seed(7, 13, lost));
  lost.mutable_assignment()->mutable_map()->mutable_table(0)->clear_backup();
  write("partitions_lost", seed(7, 5, lost));
  pb::SchedulerState worker_lost = SchedulerStateOf(2, 2, true);
  worker_lost.mutable_member()->RemoveLast();
  write("worker_lost", seed(7, 13, worker_lost));
  write("worker_lost_skip", seed(7, 29, worker_lost));
  pb::SchedulerState stopping = SchedulerStateOf(2, 2, true);
  stopping.mutable_stop()->set_ok(true);
  write("stopping", seed(7, 13, stopping));
  stopping.set_ended(true);
  write("ended", seed(7, 13, stopping));
  pb::SchedulerState finished = SchedulerStateOf(2, 2, true);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    pb::Finished* done = finished.mutable_tally()->add_finished();
    done->set_rank(rank);
    done->set_generation(1);
    done->set_steps(10);
  }
  write("finished", seed(7, 13, finished));
  pb::SchedulerState resumed = SchedulerStateOf(2, 2, false);
  resumed.mutable_resumed_from()->set_directory("checkpoints/step-000000000008");
  write("resumed", seed(7, 5, resumed));
  const std::string state = SchedulerStateOf(1, 1, true).SerializeAsString();
  write("file", U8(0) + U8(1) + state);
  write("file_torn", U8(0) + U8(0) + "parley-scheduler-state 1 0123456789abcdef");
  write("file_damaged",
        U8(0) + U8(0) + "parley-scheduler-state 1 " + std::string(64, '0') + "\n" + state);
  WriteKeys(write);
}

}  // namespace parley
