// The same kernels in 512-bit registers; compiled with -mavx512*, called only where the processor
// has it.
#define PARLEY_KERNEL_NAMESPACE kernels_avx512
#define PARLEY_KERNEL_ISA "avx512"
#include "ps/table/optimizer_kernels.inc.h"
#include "ps/table/row_kernels.inc.h"
