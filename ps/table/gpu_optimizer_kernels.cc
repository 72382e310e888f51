// Compiled by nvcc where there is CUDA.
#include "ps/table/gpu_optimizer_kernels.h"

PARLEY_DEFINE_GPU_KERNEL(parley::gpu_optimizer::Update);
PARLEY_DEFINE_GPU_KERNEL(parley::gpu_optimizer::Sum);
PARLEY_DEFINE_GPU_KERNEL(parley::gpu_optimizer::SumOfSquares);
PARLEY_DEFINE_GPU_KERNEL(parley::gpu_optimizer::Fill);
