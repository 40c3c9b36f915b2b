// The functions of each row of kernels.inc, one translation unit a row.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_KERNELS_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_KERNELS_H_

#include "kernels/matmul_nbits/matmul_nbits.h"

namespace qcompiler {
namespace matmul_nbits {

constexpr float kLargestFloat = 3.40282347e38f;
constexpr float kSmallestMaximum =
    1e-36f;  // of a group's |x|: below it 127 / maximum is near the end of float32, and the group counts as 0

#define QCOMPILER_KERNEL(name, suffix, tile, condition)                                               \
  constexpr int kMaxTile##suffix = tile;                                                              \
  void Quantize##suffix(const void* x, const PackedWeights& weights, Activations* out, int64_t begin, \
                        int64_t end);                                                                 \
  void Multiply##suffix(const Activations& x, const PackedWeights& weights, const Columns& columns,   \
                        int64_t begin, int64_t end, uint8_t* scratch);
#include "kernels/matmul_nbits/kernels.inc"
#undef QCOMPILER_KERNEL

}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_KERNELS_H_
