#include "ps/config/validate_compute.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace parley {

void FindComputeProblems(const pb::Experiment& experiment, std::vector<ConfigProblem>* problems) {
  const pb::Compute& compute = experiment.compute();
  if (compute.placement() != pb::Compute::GPU) return;
  const auto add = [problems](std::string path, std::string what, const std::string& allowed) {
    problems->push_back({std::move(path), absl::StrCat(what, " with compute.placement GPU"),
                         absl::StrCat(allowed, ", or placement HOST")});
  };
  if (compute.device() == pb::Compute::CPU) {
    add("compute.device", "CPU", "CUDA, CUDA_SIMULATED, AUTO where there is a GPU");
  }
  const pb::Cluster& cluster = experiment.cluster();
  if (cluster.transport() != pb::Cluster::AUTO && cluster.transport() != pb::Cluster::SHM) {
    add("cluster.transport",
        absl::StrCat(pb::Cluster::Transport_Name(cluster.transport()),
                     ", which cannot lend a GPU's memory,"),
        "AUTO, SHM");
  }
  if (cluster.replicas() > 0) {
    add("cluster.replicas", absl::StrCat(cluster.replicas(), ", whose copies lie in host memory,"),
        "0");
  }
  for (const auto& [path, codec] :
       {std::pair{"compression.push", experiment.compression().push()},
        std::pair{"compression.pull", experiment.compression().pull()}}) {
    if (codec != "none" && !codec.empty()) {
      add(path, absl::StrCat("'", codec, "', which the CPU encodes,"), "none");
    }
  }
}

}  // namespace parley
