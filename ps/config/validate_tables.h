// What tables ask of an experiment: codecs, embeddings and the data they look up. The part of
// FindConfigProblems (validate.h) that is about them. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_VALIDATE_TABLES_H_
#define PARLEY_PS_CONFIG_VALIDATE_TABLES_H_

#include <vector>

#include "proto/experiment.pb.h"
#include "ps/config/validate.h"

namespace parley {

// An embedding where none may be, or none where keys come; what its table cannot be.
void FindEmbeddingProblems(const pb::Experiment& experiment, std::vector<ConfigProblem>* problems);

// Codecs that there are not, or that the mode does not allow.
void FindCompressionProblems(const pb::Experiment& experiment,
                             std::vector<ConfigProblem>* problems);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_VALIDATE_TABLES_H_
