// The two functions of a kernel, for any instruction set: a source file per row of kernels.inc includes this
// with a struct `Isa` that wraps its registers.
//
// Few rows of activation (one tile): codes are unpacked in registers as they come from memory. Many: the
// codes of a strip are unpacked to bytes once for as many columns as the scratch holds, and every tile of
// activations goes over them.
//
// Functions here have internal linkage, and none of the standard library's inline ones is called: of those
// the linker keeps one copy for all files, which could be the one with instructions that this CPU has not.
// (What matmul_nbits.h defines in its structs is inlined wherever it is optimized.)
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TILE_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TILE_H_

#include <cmath>
#include <cstring>

#include "kernels/matmul_nbits/kernels.h"
#include "kernels/matmul_nbits/quantize.h"
#include "kernels/matmul_nbits/strip.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t kAhead = 2048;  // bytes that memory is asked for in advance when a matrix is read once

// Sums of products of kHeight rows with a strip: exact ones of a group.
template <class Isa, int kHeight>
struct Sums {
  static constexpr int kChains = Isa::Chains(kHeight);
  typename Isa::Ints at[kHeight][Isa::kVectors][kChains];
};

template <class Isa, int kBits, int kChain, int m, int kHeight, int... v>
QCOMPILER_INLINE void AddRow(Indices<v...>, Sums<Isa, kHeight>& sums,
                             const typename Isa::Ints (&codes)[sizeof...(v)], typename Isa::Ints a) {
  ((sums.at[m][v][kChain] = Isa::template Dot<kBits>(sums.at[m][v][kChain], codes[v], a)), ...);
}

// One quad: its codes and, of every row of x, four numbers.
template <class Isa, int kBits, int kChain, int kHeight, int... m>
QCOMPILER_INLINE void AddQuad(Indices<m...>, Sums<Isa, kHeight>& sums,
                              const typename Isa::Ints (&codes)[Isa::kVectors], const int8_t* x) {
  (AddRow<Isa, kBits, kChain, m>(UpTo<Isa::kVectors>(), sums, codes, Isa::Broadcast4(x + m * 4)), ...);
}

// Quad i of a panel.
template <class Isa, int kBits, int i, int kHeight, int... v>
QCOMPILER_INLINE void AddUnpacked(Indices<v...>, Sums<Isa, kHeight>& sums, const uint8_t* panel,
                                  const int8_t* x) {
  constexpr int kBytes = 4 * Isa::kLanes;
  const typename Isa::Ints codes[] = {Isa::Load(panel + (i * Isa::kVectors + v) * kBytes)...};
  AddQuad<Isa, kBits, i % Sums<Isa, kHeight>::kChains>(UpTo<kHeight>(), sums, codes, x + i * kHeight * 4);
}

template <class Isa, int kBits, int kHeight, int... i>
QCOMPILER_INLINE void AddPanel(Indices<i...>, Sums<Isa, kHeight>& sums, const uint8_t* panel,
                               const int8_t* x) {
  (AddUnpacked<Isa, kBits, i>(UpTo<Isa::kVectors>(), sums, panel, x), ...);
}

// Quad i of the units that begin at byte `at` of a strip.
template <class Isa, class Unit, int kBits, int i, int kHeight, int... v>
QCOMPILER_INLINE void AddPacked(Indices<v...>, Sums<Isa, kHeight>& sums, const Strip<Isa>& strip, int64_t at,
                                const int8_t* x) {
  constexpr int kFrom = i / Unit::kQuads * Unit::kBytes;
  if constexpr (i % Unit::kQuads == 0) {
    ((v * Isa::kLanes % kRows == 0 ? Isa::Prefetch(strip.codes[v] + at + kFrom + kAhead) : void()), ...);
  }
  const typename Isa::Ints codes[] = {
      Unit::template Quad<i % Unit::kQuads>(strip.codes[v] + at + kFrom, strip.table)...};
  AddQuad<Isa, kBits, i % Sums<Isa, kHeight>::kChains>(UpTo<kHeight>(), sums, codes, x + i * kHeight * 4);
}

