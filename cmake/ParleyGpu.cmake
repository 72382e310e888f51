# CUDA, if it is found: whether there is a GPU shows only when a program runs.
option(PARLEY_WITH_CUDA "Build the GPU code with CUDA if it is found" ON)

# The GPUs of data centres since 2020, and PTX for what comes later. cuda_gpu.cc refuses what is older than the first.
set(PARLEY_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "As CMAKE_CUDA_ARCHITECTURES")

set(PARLEY_HAVE_CUDA OFF)
if(PARLEY_WITH_CUDA)
  # There NVIDIA's packages put it, and leave PATH to the user.
  find_program(PARLEY_NVCC nvcc PATHS /usr/local/cuda/bin)
endif()
if(NOT PARLEY_WITH_CUDA)
  set(PARLEY_NO_CUDA "switched off")
elseif(NOT PARLEY_NVCC)
  set(PARLEY_NO_CUDA "nvcc not found")
else()
  execute_process(COMMAND ${PARLEY_NVCC} --version OUTPUT_VARIABLE PARLEY_NVCC_VERSION)
  string(REGEX MATCH "release ([0-9.]+)" PARLEY_NVCC_VERSION "${PARLEY_NVCC_VERSION}")
  set(PARLEY_NVCC_VERSION "${CMAKE_MATCH_1}")
  if(NOT PARLEY_NVCC_VERSION VERSION_GREATER_EQUAL 12.5)  # C++20, cudaGetDriverEntryPointByVersion
    set(PARLEY_NO_CUDA "${PARLEY_NVCC} is of CUDA '${PARLEY_NVCC_VERSION}', needed is 12.5 or later")
  else()
    set(PARLEY_HAVE_CUDA ON)
  endif()
endif()

if(PARLEY_HAVE_CUDA)
  set(CMAKE_CUDA_COMPILER ${PARLEY_NVCC})
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  set(CMAKE_CUDA_ARCHITECTURES ${PARLEY_CUDA_ARCHITECTURES})
  if(PARLEY_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${PARLEY_CCACHE})
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know that nvcc has it
  endif()
  find_package(CUDAToolkit REQUIRED)
  # Opened when a GPU is, not linked: its start-up code takes 100 ms, which every program would pay.
  find_library(PARLEY_CUBLAS_LIBRARY cublas HINTS ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT} PATH_SUFFIXES lib64 lib)
  if(NOT PARLEY_CUBLAS_LIBRARY)
    set(PARLEY_HAVE_CUDA OFF)
    set(PARLEY_NO_CUDA "no cuBLAS beside ${PARLEY_NVCC}")
  endif()
endif()

if(PARLEY_HAVE_CUDA)
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^([0-9]+[a-z]?)(-real)?$" "sm_\\1" OUTPUT_VARIABLE PARLEY_CUDA_CODE)
  list(TRANSFORM PARLEY_CUDA_CODE REPLACE "^([0-9]+)-virtual$" "PTX \\1")
  list(JOIN PARLEY_CUDA_CODE ", " PARLEY_CUDA_CODE)
  message(STATUS "parley: GPU by CUDA ${PARLEY_NVCC_VERSION} (${PARLEY_NVCC}): ${PARLEY_CUDA_CODE}")
else()
  message(STATUS "parley: no GPU code (${PARLEY_NO_CUDA})")
endif()

# parley_gpu_kernels(TARGET FILES...): adds files of kernels (ps/gpu/kernel.h) to a target of this folder. nvcc compiles
# them where there is CUDA, the C++ compiler elsewhere. They include nothing of Abseil, which is slow to read for nvcc.
function(parley_gpu_kernels target)
  target_sources(${target} PRIVATE ${ARGN})
  if(PARLEY_HAVE_CUDA)
    list(JOIN PARLEY_HOST_OPTIONS "," host_options)
    # -fmad=false is -ffp-contract=off for the device: the same bits as on the CPU.
    set_source_files_properties(${ARGN} PROPERTIES
      LANGUAGE CUDA
      COMPILE_OPTIONS "-fmad=false;--expt-relaxed-constexpr;-Xcompiler=${host_options}")
  endif()
endfunction()
