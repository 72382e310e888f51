option(PARLEY_BUILD_TESTS "Build the tests" ON)
set(PARLEY_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize=: 'address,undefined' or 'thread'")
option(PARLEY_FUZZ "Build the fuzz targets for libFuzzer; needs clang" OFF)

# One baseline for every file, so that a struct looks the same everywhere; hot loops pick wider code at run time. nvcc has
# to be told in its own words, with the same meaning (parley_gpu_kernels).
set(PARLEY_HOST_OPTIONS -march=x86-64-v3 -Wall -Wextra -Wno-unused-parameter -fno-omit-frame-pointer)

# The same expression must give the same bits in every translation unit: no silent fused multiply-add.
list(APPEND PARLEY_HOST_OPTIONS -ffp-contract=off)
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${PARLEY_HOST_OPTIONS}>")

if(PARLEY_SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${PARLEY_SANITIZE};-fno-sanitize-recover=all>")
  add_link_options(-fsanitize=${PARLEY_SANITIZE})
  if(PARLEY_SANITIZE MATCHES "undefined")
    # Asks at every use of an object with virtual functions whether it is what its type says: two fifths of the time to
    # compile a test, for mistakes of which AddressSanitizer finds the common one, a call to what is gone.
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fno-sanitize=vptr>")
  endif()
endif()

# Tests are compiled in more time than they run for: without optimisation, and without line numbers, of which gtest tells
# its own. In a debug build they keep theirs.
set(PARLEY_TEST_OPTIONS -O0 -g0)
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(PARLEY_TEST_OPTIONS -O0)
elseif(PARLEY_SANITIZE MATCHES "thread")
  # Unoptimised, a test holds functions of std::string, which libraries then call instead of their own: ThreadSanitizer
  # would see what they write, and not how they order it.
  set(PARLEY_TEST_OPTIONS -O1 -g0)
elseif(PARLEY_SANITIZE MATCHES "undefined")
  list(APPEND PARLEY_TEST_OPTIONS -fno-sanitize=null,alignment)  # of every pointer in every assertion
endif()

if(PARLEY_FUZZ)
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)  # coverage for libFuzzer, which only the targets link
endif()

find_program(PARLEY_CCACHE ccache)
if(PARLEY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Sloppy only in that it need not see inside of precompiled headers, whose content it compares instead.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${PARLEY_CCACHE})
endif()
