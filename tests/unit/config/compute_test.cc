// What goes with dense tables in a GPU's memory, and what does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "ps/config/experiment.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kOnGpu[] = R"(name: "gpu"
data { synthetic { width: 8 } }
model { layer { linear { out: 4 } } layer { log_softmax {} } }
optimizer { sgd {} lr: 0.1 }
compute { placement: GPU }
)";

std::vector<std::string> Errors(const std::vector<std::string>& overrides) {
  const absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(kOnGpu, "f", overrides);
  if (loaded.ok()) return {};
  return absl::StrSplit(std::string(loaded.status().message()), '\n');
}

TEST(Placement, GoesWithGpusAndWithWhatLends) {
  EXPECT_THAT(Errors({}), ElementsAre());
  for (const char* good :
       {"compute.device=CUDA", "compute.device=CUDA_SIMULATED", "cluster.transport=SHM",
        "compression.push=none", "optimizer.clip_norm=1", "consistency.mode=ASP"}) {
    EXPECT_THAT(Errors({good}), ElementsAre()) << good;
  }
}

TEST(Placement, EachThatReadsPayloadOnTheCpuIsRefused) {
  EXPECT_THAT(Errors({"compute.device=CPU"}),
              ElementsAre("--set compute.device=CPU: field 'compute.device': CPU with "
                          "compute.placement GPU; allowed: CUDA, CUDA_SIMULATED, AUTO where there "
                          "is a GPU, or placement HOST"));
  EXPECT_THAT(Errors({"cluster.transport=TCP"}),
              ElementsAre("--set cluster.transport=TCP: field 'cluster.transport': TCP, which "
                          "cannot lend a GPU's memory, with compute.placement GPU; allowed: AUTO, "
                          "SHM, or placement HOST"));
  EXPECT_THAT(Errors({"cluster.transport=IPC"}),
              ElementsAre(HasSubstr("'cluster.transport': IPC")));
  EXPECT_THAT(Errors({"cluster.replicas=1"}),
              ElementsAre("--set cluster.replicas=1: field 'cluster.replicas': 1, whose copies lie "
                          "in host memory, with compute.placement GPU; allowed: 0, or placement "
                          "HOST"));
  EXPECT_THAT(Errors({"compression.push=fp16", "compression.pull=bf16"}),
              ElementsAre("--set compression.push=fp16: field 'compression.push': 'fp16', which "
                          "the CPU encodes, with compute.placement GPU; allowed: none, or "
                          "placement HOST",
                          HasSubstr("'compression.pull': 'bf16'")));
  EXPECT_THAT(Errors({"compute.placement=HOST", "cluster.replicas=1", "compute.device=CPU"}),
              ElementsAre());
}

}  // namespace
}  // namespace parley
