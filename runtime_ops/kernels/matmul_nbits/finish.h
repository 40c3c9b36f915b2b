// What becomes of sums on their way to y: bias, activation, gate, residual; plain loops over vectors of the
// compiler's.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_

#include <cstring>

#include "kernels/matmul_nbits/activation.h"
#include "kernels/matmul_nbits/matmul_nbits.h"
#include "kernels/matmul_nbits/quantize.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t kSegment = 16;  // columns at once

QCOMPILER_INLINE void LoadSegment(const float* from, int64_t count, Floats16* to) {
  if (count >= kSegment) {
    std::memcpy(to, from, sizeof(*to));  // without a call
  } else {
    *to = Floats16{};
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }
}

QCOMPILER_INLINE void StoreSegment(const Floats16& from, int64_t count, float* to) {
  if (count >= kSegment) {
    std::memcpy(to, &from, sizeof(from));  // without a call
  } else {
    std::memcpy(to, &from, static_cast<size_t>(count) * sizeof(float));
  }
}

// Row m of a strip's sums, which begin at column `column` of the product, to y.
template <int64_t kWidth>
QCOMPILER_INLINE void Finish(const float* sums, const Columns& columns, int64_t m, int64_t column) {
  const int64_t at = m * columns.stride + column, left = columns.end - column;
  const bool plain = columns.added[0] == nullptr && columns.added[1] == nullptr &&
                     columns.residual == nullptr && columns.activation == Activation::kNone && !columns.gated;
  if (plain && left >= kWidth) {
    std::memcpy(columns.y + at, sums, sizeof(float) * kWidth);
    return;
  }
  for (int64_t first = 0; first < kWidth && first < left; first += kSegment) {
    const int64_t count = Least(kSegment, left - first);
    Floats16 value, other;
    LoadSegment(sums + first, kSegment, &value);
    for (const float* added : columns.added) {
      if (added == nullptr) continue;
      LoadSegment(added + column + first, count, &other);
      value += other;
    }
    Activate(columns.activation, columns.alpha, &value);
    if (columns.gated) {
      LoadSegment(columns.y + at + first, count, &other);
      TimesSigmoid(other, &other);
      value *= other;
    }
    if (columns.residual != nullptr) {
      LoadSegment(columns.residual + at + first, count, &other);
      value += other;
    }
    StoreSegment(value, count, columns.y + at + first);
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_
