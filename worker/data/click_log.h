// ClickLog: samples of keys from a text file, one a line, plain or gzip by content.
//
//   line  := feat ("," feat)* (tab | space) label
//   feat  := uint64 below 2^64 - 1, alone or with ":" and a value, a finite decimal number
//   label := "0" | "1"
//
// A key without a value has 1. Lines of more than `fields` features are cut, shorter ones filled
// with kNoKey. Pure functions, thread-safe.
#ifndef PARLEY_WORKER_DATA_CLICK_LOG_H_
#define PARLEY_WORKER_DATA_CLICK_LOG_H_

#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"
#include "worker/data/dataset.h"

namespace parley {

// Both sets of data.click_log(), of at most data.train_limit() and data.test_limit() samples. Where
// `test` names no file, the last tenth of `train` is the test set.
//
// Errors: those of the file; kInvalidArgument is one line, "FILE:LINE: what, what is allowed".
absl::StatusOr<DataSplits> LoadClickLog(const pb::Data& data);

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_CLICK_LOG_H_
