#include "ps/config/copied_partitions.h"

#include "absl/strings/str_cat.h"
#include "ps/codec/payload_codec.h"

namespace parley {

bool NormsForbidCopies(const pb::Experiment& experiment) {
  return experiment.optimizer().clip_norm() > 0 &&
         experiment.consistency().mode() != pb::Consistency::BSP;
}

bool ChangesForbidCopies(const pb::Experiment& experiment) {
  return experiment.consistency().backup_workers() > 0 &&
         KeepsResidual(experiment.compression().pull());
}

std::string WhyPartitionsStay(const pb::Experiment& experiment) {
  if (NormsForbidCopies(experiment)) {
    return absl::StrCat("optimizer.clip_norm with mode ",
                        pb::Consistency::Mode_Name(experiment.consistency().mode()));
  }
  if (ChangesForbidCopies(experiment)) {
    return absl::StrCat("compression.pull '", experiment.compression().pull(),
                        "' with consistency.backup_workers");
  }
  return "";
}

// By the default settings: those of an experiment may be out of range, which is said elsewhere.
bool KeepsResidual(const std::string& codec) {
  const auto made = PayloadCodec::Create(codec, pb::Compression());
  return made.ok() && *made != nullptr && (*made)->keeps_residual();
}

}  // namespace parley
