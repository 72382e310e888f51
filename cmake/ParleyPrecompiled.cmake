# Headers of other projects, read once per kind of target instead of once per file: a third or more of what compiling one of
# ours takes. None of Parley's own, so that a change of ours compiles only what includes it. A file still includes all that it
# uses: the preset `cpu` builds without.
option(PARLEY_PRECOMPILE "Precompile the headers of the standard library, Abseil, protobuf and GoogleTest" ON)

set(PARLEY_PRECOMPILED
  <algorithm> <array> <chrono> <cmath> <cstdint> <deque> <filesystem> <fstream> <functional> <map> <memory> <optional>
  <random> <set> <sstream> <string> <string_view> <thread> <utility> <vector>
  <absl/container/flat_hash_map.h> <absl/functional/any_invocable.h> <absl/status/statusor.h> <absl/strings/str_cat.h>
  <absl/strings/str_format.h> <absl/strings/str_join.h> <absl/strings/str_split.h> <absl/time/time.h>
  <absl/types/span.h>
  <google/protobuf/generated_enum_reflection.h> <google/protobuf/generated_message_reflection.h>
  <google/protobuf/generated_message_util.h> <google/protobuf/map.h> <google/protobuf/map_entry.h>
  <google/protobuf/map_field_inl.h> <google/protobuf/message.h> <google/protobuf/repeated_field.h>
  <google/protobuf/text_format.h> <google/protobuf/unknown_field_set.h>)

if(PARLEY_PRECOMPILE)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/precompiled.cc CONTENT "// Of which only the headers are wanted.\n")
  add_library(parley_precompiled OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
  target_precompile_headers(parley_precompiled PRIVATE ${PARLEY_PRECOMPILED})
  if(PARLEY_BUILD_TESTS)
    add_library(parley_precompiled_test OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
    target_precompile_headers(parley_precompiled_test PRIVATE ${PARLEY_PRECOMPILED} <gmock/gmock.h> <gtest/gtest.h>)
    target_link_libraries(parley_precompiled_test PRIVATE GTest::gmock)
    target_compile_options(parley_precompiled_test PRIVATE ${PARLEY_TEST_OPTIONS})
  endif()
  add_compile_options($<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)  # for ccache
endif()

# parley_precompile(TARGET [KIND]): KIND is `test` for what is compiled with PARLEY_TEST_OPTIONS.
function(parley_precompile target)
  if(PARLEY_PRECOMPILE)
    set(from parley_precompiled)
    if("test" IN_LIST ARGN)
      set(from parley_precompiled_test)
    endif()
    target_precompile_headers(${target} REUSE_FROM ${from})
  endif()
endfunction()
