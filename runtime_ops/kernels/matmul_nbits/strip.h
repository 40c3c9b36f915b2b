// The rows of weights that are worked on together: where they are, and their codes as bytes.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_STRIP_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_STRIP_H_

#include <utility>

#include "kernels/matmul_nbits/units.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

// 0 .. kCount - 1 at compile time. What is unrolled below are folds over these, in functions that take sums
// by reference: with lambdas, or loops over arrays, g++ 12 keeps the sums in memory beside the registers.
template <int... i>
using Indices = std::integer_sequence<int, i...>;
template <int kCount>
using UpTo = std::make_integer_sequence<int, kCount>;

// Units that are worked on together: groups are multiples of 16, which is 4 quads.
template <class Unit>
constexpr int kTogether = Unit::kQuads >= 4 ? 1 : 4 / Unit::kQuads;

// Where a strip's weights are, from its first group on.
template <class Isa>
struct Strip {
  static constexpr int kRowsOfStrip = Isa::kVectors * Isa::kLanes;

  const uint8_t* codes[Isa::kVectors];  // of the register's first row
  const float* scales[Isa::kVectors];
  const uint8_t* zero_points[Isa::kVectors];  // nullptr where symmetric
  int64_t group_bytes;
  const uint8_t* table;

  Strip(const PackedWeights& weights, int64_t index, int64_t first_group)
      : group_bytes(weights.group_bytes()), table(weights.table) {
    for (int v = 0; v < Isa::kVectors; ++v) {
      // Of an odd number of blocks the last one is taken twice, and stored once.
      const int64_t row = index * kRowsOfStrip + v * Isa::kLanes, lane = row % kRows;
      const int64_t cell = Least(row / kRows, weights.blocks - 1) * weights.groups + first_group;
      codes[v] = weights.codes + cell * group_bytes + lane * 4;
      scales[v] = weights.scales + cell * kRows + lane;
      zero_points[v] = weights.symmetric() ? nullptr : weights.zero_points + cell * kRows + lane;
    }
  }
};

// The codes of a strip as bytes: [quad][register][4 kLanes].
template <class Isa, class Unit, int... i>
QCOMPILER_INLINE void StoreQuads(Indices<i...>, const uint8_t* lines, const uint8_t* table, uint8_t* out) {
  constexpr int kQuad = Isa::kVectors * 4 * Isa::kLanes;
  (Isa::Store(out + i * kQuad,
              Unit::template Quad<i % Unit::kQuads>(lines + i / Unit::kQuads * Unit::kBytes, table)),
   ...);
}

template <class Isa, class Unit>
QCOMPILER_INLINE void StoreUnits(const uint8_t* lines, int64_t units, const uint8_t* table, uint8_t* out) {
  constexpr int kQuads = Unit::kQuads * kTogether<Unit>, kQuad = Isa::kVectors * 4 * Isa::kLanes;
  for (int64_t unit = 0; unit < units; unit += kTogether<Unit>) {
    StoreQuads<Isa, Unit>(UpTo<kQuads>(), lines + unit * Unit::kBytes, table,
                          out + unit * Unit::kQuads * kQuad);
  }
}

template <class Isa, int kBits>
void Unpack(const Strip<Isa>& strip, int64_t group, int64_t groups, uint8_t* panel) {
  using Of = Unit<Isa, kBits>;
  constexpr int kBytes = 4 * Isa::kLanes, kQuad = Isa::kVectors * kBytes;
  const int64_t units = group / (4 * Of::kQuads);
  for (int64_t g = 0; g < groups; ++g) {
    for (int v = 0; v < Isa::kVectors; ++v) {
      const uint8_t* lines = strip.codes[v] + g * strip.group_bytes;
      uint8_t* out = panel + g * (group / 4) * kQuad + v * kBytes;
      StoreUnits<Isa, Of>(lines, units, strip.table, out);
      if constexpr (kBits == 3) {
        if (group % 32 != 0)
          StoreUnits<Isa, HalfUnit<Isa>>(lines + units * Of::kBytes, 1, strip.table, out + units * 8 * kQuad);
      }
    }
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_STRIP_H_
