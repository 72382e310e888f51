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
endif()

if(PARLEY_FUZZ)
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)  # coverage for libFuzzer, which only the targets link
endif()

find_program(PARLEY_CCACHE ccache)
if(PARLEY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${PARLEY_CCACHE})
endif()