template <class Isa, class Unit, int kBits, int kHeight, int... i>
QCOMPILER_INLINE void AddUnits(Indices<i...>, Sums<Isa, kHeight>& sums, const Strip<Isa>& strip, int64_t at,
                               const int8_t* x) {
  (AddPacked<Isa, Unit, kBits, i>(UpTo<Isa::kVectors>(), sums, strip, at, x), ...);
}

// What a group's sums begin with: -zero_point sum a.
template <class Isa, int kHeight, int... v>
QCOMPILER_INLINE void Begin(Indices<v...>,
                            typename Isa::Ints (&row)[Isa::kVectors][Sums<Isa, kHeight>::kChains],
                            const typename Isa::Ints (&values)[Isa::kVectors]) {
  ((row[v][0] = values[v]), ...);
  if constexpr (Sums<Isa, kHeight>::kChains == 2) ((row[v][1] = Isa::Zero()), ...);
}

template <class Isa, int kHeight, int m, int... v>
QCOMPILER_INLINE void BeginRow(Indices<v...>, Sums<Isa, kHeight>& sums,
                               const typename Isa::Ints (&points)[Isa::kVectors], int32_t sum_of_x) {
  const typename Isa::Ints values[] = {Isa::MultiplyPoints(points[v], Isa::Broadcast(sum_of_x))...};
  Begin<Isa, kHeight>(Indices<v...>(), sums.at[m], values);
}

// ... where weights are symmetric: sums of x come multiplied with the middle already.
template <class Isa, int kHeight, int m, int... v>
QCOMPILER_INLINE void BeginSymmetric(Indices<v...>, Sums<Isa, kHeight>& sums, typename Isa::Ints value) {
  const typename Isa::Ints values[] = {(static_cast<void>(v), value)...};
  Begin<Isa, kHeight>(Indices<v...>(), sums.at[m], values);
}

// Codes are less by kLess than the contract says.
template <class Isa, int kLess, int... v>
QCOMPILER_INLINE void LoadZeroPoints(Indices<v...>, const Strip<Isa>& strip, int64_t g,
                                     typename Isa::Ints (&points)[Isa::kVectors]) {
  ((points[v] = Isa::Widen(strip.zero_points[v] + g * kRows)), ...);
  if constexpr (kLess != 0) ((points[v] = Isa::Add(points[v], Isa::Broadcast(-kLess))), ...);
}

template <class Isa, int kLess, int kHeight, int... m>
QCOMPILER_INLINE void BeginGroup(Indices<m...>, Sums<Isa, kHeight>& sums, const Strip<Isa>& strip, int64_t g,
                                 const int32_t* x_sums) {
  constexpr UpTo<Isa::kVectors> kAll;
  if (strip.zero_points[0] != nullptr) {
    typename Isa::Ints points[Isa::kVectors];
    LoadZeroPoints<Isa, kLess>(kAll, strip, g, points);
    (BeginRow<Isa, kHeight, m>(kAll, sums, points, x_sums[m]), ...);
  } else if constexpr (kLess != 0) {  // the middle is 0
    (BeginSymmetric<Isa, kHeight, m>(kAll, sums, Isa::Zero()), ...);
  } else {
    (BeginSymmetric<Isa, kHeight, m>(kAll, sums, Isa::Broadcast(x_sums[m])), ...);
  }
}

template <class Isa>
QCOMPILER_INLINE typename Isa::Ints Exact(const typename Isa::Ints (&chains)[1]) {
  return chains[0];
}

template <class Isa>
QCOMPILER_INLINE typename Isa::Ints Exact(const typename Isa::Ints (&chains)[2]) {
  return Isa::Add(chains[0], chains[1]);
}

