// Products with activations that stay float32, for any instruction set: tile.h includes this. Sums are
// float32 too, in an order of their own.
//
// Few rows of activation: codes become floats in registers as they come from memory, and a group's sum is
// multiplied with its scale. Many: a strip's weights are unpacked to floats for as many groups as the panel
// holds, scales included, and every tile of activations goes over them.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_TILE_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_TILE_H_

#include <cstring>

#include "kernels/matmul_nbits/finish.h"
#include "kernels/matmul_nbits/float_codes.h"
#include "kernels/matmul_nbits/kernels.h"
#include "kernels/matmul_nbits/strip.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t kFewRows = 4;  // of x, for which codes become floats in registers
// Of x that are gone over together. 504 rows at 4096 x 4096 in groups of 128 on a Cascade Lake core: 123
// GFLOPS, 103 to 120 for all of them at once, and alike for 96 to 256.
constexpr int64_t kFloatRows = 128;
constexpr int64_t kFloatsAhead = 2048;  // bytes of codes that memory is asked for in advance

// Sums of a group for kHeight rows of x. An addition takes 4 cycles and two begin in each: 8 have to be on
// their way.
template <class Isa, int kHeight>
struct FloatSums {
  static constexpr int kChains = kHeight * Isa::kVectors < 8 ? 8 / (kHeight * Isa::kVectors) : 1;
  typename Isa::Floats at[kHeight][Isa::kVectors][kChains];
};

template <class Isa, int kChain, int m, int kHeight, int... v>
QCOMPILER_INLINE void AddFloats(Indices<v...>, FloatSums<Isa, kHeight>& sums,
                                const typename Isa::Floats (&values)[sizeof...(v)], float x) {
  const typename Isa::Floats all = Isa::BroadcastFloat(x);
  ((sums.at[m][v][kChain] = Isa::MultiplyAdd(values[v], all, sums.at[m][v][kChain])), ...);
}

template <class Isa, int kChain, int kHeight, int... m>
QCOMPILER_INLINE void AddRows(Indices<m...>, FloatSums<Isa, kHeight>& sums,
                              const typename Isa::Floats (&values)[Isa::kVectors], const float* x) {
  (AddFloats<Isa, kChain, m>(UpTo<Isa::kVectors>(), sums, values, x[m]), ...);
}

// k of the run that begins at byte `at` of a strip; x: [kHeight].
template <class Isa, class Of, int k, int kHeight, int... v>
QCOMPILER_INLINE void AddCode(Indices<v...>, FloatSums<Isa, kHeight>& sums, const Strip<Isa>& strip,
                              int64_t at, const Points<Isa> (&points)[Isa::kVectors], const float* x) {
  const typename Isa::Floats values[] = {Value<Isa, Of, k>(strip.codes[v] + at, points[v])...};
  AddRows<Isa, k % FloatSums<Isa, kHeight>::kChains>(UpTo<kHeight>(), sums, values, x);
}

template <class Isa, int kBytes, int... v>
QCOMPILER_INLINE void PrefetchRun(Indices<v...>, const Strip<Isa>& strip, int64_t at) {
  for (int line = 0; line < kBytes; line += kLine) {
    ((v * Isa::kLanes % kRows == 0 ? Isa::Prefetch(strip.codes[v] + at + line + kFloatsAhead) : void()), ...);
  }
}

template <class Isa, class Of, int kHeight, int... k>
QCOMPILER_INLINE void AddRun(Indices<k...>, FloatSums<Isa, kHeight>& sums, const Strip<Isa>& strip,
                             int64_t at, const Points<Isa> (&points)[Isa::kVectors], const float* x) {
  constexpr UpTo<Isa::kVectors> kAll;
  PrefetchRun<Isa, Of::kBytes>(kAll, strip, at);
  (AddCode<Isa, Of, k>(kAll, sums, strip, at, points, x + k * kHeight), ...);
}

template <class Isa, int... chain>
QCOMPILER_INLINE typename Isa::Floats SumChains(Indices<chain...>,
                                                const typename Isa::Floats (&chains)[sizeof...(chain)]) {
  return (chains[chain] + ...);
}

template <class Isa, int kHeight>
using FloatTotals = typename Isa::Floats[kHeight][Isa::kVectors];

template <class Isa, int kHeight, int m, int... v>
QCOMPILER_INLINE void ScaleRow(Indices<v...>, const FloatSums<Isa, kHeight>& sums,
                               const typename Isa::Floats (&scales)[Isa::kVectors],
                               FloatTotals<Isa, kHeight>& totals) {
  constexpr UpTo<FloatSums<Isa, kHeight>::kChains> kChains;
  ((totals[m][v] = Isa::MultiplyAdd(SumChains<Isa>(kChains, sums.at[m][v]), scales[v], totals[m][v])), ...);
}

