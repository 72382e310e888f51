# parley_library(NAME SOURCES ... DEPS ...): one static library per folder, target parley_NAME.
function(parley_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(parley_${name} STATIC ${ARG_SOURCES})
  target_include_directories(parley_${name} PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  target_link_libraries(parley_${name} PUBLIC ${ARG_DEPS})
  parley_precompile(parley_${name})
endfunction()

# parley_binary(NAME SOURCES ... DEPS ...): an executable under build/<preset>/bin.
function(parley_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  parley_precompile(${name})
endfunction()

# parley_test(NAME SOURCES ... DEPS ... [LABELS ...] [TIMEOUT seconds] [OPTIMIZED]): a gtest program, one ctest entry.
# OPTIMIZED is for one whose own code runs for longer than that takes to compile; others have PARLEY_TEST_OPTIONS.
# Labels: "bytes" = handles foreign bytes or manual memory (runs under ASan/UBSan), "threads" = has threads (TSan).
function(parley_test name)
  cmake_parse_arguments(ARG "OPTIMIZED" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(ARG_OPTIMIZED)
    parley_precompile(${name})
  else()
    target_compile_options(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${PARLEY_TEST_OPTIONS}>")
    parley_precompile(${name} test)
  endif()
  # Each file of a test has rigs of its own, many of the same name.
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  # The same wherever it runs: without a GPU, unless it is about one.
  if(NOT "gpu" IN_LIST ARG_LABELS)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "CUDA_VISIBLE_DEVICES=")
  endif()
endfunction()