// total += (a group's exact sums) (scale of x) (scale of w), in memory or, where they fit, in registers.
template <class Isa, int kHeight>
struct Totals {
  static constexpr bool kInRegisters = kHeight <= Isa::kSumRows;
  typename Isa::Floats at[kInRegisters ? kHeight : 1][Isa::kVectors];
};

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void EndRow(Indices<v...>, const Sums<Isa, kHeight>& sums, Totals<Isa, kHeight>& totals,
                             const typename Isa::Floats (&w_scales)[Isa::kVectors], float x_scale,
                             float* total) {
  const typename Isa::Floats scale_of_x = Isa::BroadcastFloat(x_scale);
  const typename Isa::Floats parts[] = {Isa::ToFloats(Exact<Isa>(sums.at[m][v]))...};
  const typename Isa::Floats scales[] = {Isa::MultiplyFloats(w_scales[v], scale_of_x)...};
  if constexpr (Totals<Isa, kHeight>::kInRegisters) {
    ((totals.at[m][v] = Isa::MultiplyAdd(parts[v], scales[v], totals.at[m][v])), ...);
  } else {
    float* at = total + m * Isa::kVectors * Isa::kLanes;
    (Isa::StoreFloats(at + v * Isa::kLanes,
                      Isa::MultiplyAdd(parts[v], scales[v], Isa::LoadFloats(at + v * Isa::kLanes))),
     ...);
  }
}

template <class Isa, int kHeight, int... m, int... v>
QCOMPILER_INLINE void EndGroup(Indices<m...>, Indices<v...>, const Sums<Isa, kHeight>& sums,
                               Totals<Isa, kHeight>& totals, const Strip<Isa>& strip, int64_t g,
                               const float* x_scales, float* total) {
  const typename Isa::Floats w_scales[] = {Isa::LoadFloats(strip.scales[v] + g * kRows)...};
  (EndRow<Isa, m>(Indices<v...>(), sums, totals, w_scales, x_scales[m], total), ...);
}

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void LoadRow(Indices<v...>, Totals<Isa, kHeight>& totals, const float* total) {
  ((totals.at[m][v] = Isa::LoadFloats(total + (m * Isa::kVectors + v) * Isa::kLanes)), ...);
}

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void StoreRow(Indices<v...>, const Totals<Isa, kHeight>& totals, float* total) {
  (Isa::StoreFloats(total + (m * Isa::kVectors + v) * Isa::kLanes, totals.at[m][v]), ...);
}

template <class Isa, int kHeight, int... m>
QCOMPILER_INLINE void LoadTotals(Indices<m...>, Totals<Isa, kHeight>& totals, const float* total) {
  (LoadRow<Isa, m>(UpTo<Isa::kVectors>(), totals, total), ...);
}

template <class Isa, int kHeight, int... m>
QCOMPILER_INLINE void StoreTotals(Indices<m...>, const Totals<Isa, kHeight>& totals, float* total) {
  (StoreRow<Isa, m>(UpTo<Isa::kVectors>(), totals, total), ...);
}

