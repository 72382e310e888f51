// Compiled by nvcc where there is CUDA, by the C++ compiler elsewhere.
#include "models/gpu/layer_kernels.h"
#include "models/gpu/lookup_kernels.h"
#include "models/gpu/unfold_kernels.h"

PARLEY_DEFINE_GPU_KERNEL(parley::AddBiasKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::ReluKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::ReluGradientKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::ToPlainKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::ToLastKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::DropoutKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::DropoutGradientKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::MaxPoolKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::MaxPoolGradientKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::LogSoftmaxKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::NllRowsKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::NllSumKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::NllGradientKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::SumRowsKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::ToBf16Kernel);
PARLEY_DEFINE_GPU_KERNEL(parley::UnfoldKernel<float>);
PARLEY_DEFINE_GPU_KERNEL(parley::UnfoldKernel<uint16_t>);
PARLEY_DEFINE_GPU_KERNEL(parley::FoldKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::WeightsToRowsKernel<float>);
PARLEY_DEFINE_GPU_KERNEL(parley::WeightsToRowsKernel<uint16_t>);
PARLEY_DEFINE_GPU_KERNEL(parley::RowsToWeightsKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::LookupKernel);
PARLEY_DEFINE_GPU_KERNEL(parley::LookupGradientKernel);