template <class Isa, int kHeight, int... m, int... v>
QCOMPILER_INLINE void ScaleGroup(Indices<m...>, Indices<v...>, const FloatSums<Isa, kHeight>& sums,
                                 const Strip<Isa>& strip, int64_t g, FloatTotals<Isa, kHeight>& totals) {
  const typename Isa::Floats scales[] = {Isa::LoadFloats(strip.scales[v] + g * kRows)...};
  (ScaleRow<Isa, kHeight, m>(Indices<v...>(), sums, scales, totals), ...);
}

// Products of kHeight rows, x [K][kHeight], with all of a strip: total [kHeight][kRowsOfStrip].
template <class Isa, int kBits, int kHeight>
void FewRows(const float* x, const Strip<Isa>& strip, int64_t group, int64_t groups, float* total) {
  using Of = Run<Isa, kBits>;
  constexpr UpTo<Isa::kVectors> kVectors;
  FloatTotals<Isa, kHeight> totals = {};
  for (int64_t g = 0; g < groups; ++g) {
    Points<Isa> points[Isa::kVectors];
    LoadPoints<Isa, kBits>(kVectors, strip, g, points);
    FloatSums<Isa, kHeight> sums = {};
    int64_t at = g * strip.group_bytes, k = 0;
    for (; k + Of::kK <= group; k += Of::kK, at += Of::kBytes, x += Of::kK * kHeight) {
      AddRun<Isa, Of>(UpTo<Of::kK>(), sums, strip, at, points, x);
    }
    if constexpr (kBits == 3) {
      if (k < group) {
        AddRun<Isa, RunOfThree<Isa, 16>>(UpTo<16>(), sums, strip, at, points, x);
        x += 16 * kHeight;
      }
    }
    ScaleGroup<Isa, kHeight>(UpTo<kHeight>(), kVectors, sums, strip, g, totals);
  }
  for (int m = 0; m < kHeight; ++m) {
    for (int v = 0; v < Isa::kVectors; ++v) {
      Isa::StoreFloats(total + (m * Isa::kVectors + v) * Isa::kLanes, totals[m][v]);
    }
  }
}

// A run's weights, scales included, to a panel [k][kRowsOfStrip], of which `panel` is one register's place.
template <class Isa, class Of, int... k>
QCOMPILER_INLINE void StoreRun(Indices<k...>, const uint8_t* at, const Points<Isa>& points,
                               typename Isa::Floats scale, float* panel) {
  (Isa::StoreFloats(panel + k * Strip<Isa>::kRowsOfStrip, Value<Isa, Of, k>(at, points) * scale), ...);
}

template <class Isa, int kBits>
void UnpackFloats(const Strip<Isa>& strip, int64_t group, int64_t groups, float* panel) {
  using Of = Run<Isa, kBits>;
  constexpr int kWidth = Strip<Isa>::kRowsOfStrip;
  for (int64_t g = 0; g < groups; ++g, panel += group * kWidth) {
    Points<Isa> points[Isa::kVectors];
    LoadPoints<Isa, kBits>(UpTo<Isa::kVectors>(), strip, g, points);
    for (int v = 0; v < Isa::kVectors; ++v) {
      const typename Isa::Floats scale = Isa::LoadFloats(strip.scales[v] + g * kRows);
      const uint8_t* at = strip.codes[v] + g * strip.group_bytes;
      float* to = panel + v * Isa::kLanes;
      int64_t k = 0;
      for (; k + Of::kK <= group; k += Of::kK, at += Of::kBytes) {
        for (int line = 0; line < Of::kBytes; line += kLine) Isa::Prefetch(at + line + kFloatsAhead);
        StoreRun<Isa, Of>(UpTo<Of::kK>(), at, points[v], scale, to + k * kWidth);
      }
      if constexpr (kBits == 3) {
        if (k < group) StoreRun<Isa, RunOfThree<Isa, 16>>(UpTo<16>(), at, points[v], scale, to + k * kWidth);
      }
    }
  }
}

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void LoadTotal(Indices<v...>, FloatTotals<Isa, kHeight>& totals, const float* total) {
  ((totals[m][v] = Isa::LoadFloats(total + (m * Isa::kVectors + v) * Isa::kLanes)), ...);
}

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void StoreTotal(Indices<v...>, const FloatTotals<Isa, kHeight>& totals, float* total) {
  (Isa::StoreFloats(total + (m * Isa::kVectors + v) * Isa::kLanes, totals[m][v]), ...);
}

