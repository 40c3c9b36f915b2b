// The functions of each row of kernels.inc, one translation unit a row.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_KERNELS_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_KERNELS_H_

#include "kernels/sparse_matmul/sparse_matmul.h"

namespace qcompiler {
namespace sparse_matmul {

#define QCOMPILER_KERNEL(name, suffix, condition)                                                    \
  void Arrange##suffix(const Rows& x, const Panels& panels, float* out, int64_t begin, int64_t end); \
  void Multiply##suffix(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end);
#include "kernels/sparse_matmul/kernels.inc"
#undef QCOMPILER_KERNEL

}  // namespace sparse_matmul
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_KERNELS_H_
