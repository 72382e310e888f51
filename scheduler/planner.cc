#include "scheduler/planner.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "scheduler/rank_planner.h"

namespace parley {
namespace {

constexpr int kNobody = -1;

struct Copy {
  int shard = kNobody;  // index into PlanInput::servers
  bool synced = false;
  uint64_t since = 0;
  uint64_t news = 0;  // as pb::Backup has it
  bool stands_by = false;
};
struct Partition {
  int owner = kNobody;
  std::vector<Copy> backups;
};

// The servers' part of a plan, as a sequence of passes over all partitions.
class ServerPlanner {
 public:
  ServerPlanner(const PlanInput& input, const pb::Assignment& current, Plan* plan)
      : input_(input),
        epoch_(current.map().epoch() + 1),
        plan_(plan),
        primaries_(input.servers.size(), 0),
        copies_(input.servers.size(), 0) {
    std::map<std::string, int> numbers;
    for (const PlanServer& server : input.servers) {
      hosts_.push_back(numbers.emplace(server.host, numbers.size()).first->second);
    }
    Read(current.map());
    ChooseServing();
  }

  // False: a partition is lost.
  bool Run() {
    if (!TakeOver()) return false;
    if (!input_.partitions_move) return true;
    PromoteFromDrained();
    EndMoves();
    DropDrainedBackups();
    CountPending();
    Drain();
    AddBackups();
    Balance();
    plan_->settled = pending_ == 0;
    return true;
  }

  void Write(const pb::PartitionMap& before, pb::PartitionMap* map) const {
    std::vector<uint32_t> index(input_.servers.size(), 0);
    map->clear_shard();
    map->clear_table();
    for (size_t s = 0; s < input_.servers.size(); ++s) {
      if (!serving_.contains(input_.servers[s].process) && copies_[s] == 0) continue;
      index[s] = map->shard_size();
      const PlanServer& server = input_.servers[s];
      pb::ShardAddress* shard = map->add_shard();
      shard->set_node(Value(server.node));
      shard->set_server_rank(server.rank);
      shard->set_shard(server.shard);
      shard->set_endpoint(server.endpoint);
      shard->set_incarnation(server.incarnation);
    }
    for (size_t t = 0; t < tables_.size(); ++t) {
      pb::TableMap* table = map->add_table();
      table->set_table(before.table(t).table());
      for (size_t p = 0; p < tables_[t].size(); ++p) {
        table->add_owner(index[tables_[t][p].owner]);
        for (const Copy& copy : tables_[t][p].backups) {
          pb::Backup* backup = table->add_backup();
          backup->set_partition(p);
          backup->set_shard(index[copy.shard]);
          backup->set_synced(copy.synced);
          backup->set_since(copy.since);
          if (copy.news > 0) backup->set_news(copy.news);
          if (copy.stands_by) backup->set_stands_by(true);
        }
      }
    }
  }

 private:
  void Read(const pb::PartitionMap& map) {
    std::map<uint64_t, int> of_node;
    for (size_t s = 0; s < input_.servers.size(); ++s) of_node[Value(input_.servers[s].node)] = s;
    const auto find = [&](uint32_t shard) {
      auto found = of_node.find(map.shard(shard).node());
      return found == of_node.end() ? kNobody : found->second;
    };
    for (const pb::TableMap& table : map.table()) {
      std::vector<Partition>& partitions = tables_.emplace_back(table.owner_size());
      for (int p = 0; p < table.owner_size(); ++p) partitions[p].owner = find(table.owner(p));
      for (const pb::Backup& backup : table.backup()) {
        const int shard = find(backup.shard());
        if (shard == kNobody) continue;  // what a dead server held is gone
        partitions[backup.partition()].backups.push_back({shard, backup.synced(), backup.since(),
                                                          backup.news(),
                                                          backup.stands_by() && !backup.synced()});
      }
      for (const auto& [of, partition] : input_.vacant) {
        if (of + 1 == tables_.size()) Vacate(&partitions[partition]);
      }
      of_table_.emplace_back(input_.servers.size(), 0);
      for (const Partition& partition : partitions) {
        if (partition.owner != kNobody) Own(of_table_.size() - 1, partition.owner, 1);
        for (const Copy& copy : partition.backups) ++copies_[copy.shard];
      }
    }
  }

  // The owner never was its primary: it has said that it has nothing to begin with. So nobody was
  // since those that stand by were synced, and what they had then is all that was acknowledged.
  void Vacate(Partition* partition) {
    for (Copy& copy : partition->backups) {
      if (!copy.stands_by) continue;
      copy.synced = true;
      copy.stands_by = false;
    }
    if (partition->owner != kNobody)
      partition->backups.push_back({partition->owner, false, epoch_});
    partition->owner = kNobody;
  }

