// The kernel with vectors that every CPU of its kind has: SSE2, NEON.
#define QCOMPILER_SPARSE_MATMUL_LANES 4
#include "kernels/sparse_matmul/vectors.h"

QCOMPILER_DEFINE_KERNEL(Vectors)
