// The kernels for every machine that runs Parley at all (x86-64-v3).
#define PARLEY_KERNEL_NAMESPACE kernels_avx2
#define PARLEY_KERNEL_ISA "avx2"
#include "ps/table/optimizer_kernels.inc.h"
#include "ps/table/row_kernels.inc.h"
