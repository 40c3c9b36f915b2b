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

#include "kernels/matmul_nbits/finish.h"
#include "kernels/matmul_nbits/float_tile.h"
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

// What several groups' sums of x are together, for each of `rows` rows.
inline void SumGroups(const int32_t* of_groups, int64_t groups, int rows, int32_t* sums) {
  for (int m = 0; m < rows; ++m) sums[m] = of_groups[m];
  for (int64_t g = 1; g < groups; ++g) {
    for (int m = 0; m < rows; ++m) sums[m] += of_groups[g * rows + m];
  }
}

// Strips [begin, end) of a product.
template <class Isa, int kBits>
struct Job {
  static constexpr int64_t kStride = Strip<Isa>::kRowsOfStrip;
  static constexpr int kPanelBits = kDotBits<kBits> == 8 ? 8 : 4;  // bytes of a panel below 8 bits are alike
  // Codes that Dot takes as they lie need no panel.
  static constexpr bool kPlain = kBits == 8 && !Isa::kSigned;
  // So few tiles unpack codes in registers, each anew. 4096 x 4096 in groups of 128, with AVX-512 VNNI: 1.15
  // times as fast as a panel for two tiles, as fast for four.
  static constexpr int64_t kFewTiles = kBits == 4 ? 4 : 2;

  Job(const Activations& activations, const PackedWeights& packed, const Columns& places)
      : x(activations),
        weights(packed),
        columns(places),
        one_group(packed.one_scale && activations.one_scale() && packed.k <= kMostExact && kBits != 3),
        panels(!kPlain && activations.tiles() > kFewTiles),
        full(Function(x.height)),
        last(Function(x.rows_of(x.tiles() - 1))) {}

  TileFunction<Isa> Function(int rows) const {
    return panels ? ForHeight<Isa, kPanelBits, true>(rows) : ForHeight<Isa, kBits, false>(rows);
  }

  // total += the products of a tile with groups [first, first + count) of a strip, which begins with `first`.
  void AddTile(int64_t tile, const Strip<Isa>& strip, const uint8_t* panel, int64_t first, int64_t count,
               float* total) const {
    const int rows = x.rows_of(tile);
    const int64_t cell = tile * x.height * weights.groups + first * rows, group = weights.group;
    const TileFunction<Isa> multiply = rows == x.height ? full : last;
    if (one_group) {
      int32_t sums[Isa::kMaxTile];
      SumGroups(x.sums + cell, count, rows, sums);
      multiply(x.codes + cell * group, x.scales + cell, sums, strip, panel, group * count, 1, total);
    } else {
      multiply(x.codes + cell * group, x.scales + cell, x.sums + cell, strip, panel, group, count, total);
    }
  }

  // totals [rows of the tiles][kStride] of all of a strip.
  void MultiplyStrip(int64_t index, int64_t first_tile, int64_t last_tile, uint8_t* panel,
                     float* totals) const {
    // What comes from no panel is taken at once where one tile goes over it.
    const int64_t at_once =
        !panels && last_tile - first_tile == 1 ? weights.groups : kPanelBytes / (weights.group * kStride);
    for (int64_t first = 0; first < weights.groups; first += at_once) {
      const int64_t count = Least(at_once, weights.groups - first);
      const Strip<Isa> strip(weights, index, first);
      if (panels) Unpack<Isa, kBits>(strip, weights.group, count, panel);
      for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        AddTile(tile, strip, panel, first, count, totals + (tile - first_tile) * x.height * kStride);
      }
    }
  }

  // Rows of x that stay in a near cache while strips go over them; of y several strips at once, for each row
  // of it lies in a page of its own.
  void MultiplyTiles(int64_t first_tile, int64_t last_tile, int64_t begin, int64_t end,
                     uint8_t* scratch) const {
    const int64_t first_row = first_tile * x.height, rows = Least(last_tile * x.height, x.m) - first_row;
    float* totals = reinterpret_cast<float*>(scratch + kPanelBytes);
    const int64_t at_once = kTotalsBytes / (rows * kStride * static_cast<int64_t>(sizeof(float)));
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t last_strip = Least(first + at_once, end);
      std::memset(totals, 0, sizeof(float) * static_cast<size_t>((last_strip - first) * rows * kStride));
      for (int64_t strip = first; strip < last_strip; ++strip) {
        MultiplyStrip(strip, first_tile, last_tile, scratch, totals + (strip - first) * rows * kStride);
      }
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t strip = first; strip < last_strip; ++strip) {
          const float* sums = totals + ((strip - first) * rows + m) * kStride;
          Finish<kStride>(sums, columns, first_row + m, strip * kStride);
        }
      }
    }
  }

  const Activations& x;
  const PackedWeights& weights;
  const Columns& columns;
  const bool one_group;  // groups are alike on both sides: they are one long group
  const bool panels;
  const TileFunction<Isa> full, last;
};

template <class Isa, int kBits>
void MultiplyBits(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                  int64_t end, uint8_t* scratch) {
  using Of = Job<Isa, kBits>;
  const Of job(x, weights, columns);
  const int64_t first_strip = begin * kPairRows / Of::kStride;
  const int64_t last_strip = Least(end * kPairRows, columns.end + Of::kStride - 1) / Of::kStride;
  const int64_t near = kNearBytes / (x.height * weights.group * weights.groups);
  const int64_t at_once = Least(near < 1 ? 1 : near, kMostRows / x.height);
  for (int64_t tile = 0; tile < x.tiles(); tile += at_once) {
    job.MultiplyTiles(tile, Least(tile + at_once, x.tiles()), first_strip, last_strip, scratch);
  }
}

template <class Isa>
void MultiplyWith(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                  int64_t end, uint8_t* scratch) {
  if (x.rounding == Rounding::kNone) return MultiplyFloats<Isa>(x, weights, columns, begin, end, scratch);
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
    if (out->rounding == Rounding::kNone)                                                             \
      return ArrangeFloats(static_cast<const float*>(x), weights, out, begin, end);                   \
    QuantizeHere(x, weights, out, begin, end);                                                        \
  }                                                                                                   \
  void Multiply##suffix(const Activations& x, const PackedWeights& weights, const Columns& columns,   \
                        int64_t begin, int64_t end, uint8_t* scratch) {                               \
    MultiplyWith<Isa>(x, weights, columns, begin, end, scratch);                                      \
  }

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TILE_H_
