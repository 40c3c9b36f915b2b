// Rows of a table [N, K] of few bits, as floats:
//
//   y[k] = (code[row, k] - zero_point[row, g]) scale[row, g],     g = k / block
//
// from the bytes that com.microsoft::MatMulNBits stores for a head that shares them. The difference is exact,
// the product rounded to float32; where scales and y are float16, it is rounded once more.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_GATHER_NBITS_GATHER_NBITS_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_GATHER_NBITS_GATHER_NBITS_H_

#include <cstdint>

#include "kernels/matmul_nbits/matmul_nbits.h"

namespace qcompiler {
namespace gather_nbits {

// As it is stored; nothing has to be aligned.
struct Table {
  int64_t n, k;
  int bits;                    // 2, 4, 8
  int64_t block;               // a multiple of 16
  const uint8_t* codes;        // [N, G, block bits / 8]: the lowest bits are the first code
  const void* scales;          // [N, G], of the type of y
  const uint8_t* zero_points;  // [N, ceil(G bits / 8)], or nullptr: 2^(bits - 1)

  int64_t groups() const { return (k + block - 1) / block; }
};

// Row `row` into y [K]: float32, or float16 as bits.
void GatherRow(const Table& table, int64_t row, float* y);
void GatherRow(const Table& table, int64_t row, uint16_t* y);

// The same from the lines of a product's kernels, of 2, 4 or 8 bits and without a table of numbers.
void GatherRow(const matmul_nbits::PackedWeights& table, int64_t row, float* y);

// The same, code by code: what GatherRow is tested against.
void GatherRowReference(const Table& table, int64_t row, float* y);
void GatherRowReference(const Table& table, int64_t row, uint16_t* y);

}  // namespace gather_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_GATHER_NBITS_GATHER_NBITS_H_
