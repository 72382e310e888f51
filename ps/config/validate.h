// Finds every impossible value of an experiment. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_VALIDATE_H_
#define PARLEY_PS_CONFIG_VALIDATE_H_

#include <string>
#include <vector>

#include "proto/experiment.pb.h"

namespace parley {

struct ConfigProblem {
  std::string path;     // "cluster.servers"
  std::string what;     // "0 is out of range"
  std::string allowed;  // "1..1024"
};

// All problems, in the order of experiment.proto. Shapes that do not fit each other are the model's
// to find (Model::Create).
std::vector<ConfigProblem> FindConfigProblems(const pb::Experiment& experiment);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_VALIDATE_H_
