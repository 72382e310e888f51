#include "tests/conformance/gpu_test_kernels.h"

PARLEY_DEFINE_GPU_KERNEL(parley::TestScale);
PARLEY_DEFINE_GPU_KERNEL(parley::TestSum);