template <class Isa, int m, int kHeight, int... v>
QCOMPILER_INLINE void AddToRow(Indices<v...>, FloatTotals<Isa, kHeight>& totals,
                               const typename Isa::Floats (&weights)[sizeof...(v)], float x) {
  const typename Isa::Floats all = Isa::BroadcastFloat(x);
  ((totals[m][v] = Isa::MultiplyAdd(weights[v], all, totals[m][v])), ...);
}

template <class Isa, int kHeight, int... m, int... v>
QCOMPILER_INLINE void AddWeights(Indices<m...>, Indices<v...>, FloatTotals<Isa, kHeight>& totals,
                                 const float* panel, const float* x) {
  const typename Isa::Floats weights[] = {Isa::LoadFloats(panel + v * Isa::kLanes)...};
  (AddToRow<Isa, m, kHeight>(Indices<v...>(), totals, weights, x[m]), ...);
}

template <class Isa, int kHeight, int... m>
QCOMPILER_INLINE void AddPanelTo(Indices<m...> rows, FloatTotals<Isa, kHeight>& totals, const float* panel,
                                 const float* x, int64_t count) {
  constexpr UpTo<Isa::kVectors> kVectors;
  constexpr int kWidth = Strip<Isa>::kRowsOfStrip;
  int64_t k = 0;
  for (; k + 2 <= count; k += 2) {
    AddWeights<Isa, kHeight>(rows, kVectors, totals, panel + k * kWidth, x + k * kHeight);
    AddWeights<Isa, kHeight>(rows, kVectors, totals, panel + (k + 1) * kWidth, x + (k + 1) * kHeight);
  }
  if (k < count) AddWeights<Isa, kHeight>(rows, kVectors, totals, panel + k * kWidth, x + k * kHeight);
}

template <class Isa, int kHeight, int... m>
QCOMPILER_INLINE void MultiplyPanel(Indices<m...> rows, const float* x, const float* panel, int64_t count,
                                    float* total) {
  constexpr UpTo<Isa::kVectors> kVectors;
  FloatTotals<Isa, kHeight> totals;
  (LoadTotal<Isa, m, kHeight>(kVectors, totals, total), ...);
  AddPanelTo<Isa, kHeight>(rows, totals, panel, x, count);
  (StoreTotal<Isa, m, kHeight>(kVectors, totals, total), ...);
}

// total [kHeight][kRowsOfStrip] += x [count][kHeight] times a panel [count][kRowsOfStrip].
template <class Isa, int kHeight>
void FloatTile(const float* x, const float* panel, int64_t count, float* total) {
  MultiplyPanel<Isa, kHeight>(UpTo<kHeight>(), x, panel, count, total);
}

using FloatTileFunction = void (*)(const float*, const float*, int64_t, float*);

// FloatTile for a height that is known at run time.
template <class Isa, int kHeight = 1>
FloatTileFunction FloatTileOf(int height) {
  if constexpr (kHeight < Isa::kMaxTile) {
    if (height > kHeight) return FloatTileOf<Isa, kHeight + 1>(height);
  }
  return FloatTile<Isa, kHeight>;
}

template <class Isa>
using FewRowsFunction = void (*)(const float*, const Strip<Isa>&, int64_t, int64_t, float*);

template <class Isa, int kBits, int kHeight = 1>
FewRowsFunction<Isa> FewRowsOf(int64_t height) {
  if constexpr (kHeight < kFewRows) {
    if (height > kHeight) return FewRowsOf<Isa, kBits, kHeight + 1>(height);
  }
  return FewRows<Isa, kBits, kHeight>;
}

// A product's strips.
template <class Isa, int kBits>
struct FloatJob {
  static constexpr int64_t kStride = Strip<Isa>::kRowsOfStrip;
  static_assert(kFewRows <= Isa::kMaxTile, "few rows are one tile");

  FloatJob(const Activations& activations, const PackedWeights& packed, const Columns& places)
      : x(activations),
        weights(packed),
        columns(places),
        full(FloatTileOf<Isa>(x.height)),
        last(FloatTileOf<Isa>(x.rows_of(x.tiles() - 1))) {}

  void MultiplyFew(int64_t begin, int64_t end, float* totals) const {
    const FewRowsFunction<Isa> multiply = FewRowsOf<Isa, kBits>(x.m);
    for (int64_t strip = begin; strip < end; ++strip) {
      multiply(x.floats(), Strip<Isa>(weights, strip, 0), weights.group, weights.groups, totals);
      for (int64_t m = 0; m < x.m; ++m) Finish<kStride>(totals + m * kStride, columns, m, strip * kStride);
    }
  }