  void Own(size_t table, int shard, int by) {
    of_table_[table][shard] += by;
    primaries_[shard] += by;
    copies_[shard] += by;
  }

  // Those that hold something stay before others come in: a spare that became a server is not sent
  // away by the return of the one it stands for.
  void ChooseServing() {
    std::map<uint64_t, std::pair<bool, uint32_t>> processes;  // -> holds nothing, rank
    for (size_t s = 0; s < input_.servers.size(); ++s) {
      auto [entry, is_new] = processes.try_emplace(input_.servers[s].process, true, 0);
      entry->second.second = input_.servers[s].rank;
      if (copies_[s] > 0) entry->second.first = false;
    }
    std::vector<std::tuple<bool, uint32_t, uint64_t>> order;
    for (const auto& [process, key] : processes) order.emplace_back(key.first, key.second, process);
    std::sort(order.begin(), order.end());
    if (order.size() > input_.servers_wanted) order.resize(std::max(1u, input_.servers_wanted));
    for (const auto& [idle, rank, process] : order) serving_.insert(process);
    desired_ = std::min<size_t>(input_.replicas, serving_.empty() ? 0 : serving_.size() - 1);
  }

  uint64_t ProcessOf(int shard) const { return input_.servers[shard].process; }
  bool Serves(int shard) const { return serving_.contains(ProcessOf(shard)); }
  static bool HasCopyOn(const Partition& partition, uint64_t process,
                        const std::vector<PlanServer>& servers) {
    if (servers[partition.owner].process == process) return true;
    return std::any_of(partition.backups.begin(), partition.backups.end(),
                       [&](const Copy& copy) { return servers[copy.shard].process == process; });
  }
  // Whether a copy that stays is on the host of `shard`, apart from the primary if it is to go.
  bool SharesHost(const Partition& partition, int shard, bool with_owner) const {
    const auto same = [&](int other) {
      return other != shard && Serves(other) && hosts_[other] == hosts_[shard];
    };
    if (with_owner && same(partition.owner)) return true;
    return std::any_of(partition.backups.begin(), partition.backups.end(),
                       [&](const Copy& copy) { return same(copy.shard); });
  }
  size_t ServingBackups(const Partition& partition, bool synced_only) const {
    return std::count_if(partition.backups.begin(), partition.backups.end(), [&](const Copy& copy) {
      return Serves(copy.shard) && (copy.synced || !synced_only);
    });
  }

  // The copy at backups[i] becomes the primary. The other copies may be ahead of it by what was not
  // acknowledged, so they have to be brought up again. But should it turn out to have lost its
  // state, which its primary did not live to tell, they have what it should have had.
  void Promote(size_t table, Partition* partition, size_t i, bool keep_old) {
    const int heir = partition->backups[i].shard;
    const int old = partition->owner;
    partition->backups.erase(partition->backups.begin() + i);
    // What is heard of them from now on is another primary's, with its own numbers.
    for (Copy& copy : partition->backups) copy = {copy.shard, false, epoch_, 0, copy.synced};
    --copies_[heir];
    Own(table, heir, 1);
    if (old != kNobody) Own(table, old, -1);
    partition->owner = heir;
    if (!keep_old || old == kNobody) return;
    partition->backups.push_back({old, false, epoch_});
    ++copies_[old];
  }
  void Drop(Partition* partition, size_t i) {
    --copies_[partition->backups[i].shard];
    partition->backups.erase(partition->backups.begin() + i);
  }

  // The synced copy with the least work, or -1.
  int BestHeir(size_t table, const Partition& partition, bool serving_only) const {
    int best = -1;
    const auto key = [&](int i) {
      const int shard = partition.backups[i].shard;
      return std::tuple(!Serves(shard), of_table_[table][shard], primaries_[shard], shard);
    };
    for (int i = 0; i < static_cast<int>(partition.backups.size()); ++i) {
      const Copy& copy = partition.backups[i];
      if (!copy.synced || (serving_only && !Serves(copy.shard))) continue;
      if (best < 0 || key(i) < key(best)) best = i;
    }
    return best;
  }

