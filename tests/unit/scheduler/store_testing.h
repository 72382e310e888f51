// A store's calls, made on a loop of their own and waited for.
#ifndef PARLEY_TESTS_UNIT_SCHEDULER_STORE_TESTING_H_
#define PARLEY_TESTS_UNIT_SCHEDULER_STORE_TESTING_H_

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/base/loop_env.h"
#include "scheduler/offloaded_store.h"

namespace parley {

// Runs `body(env)` on a loop until `body` or what it has started calls env->Stop().
template <typename Body>
void OnALoop(OffloadedStore* store, Body body) {
  LoopEnv env({.offload_threads = 2});
  store->Attach(&env);
  env.Post([&] { body(&env); });
  env.Run();
}

inline absl::StatusOr<std::optional<std::string>> OpenAndWait(OffloadedStore* store) {
  absl::StatusOr<std::optional<std::string>> result = absl::UnknownError("not called");
  OnALoop(store, [&](LoopEnv* env) {
    store->Open([&result, env](absl::StatusOr<std::optional<std::string>> opened) {
      result = std::move(opened);
      env->Stop();
    });
  });
  return result;
}

inline absl::Status SaveAndWait(OffloadedStore* store, const std::string& state) {
  absl::Status result = absl::UnknownError("not called");
  OnALoop(store, [&](LoopEnv* env) {
    store->Save(state, [&result, env](absl::Status saved) {
      result = std::move(saved);
      env->Stop();
    });
  });
  return result;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SCHEDULER_STORE_TESTING_H_