// Products of kHeight rows with a strip over `groups` groups: total [kHeight][kRowsOfStrip] += ...
//
// x, x_scales, x_sums: those of the tile's first group here. `panel`: what Unpack wrote, or nullptr to take
// the codes from the strip itself.
template <class Isa, int kBits, int kHeight, bool kPanel>
void Tile(const int8_t* x, const float* x_scales, const int32_t* x_sums, const Strip<Isa>& strip,
          const uint8_t* panel, int64_t group, int64_t groups, float* total) {
  using Of = Unit<Isa, kBits>;
  constexpr int kQuad = Isa::kVectors * 4 * Isa::kLanes;
  constexpr UpTo<kHeight> kAll;
  Totals<Isa, kHeight> totals;
  if constexpr (Totals<Isa, kHeight>::kInRegisters) LoadTotals<Isa>(kAll, totals, total);
  for (int64_t g = 0; g < groups; ++g) {
    Sums<Isa, kHeight> sums;
    BeginGroup<Isa, kOffset<Isa, kBits>>(kAll, sums, strip, g, x_sums + g * kHeight);
    const int8_t* quads = x + g * group * kHeight;
    if constexpr (kPanel) {
      const uint8_t* of_group = panel + g * (group / 4) * kQuad;
      for (int64_t quad = 0; quad < group / 4; quad += 4) {
        AddPanel<Isa, kDotBits<kBits>>(UpTo<4>(), sums, of_group + quad * kQuad, quads + quad * kHeight * 4);
      }
    } else {
      constexpr int kQuads = Of::kQuads * kTogether<Of>;
      const int64_t units = group / (4 * Of::kQuads), first = g * strip.group_bytes;
      for (int64_t unit = 0; unit < units; unit += kTogether<Of>) {
        AddUnits<Isa, Of, kDotBits<kBits>>(UpTo<kQuads>(), sums, strip, first + unit * Of::kBytes,
                                           quads + unit * Of::kQuads * kHeight * 4);
      }
      if constexpr (kBits == 3) {
        if (group % 32 != 0) {
          AddUnits<Isa, HalfUnit<Isa>, kBits>(UpTo<4>(), sums, strip, first + units * Of::kBytes,
                                              quads + units * Of::kQuads * kHeight * 4);
        }
      }
    }
    EndGroup<Isa>(kAll, UpTo<Isa::kVectors>(), sums, totals, strip, g, x_scales + g * kHeight, total);
    // Else the compiler keeps totals in registers, and spills the sums of integers.
    if constexpr (!Totals<Isa, kHeight>::kInRegisters) asm volatile("" ::: "memory");
  }
  if constexpr (Totals<Isa, kHeight>::kInRegisters) StoreTotals<Isa>(kAll, totals, total);
}

template <class Isa>
using TileFunction = void (*)(const int8_t*, const float*, const int32_t*, const Strip<Isa>&, const uint8_t*,
                              int64_t, int64_t, float*);

// Tile for a height that is known at run time.
template <class Isa, int kBits, bool kPanel, int kHeight = 1>
TileFunction<Isa> ForHeight(int height) {
  if constexpr (kHeight < Isa::kMaxTile) {
    if (height > kHeight) return ForHeight<Isa, kBits, kPanel, kHeight + 1>(height);
  }
  return Tile<Isa, kBits, kHeight, kPanel>;
}

// The columns of a strip that y has, row by row: from total [rows][kRowsOfStrip] to y, or back.
inline void CopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride, int rows,
                     int64_t columns) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(columns);
  for (int m = 0; m < rows; ++m) std::memcpy(to + m * to_stride, from + m * from_stride, bytes);
}

// What several groups' sums of x are together, for each of `rows` rows.
inline void SumGroups(const int32_t* of_groups, int64_t groups, int rows, int32_t* sums) {
  for (int m = 0; m < rows; ++m) sums[m] = of_groups[m];
  for (int64_t g = 1; g < groups; ++g) {
    for (int m = 0; m < rows; ++m) sums[m] += of_groups[g * rows + m];
  }
}

