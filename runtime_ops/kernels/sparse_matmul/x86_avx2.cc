// The kernel with the registers of AVX2.
#define QCOMPILER_SPARSE_MATMUL_LANES 8
#include "kernels/sparse_matmul/vectors.h"

QCOMPILER_DEFINE_KERNEL(Avx2)