  bool TakeOver() {
    for (size_t t = 0; t < tables_.size(); ++t) {
      for (size_t p = 0; p < tables_[t].size(); ++p) {
        Partition& partition = tables_[t][p];
        if (partition.owner != kNobody) continue;
        const int heir = BestHeir(t, partition, false);
        if (heir < 0) {
          plan_->lost = true;
          plan_->lost_table = t;
          plan_->lost_partition = p;
          return false;
        }
        Promote(t, &partition, heir, false);
        ++plan_->taken_over;
        plan_->heirs.insert(input_.servers[partition.owner].node);
      }
    }
    return true;
  }

  void PromoteFromDrained() {
    ForEach([&](size_t t, Partition& partition) {
      if (Serves(partition.owner)) return;
      const int heir = BestHeir(t, partition, true);
      if (heir < 0) return;
      Promote(t, &partition, heir, false);
      ++plan_->moved;
    });
  }

  // A table's primaries are spread first, then all primaries.
  bool Better(size_t table, int from, int to) const {
    const int by_table = of_table_[table][from] - of_table_[table][to];
    return by_table >= 2 || (by_table == 1 && primaries_[from] - primaries_[to] >= 2);
  }

  // A synced copy too many was made to take over, if that still helps.
  void EndMoves() {
    ForEach([&](size_t t, Partition& partition) {
      while (Serves(partition.owner) && ServingBackups(partition, true) > desired_) {
        int heir = -1;
        for (int i = 0; i < static_cast<int>(partition.backups.size()); ++i) {
          const Copy& copy = partition.backups[i];
          if (!copy.synced || !Serves(copy.shard)) continue;
          if (!Better(t, partition.owner, copy.shard)) continue;
          if (heir < 0 || primaries_[copy.shard] < primaries_[partition.backups[heir].shard]) {
            heir = i;
          }
        }
        if (heir >= 0) {
          Promote(t, &partition, heir, false);
          ++plan_->moved;
          continue;
        }
        int last = -1;
        for (int i = 0; i < static_cast<int>(partition.backups.size()); ++i) {
          const Copy& copy = partition.backups[i];
          if (!copy.synced || !Serves(copy.shard)) continue;
          const auto key = [&](int shard) {
            return std::tuple(SharesHost(partition, shard, true), copies_[shard]);
          };
          if (last < 0 || key(copy.shard) >= key(partition.backups[last].shard)) last = i;
        }
        Drop(&partition, last);
      }
    });
  }

  void DropDrainedBackups() {
    ForEach([&](size_t, Partition& partition) {
      const bool enough = ServingBackups(partition, true) >= desired_;
      for (size_t i = partition.backups.size(); i-- > 0;) {
        const Copy& copy = partition.backups[i];
        if (Serves(copy.shard) || copy.stands_by) continue;
        if (enough || !copy.synced) Drop(&partition, i);
      }
    });
  }

  void CountPending() {
    ForEach([&](size_t, Partition& partition) {
      for (const Copy& copy : partition.backups) pending_ += !copy.synced;
      if (Serves(partition.owner)) moving_ += ServingBackups(partition, false) > desired_;
    });
  }

  // The least loaded shard of a serving process that has no copy of the partition, on a host that
  // has none if there is one; or kNobody.
  int PlaceFor(size_t table, const Partition& partition) const {
    int best = kNobody;
    const auto key = [&](int s) {
      return std::tuple(SharesHost(partition, s, true), copies_[s], of_table_[table][s], s);
    };
    for (int s = 0; s < static_cast<int>(input_.servers.size()); ++s) {
      if (!Serves(s) || HasCopyOn(partition, ProcessOf(s), input_.servers)) continue;
      if (best == kNobody || key(s) < key(best)) best = s;
    }
    return best;
  }
  bool BringUp(size_t table, Partition* partition) {
    const int place = PlaceFor(table, *partition);
    if (place == kNobody) return false;
    partition->backups.push_back({place, false, epoch_});
    ++copies_[place];
    ++pending_;
    return true;
  }

  void Drain() {
    uint32_t on_their_way = 0;
    ForEach([&](size_t, Partition& partition) {
      on_their_way += !Serves(partition.owner) && ServingBackups(partition, false) > 0;
    });
    ForEach([&](size_t t, Partition& partition) {
      if (Serves(partition.owner) || ServingBackups(partition, false) > 0) return;
      // Counted as under way also while it waits for its turn.
      if (on_their_way >= input_.max_moves)
        ++pending_;
      else if (BringUp(t, &partition))
        ++on_their_way;
    });
  }

  void AddBackups() {
    ForEach([&](size_t t, Partition& partition) {
      while (ServingBackups(partition, false) < desired_) {
        if (!BringUp(t, &partition)) break;
      }
    });
  }