  // totals [rows of the tiles][kStride] += the products of tiles with groups [first, first + count) of a
  // strip.
  void AddGroups(int64_t index, int64_t first, int64_t count, int64_t first_tile, int64_t last_tile,
                 float* panel, float* totals) const {
    const int64_t group = weights.group, k = weights.groups * group;
    // Without what fills up: scaled, it may be infinite, and NaN comes of that and 0.
    const int64_t there = Least(group * count, weights.k - first * group);
    UnpackFloats<Isa, kBits>(Strip<Isa>(weights, index, first), group, count, panel);
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const int rows = x.rows_of(tile);
      const float* of_tile = x.floats() + tile * x.height * k + first * group * rows;
      const FloatTileFunction multiply = rows == x.height ? full : last;
      multiply(of_tile, panel, there, totals + (tile - first_tile) * x.height * kStride);
    }
  }

  // Of y several strips at once, for each row of it lies in a page of its own. Rows of x that stay in a near
  // cache are gone over by one strip after the other, more rows a panel's part of K at a time, by all strips.
  void MultiplyTiles(int64_t first_tile, int64_t last_tile, int64_t begin, int64_t end,
                     uint8_t* scratch) const {
    constexpr int64_t kFloat = sizeof(float);
    const int64_t first_row = first_tile * x.height, rows = Least(last_tile * x.height, x.m) - first_row;
    float* panel = reinterpret_cast<float*>(scratch);
    float* totals = reinterpret_cast<float*>(scratch + kPanelBytes);
    const int64_t at_once = kTotalsBytes / (rows * kStride * kFloat);
    const int64_t of_panel = kPanelBytes / (weights.group * kStride * kFloat);
    const bool near = rows * weights.groups * weights.group * kFloat <= kNearBytes;
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t last_strip = Least(first + at_once, end), strips = near ? 1 : last_strip - first;
      std::memset(totals, 0, sizeof(float) * static_cast<size_t>((last_strip - first) * rows * kStride));
      for (int64_t some = first; some < last_strip; some += strips) {
        for (int64_t g = 0; g < weights.groups; g += of_panel) {
          for (int64_t strip = some; strip < some + strips; ++strip) {
            AddGroups(strip, g, Least(of_panel, weights.groups - g), first_tile, last_tile, panel,
                      totals + (strip - first) * rows * kStride);
          }
        }
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
  const FloatTileFunction full, last;
};

template <class Isa, int kBits>
void MultiplyFloatBits(const Activations& x, const PackedWeights& weights, const Columns& columns,
                       int64_t begin, int64_t end, uint8_t* scratch) {
  using Of = FloatJob<Isa, kBits>;
  const Of job(x, weights, columns);
  const int64_t first_strip = begin * kPairRows / Of::kStride;
  const int64_t last_strip = Least(end * kPairRows, columns.end + Of::kStride - 1) / Of::kStride;
  if (x.m <= kFewRows) return job.MultiplyFew(first_strip, last_strip, reinterpret_cast<float*>(scratch));
  const int64_t most = kFloatRows / x.height, runs = (x.tiles() + most - 1) / most;
  const int64_t at_once = (x.tiles() + runs - 1) / runs;
  for (int64_t tile = 0; tile < x.tiles(); tile += at_once) {
    job.MultiplyTiles(tile, Least(tile + at_once, x.tiles()), first_strip, last_strip, scratch);
  }
}

template <class Isa>
void MultiplyFloats(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                    int64_t end, uint8_t* scratch) {
  switch (weights.bits) {
    case 2:
      return MultiplyFloatBits<Isa, 2>(x, weights, columns, begin, end, scratch);
    case 3:
      return MultiplyFloatBits<Isa, 3>(x, weights, columns, begin, end, scratch);
    case 4:
      return MultiplyFloatBits<Isa, 4>(x, weights, columns, begin, end, scratch);
    default:
      return MultiplyFloatBits<Isa, 8>(x, weights, columns, begin, end, scratch);
  }
}

// Rows of x into tiles: [tiles][groups group][rows of the tile], 0 behind K.
inline void ArrangeFloats(const float* x, const PackedWeights& weights, Activations* out, int64_t begin,
                          int64_t end) {
  const int64_t k = weights.k, padded = weights.groups * weights.group;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int rows = out->rows_of(tile);
    const float* from = x + tile * out->height * k;
    float* to = out->floats() + tile * out->height * padded;
    if (rows == 1) {
      std::memcpy(to, from, static_cast<size_t>(k) * sizeof(float));
    } else {
      for (int64_t first = 0; first < k; first += kSegment) {  // a row's cache line at a time
        for (int row = 0; row < rows; ++row) {
          for (int64_t i = first; i < Least(first + kSegment, k); ++i) to[i * rows + row] = from[row * k + i];
        }
      }
    }
    std::memset(to + k * rows, 0, static_cast<size_t>((padded - k) * rows) * sizeof(float));
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_TILE_H_
