// Activations to 8 bits, for any instruction set: plain loops, which the compiler writes in that of the
// source that includes them.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_QUANTIZE_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_QUANTIZE_H_

#include <cmath>
#include <cstring>

#include "kernels/matmul_nbits/kernels.h"
#include "kernels/matmul_nbits/units.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

// Activations that are worked on together, groups being multiples of it, as vectors of the compiler's: it
// takes as many registers as they need.
constexpr int kChunk = 16;
using Floats16 = float __attribute__((vector_size(64)));
using Ints16 = int32_t __attribute__((vector_size(64)));
using Ints8 = int32_t __attribute__((vector_size(32)));
using Ints4 = int32_t __attribute__((vector_size(16)));
using Bytes16 = int8_t __attribute__((vector_size(16)));

// Sixteen numbers to one, by halves.
template <class Two>
QCOMPILER_INLINE int32_t Fold(const Ints16& all, Two two) {
  Ints8 eight[2];
  std::memcpy(eight, &all, sizeof(eight));
  eight[0] = two(eight[0], eight[1]);
  Ints4 four[2];
  std::memcpy(four, eight, sizeof(four));
  four[0] = two(four[0], four[1]);
  return two(two(four[0][0], four[0][1]), two(four[0][2], four[0][3]));
}

struct Larger {
  template <class T>
  QCOMPILER_INLINE T operator()(const T& a, const T& b) const {
    return a > b ? a : b;
  }
};

struct Sum {
  template <class T>
  QCOMPILER_INLINE T operator()(const T& a, const T& b) const {
    return a + b;
  }
};

// Where x[k .. k + kChunk) of a group of which `count` are there lies: in x, or in `padded` with zeros
// behind.
QCOMPILER_INLINE const float* ChunkAt(const float* x, int64_t k, int64_t count, float* padded) {
  if (k + kChunk <= count) return x + k;
  std::memset(padded, 0, kChunk * sizeof(float));
  if (k < count) std::memcpy(padded, x + k, static_cast<size_t>(count - k) * sizeof(float));
  return padded;
}

// The bits of max |x| of a group of which `count` are there. Floats without their sign order as integers do,
// NaN and infinity above all.
inline int32_t LargestBits(const float* x, int64_t group, int64_t count) {
  Ints16 largest = {};
  float padded[kChunk];
  for (int64_t k = 0; k < group; k += kChunk) {
    Floats16 chunk;
    std::memcpy(&chunk, ChunkAt(x, k, count, padded), sizeof(chunk));
    const Ints16 bits = reinterpret_cast<Ints16>(chunk) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return Fold(largest, Larger());
}

// round(x inverse) of a group as [group / 4][stride bytes: 4 of each row]; returns their sum.
inline int32_t RoundGroup(const float* x, int64_t group, int64_t count, float inverse, int64_t stride,
                          int8_t* to) {
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  constexpr int32_t kRoundingBits = 0x4b400000;
  Ints16 sums = {};
  float padded[kChunk];
  for (int64_t k = 0; k < group; k += kChunk) {
    Floats16 chunk;
    std::memcpy(&chunk, ChunkAt(x, k, count, padded), sizeof(chunk));
    const Floats16 shifted = chunk * inverse + kRounding;
    const Ints16 codes = reinterpret_cast<Ints16>(shifted) - kRoundingBits;
    sums += codes;
    const Bytes16 bytes = __builtin_convertvector(codes, Bytes16);
    int32_t quads[4];
    std::memcpy(quads, &bytes, sizeof(quads));
    for (int quad = 0; quad < 4; ++quad) std::memcpy(to + (k / 4 + quad) * stride, &quads[quad], 4);
  }
  return Fold(sums, Sum());
}

// Bits of max |x| of a row.
inline int32_t LargestOfRow(const float* x, int64_t k) {
  int32_t largest = 0;
  for (int64_t first = 0; first < k; first += kMaxGroup) {
    const int64_t count = Least(kMaxGroup, k - first);
    largest = Larger()(largest, LargestBits(x + first, (count + kChunk - 1) / kChunk * kChunk, count));
  }
  return largest;
}

// A row of floats into the tile's place for it: its codes, and a scale and a sum for each group.
inline void QuantizeRow(const float* x, const PackedWeights& weights, bool by_row, int32_t factor, int rows,
                        int8_t* codes, float* scales, int32_t* sums) {
  const int64_t group = weights.group;
  const int32_t of_row = by_row ? LargestOfRow(x, weights.k) : 0;
  for (int64_t g = 0; g < weights.groups; ++g) {
    const int64_t first = g * group, count = Least(group, weights.k - first);
    const int32_t largest = by_row ? of_row : LargestBits(x + first, group, count);
    float size;
    std::memcpy(&size, &largest, sizeof(size));
    const bool finite = largest < 0x7f800000;
    const float inverse = finite && size > kSmallestMaximum ? 127.0f / size : 0.0f;
    // Of what is not finite nothing is rounded: its scale makes the row NaN.
    const int32_t sum =
        RoundGroup(x + first, group, finite ? count : 0, inverse, rows * 4, codes + g * group * rows);
    scales[g * rows] = finite ? size / 127.0f : NAN;
    sums[g * rows] = -factor * sum;
  }
}

// The same of a row that comes in 8 bits; `flip` is what its bytes are xored with.
inline void ArrangeRow(const uint8_t* x, const PackedWeights& weights, float scale, uint8_t flip,
                       int32_t factor, int rows, int8_t* codes, float* scales, int32_t* sums) {
  const int64_t group = weights.group;
  for (int64_t g = 0; g < weights.groups; ++g) {
    const int64_t first = g * group, count = Least(group, weights.k - first);
    int8_t of_group[kMaxGroup] = {};
    std::memcpy(of_group, x + first, static_cast<size_t>(count));
    int32_t sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      of_group[k] = static_cast<int8_t>(of_group[k] ^ flip);
      sum += of_group[k];
    }
    int8_t* to = codes + g * group * rows;
    for (int64_t quad = 0; quad < group / 4; ++quad)
      std::memcpy(to + quad * rows * 4, of_group + quad * 4, 4);
    scales[g * rows] = scale;
    sums[g * rows] = -factor * sum;
  }
}

void QuantizeHere(const void* x, const PackedWeights& weights, Activations* out, int64_t begin, int64_t end) {
  const int64_t group = weights.group, groups = weights.groups;
  const int32_t factor = weights.symmetric() ? weights.middle() : 1;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int rows = out->rows_of(tile);
    const int64_t cells = tile * out->height * groups;
    for (int row = 0; row < rows; ++row) {
      const int64_t source = (tile * out->height + row) * weights.k;
      int8_t* codes = out->codes + cells * group + row * 4;
      float* scales = out->scales + cells + row;
      int32_t* sums = out->sums + cells + row;
      if (out->rounding == Rounding::kByGroup || out->rounding == Rounding::kByRow) {
        QuantizeRow(static_cast<const float*>(x) + source, weights, out->rounding == Rounding::kByRow, factor,
                    rows, codes, scales, sums);
      } else {
        ArrangeRow(static_cast<const uint8_t*>(x) + source, weights, out->scale,
                   out->rounding == Rounding::kUnsigned ? 0x80 : 0, factor, rows, codes, scales, sums);
      }
    }
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_QUANTIZE_H_
