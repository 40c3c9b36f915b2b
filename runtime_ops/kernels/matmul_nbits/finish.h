// What becomes of sums on their way to y: bias, gate, residual; plain loops over vectors of the compiler's.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_

#include <cstring>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "kernels/matmul_nbits/quantize.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t kSegment = 16;  // columns at once

// v / (1 + exp(-v)). exp(-v) is 2^whole times 2^part, part within half, by the series of exp to the seventh
// power: 1e-8 of it. Where exp(-v) is past 2^126, less than 1e-36 is left of v: 0, and NaN of -infinity.
QCOMPILER_INLINE void Silu(Floats16* value) {
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  constexpr int32_t kRoundingBits = 0x4b400000;
  constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;
  const Floats16 least = Floats16{} - 126.0f, most = Floats16{} + 126.0f;
  Floats16 power = *value * -kLog2E;
  power = power < least ? least : power;
  power = power > most ? most : power;
  const Floats16 shifted = power + kRounding;
  const Floats16 part = (power - (shifted - kRounding)) * kLn2;
  const Ints16 whole = reinterpret_cast<Ints16>(shifted) - kRoundingBits;
  Floats16 series = part * (1.0f / 5040) + 1.0f / 720;
  series = series * part + 1.0f / 120;
  series = series * part + 1.0f / 24;
  series = series * part + 1.0f / 6;
  series = series * part + 0.5f;
  series = series * part + 1.0f;
  series = series * part + 1.0f;
  const Floats16 result = *value / (1.0f + series * reinterpret_cast<Floats16>((whole + 127) << 23));
  *value = *value * -kLog2E > most ? *value * 0.0f : result;
}

QCOMPILER_INLINE void LoadSegment(const float* from, int64_t count, Floats16* to) {
  if (count >= kSegment) {
    std::memcpy(to, from, sizeof(*to));  // without a call
  } else {
    *to = Floats16{};
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }
}

// Row m of a strip's sums, which begin at column `column` of the product, to y.
template <int64_t kWidth>
QCOMPILER_INLINE void Finish(const float* sums, const Columns& columns, int64_t m, int64_t column) {
  const int64_t at = m * columns.stride + column, left = columns.end - column;
  const bool plain = columns.added[0] == nullptr && columns.added[1] == nullptr &&
                     columns.residual == nullptr && !columns.gated;
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
    if (columns.gated) {
      LoadSegment(columns.y + at + first, count, &other);
      Silu(&other);
      value *= other;
    }
    if (columns.residual != nullptr) {
      LoadSegment(columns.residual + at + first, count, &other);
      value += other;
    }
    std::memcpy(columns.y + at + first, &value, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FINISH_H_