  // Moves primaries from shards with many to shards with few, counting as if what is moving had
  // arrived.
  void Balance() {
    ForEach([&](size_t t, Partition& partition) {
      if (!Serves(partition.owner) || ServingBackups(partition, false) <= desired_) return;
      for (const Copy& copy : partition.backups) {
        if (copy.synced) continue;
        Arrive(t, partition.owner, copy.shard);
        break;
      }
    });
    const bool calm = pending_ == 0;
    while (moving_ < input_.max_moves) {
      const Move move = FindMove(calm);
      if (move.partition == nullptr) break;
      ++moving_, ++pending_;
      if (move.swap >= 0) {
        Promote(move.table, move.partition, move.swap, true);
        ++plan_->moved;
      } else {
        move.partition->backups.push_back({move.to, false, epoch_});
        ++copies_[move.to];
        Arrive(move.table, move.from, move.to);
      }
    }
  }
  void Arrive(size_t table, int from, int to) {
    of_table_[table][from]--, of_table_[table][to]++;
    primaries_[from]--, primaries_[to]++;
  }

  struct Move {
    size_t table = 0;
    Partition* partition = nullptr;
    int from = kNobody, to = kNobody;
    int swap = -1;  // the synced backup that is at `to` already
  };
  Move FindMove(bool calm) {
    std::vector<int> order;
    for (int s = 0; s < static_cast<int>(input_.servers.size()); ++s) {
      if (Serves(s)) order.push_back(s);
    }
    for (size_t t = 0; t < tables_.size(); ++t) {
      std::sort(order.begin(), order.end(), [&](int a, int b) {
        return std::tuple(of_table_[t][a], primaries_[a], a) <
               std::tuple(of_table_[t][b], primaries_[b], b);
      });
      for (size_t high = order.size(); high-- > 0;) {
        for (size_t low = 0; low < high; ++low) {
          if (of_table_[t][order[high]] == of_table_[t][order[low]]) break;
          if (!Better(t, order[high], order[low])) continue;
          const Move move = FindPartition(t, order[high], order[low], calm);
          if (move.partition != nullptr) return move;
        }
      }
    }
    return {};
  }
  // A partition that can go from one shard to the other. While copies are being brought up none
  // changes places with its copy: for a moment it would have no other.
  Move FindPartition(size_t t, int from, int to, bool calm) {
    Move move{t, nullptr, from, to, -1};
    bool move_spreads = false;  // brings no two copies to one host: better than one that does
    for (Partition& partition : tables_[t]) {
      if (partition.owner != from || partition.backups.size() > desired_) continue;
      int swap = -1;
      for (size_t i = 0; i < partition.backups.size(); ++i) {
        if (partition.backups[i].shard == to && partition.backups[i].synced) swap = i;
      }
      if (swap >= 0 && calm) return {t, &partition, from, to, swap};
      if (HasCopyOn(partition, ProcessOf(to), input_.servers)) continue;
      const bool spread = !SharesHost(partition, to, false) || SharesHost(partition, from, false);
      if (move.partition != nullptr && (move_spreads || !spread)) continue;
      move.partition = &partition;
      move_spreads = spread;
    }
    return move;
  }

  template <typename Visit>
  void ForEach(Visit visit) {
    for (size_t t = 0; t < tables_.size(); ++t) {
      for (Partition& partition : tables_[t]) visit(t, partition);
    }
  }

  const PlanInput& input_;
  const uint64_t epoch_;
  Plan* const plan_;
  std::vector<int> hosts_;  // by shard
  std::vector<std::vector<Partition>> tables_;
  std::set<uint64_t> serving_;              // processes
  size_t desired_ = 0;                      // backups of a partition
  std::vector<std::vector<int>> of_table_;  // primaries by table and shard
  std::vector<int> primaries_, copies_;     // by shard, over all tables; copies include primaries
  uint32_t pending_ = 0;                    // copies being brought up, or to be
  uint32_t moving_ = 0;                     // partitions with a copy too many
};

}  // namespace

Plan MakePlan(const PlanInput& input, const pb::Assignment& current) {
  Plan plan;
  plan.next = current;
  ServerPlanner servers(input, current, &plan);
  if (!servers.Run()) return plan;
  servers.Write(current.map(), plan.next.mutable_map());
  PlanRanks(input, current, &plan);
  plan.changed = plan.next.SerializeAsString() != current.SerializeAsString();
  if (plan.changed) plan.next.mutable_map()->set_epoch(current.map().epoch() + 1);
  return plan;
}

}  // namespace parley
