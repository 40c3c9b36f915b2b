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

void QuantizeHere(const float* x, const PackedWeights& weights, Activations* out, int64_t begin,
                  int64_t end) {
  const int64_t group = weights.group, groups = weights.groups;
  const int32_t factor = weights.symmetric() ? weights.middle() : 1;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int rows = out->rows_of(tile);
    int8_t* codes = out->codes + tile * out->height * groups * group;
    for (int row = 0; row < rows; ++row) {
      const float* source = x + (tile * out->height + row) * weights.k;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group, count = Least(group, weights.k - first);
        const int32_t largest = LargestBits(source + first, group, count);
        float size;
        std::memcpy(&size, &largest, sizeof(size));
        const bool finite = largest < 0x7f800000;
        const float inverse = finite && size > kSmallestMaximum ? 127.0f / size : 0.0f;
        const int64_t cell = tile * out->height * groups + g * rows + row;
        // Of what is not finite nothing is rounded: its scale makes the row NaN.
        const int32_t sum = RoundGroup(source + first, group, finite ? count : 0, inverse, rows * 4,
                                       codes + g * group * rows + row * 4);
        out->scales[cell] = finite ? size / 127.0f : NAN;
        out->sums[cell] = -factor * sum;
      }
    }
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_QUANTIZE_H_