template <class Isa, int kBits>
void MultiplyBits(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                  int64_t end, uint8_t* scratch) {
  constexpr int64_t kStride = Strip<Isa>::kRowsOfStrip;
  constexpr int kPanelBits = kDotBits<kBits> == 8 ? 8 : 4;  // bytes of a panel below 8 bits are alike
  alignas(kLine) float total[Isa::kMaxTile * kStride];
  const int64_t group = weights.group, groups = weights.groups, tiles = x.tiles();
  const int64_t first_strip = begin * kPairRows / kStride;
  const int64_t last_strip = Least(end * kPairRows, columns.end + kStride - 1) / kStride;
  // Groups that are alike on both sides are one long group.
  const bool one_group = weights.one_scale && x.one_scale() && weights.k <= kMostExact && kBits != 3;
  int32_t sums[Isa::kMaxTile];
  if (tiles == 1) {
    const TileFunction<Isa> multiply = ForHeight<Isa, kBits, false>(x.height);
    if (one_group) SumGroups(x.sums, groups, x.height, sums);
    for (int64_t strip = first_strip; strip < last_strip; ++strip) {
      const int64_t column = strip * kStride;
      const Strip<Isa> here(weights, strip, 0);
      std::memset(total, 0, sizeof(float) * static_cast<size_t>(x.height) * kStride);
      multiply(x.codes, x.scales, one_group ? sums : x.sums, here, nullptr,
               one_group ? group * groups : group, one_group ? 1 : groups, total);
      CopyRows(total, kStride, columns.y + column - columns.first, columns.stride, x.height,
               Least(columns.end - column, kStride));
    }
    return;
  }
  const TileFunction<Isa> full = ForHeight<Isa, kPanelBits, true>(x.height);
  const TileFunction<Isa> last = ForHeight<Isa, kPanelBits, true>(x.rows_of(tiles - 1));
  const int64_t at_once = static_cast<int64_t>(kScratchBytes) / (group * kStride);  // at least 8 groups
  for (int64_t first = 0; first < groups; first += at_once) {
    const int64_t count = Least(at_once, groups - first);
    for (int64_t strip = first_strip; strip < last_strip; ++strip) {
      const int64_t column = strip * kStride, width = Least(columns.end - column, kStride);
      const Strip<Isa> here(weights, strip, first);
      Unpack<Isa, kBits>(here, group, count, scratch);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int rows = x.rows_of(tile);
        float* of_y = columns.y + tile * x.height * columns.stride + column - columns.first;
        if (first == 0) {
          std::memset(total, 0, sizeof(float) * static_cast<size_t>(rows) * kStride);
        } else {
          CopyRows(of_y, columns.stride, total, kStride, rows, width);
        }
        const int64_t cell = tile * x.height * groups + first * rows;
        const TileFunction<Isa> multiply = rows == x.height ? full : last;
        const int8_t* codes = x.codes + cell * group;
        if (one_group) {
          SumGroups(x.sums + cell, count, rows, sums);
          multiply(codes, x.scales + cell, sums, here, scratch, group * count, 1, total);
        } else {
          multiply(codes, x.scales + cell, x.sums + cell, here, scratch, group, count, total);
        }
        CopyRows(total, kStride, of_y, columns.stride, rows, width);
      }
    }
  }
}

template <class Isa>
void MultiplyWith(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                  int64_t end, uint8_t* scratch) {
  if (weights.has_table) return MultiplyBits<Isa, kTable>(x, weights, columns, begin, end, scratch);
  if (weights.bits == 8 && (x.rounding == Rounding::kSigned || x.rounding == Rounding::kUnsigned))
    return MultiplyBits<typename Isa::With128, 8>(x, weights, columns, begin, end, scratch);
  switch (weights.bits) {
    case 2:
      return MultiplyBits<Isa, 2>(x, weights, columns, begin, end, scratch);
    case 3:
      return MultiplyBits<Isa, 3>(x, weights, columns, begin, end, scratch);
    case 4:
      return MultiplyBits<Isa, 4>(x, weights, columns, begin, end, scratch);
    default:
      return MultiplyBits<Isa, 8>(x, weights, columns, begin, end, scratch);
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

// The functions of a row of kernels.inc.
#define QCOMPILER_DEFINE_KERNEL(suffix, Isa)                                                          \
  void Quantize##suffix(const void* x, const PackedWeights& weights, Activations* out, int64_t begin, \
                        int64_t end) {                                                                \
    QuantizeHere(x, weights, out, begin, end);                                                        \
  }                                                                                                   \
  void Multiply##suffix(const Activations& x, const PackedWeights& weights, const Columns& columns,   \
                        int64_t begin, int64_t end, uint8_t* scratch) {                               \
    MultiplyWith<Isa>(x, weights, columns, begin, end, scratch);                                      \
  }

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TILE_H_
