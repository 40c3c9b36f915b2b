// y = x S^T with S [N, K] sparse, stored row after row: the contract that every kernel of this folder keeps.
//
//   y[m, n] = sum of values[e] x[m, columns[e]]  for  offsets[n] <= e < offsets[n + 1]
//
// in float32, in this order, so that every kernel gives the same bits for a row of x, however many there are:
// number e - offsets[n] = i of a row goes to partial sum i mod 4, each in rising i, and these add up as
// (s0 + s1) + (s2 + s3). No product is fused with its addition. y in float16 is rounded once.
//
// x is read from panels of `width` rows, [K][width] float32, so that one number of S multiplies a vector of
// x. What fills the last panel up is 0, and its sums go nowhere.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_SPARSE_MATMUL_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_SPARSE_MATMUL_H_

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"

namespace qcompiler {
namespace sparse_matmul {

constexpr int kPartialSums = 4;  // an addition takes 4 cycles
constexpr int kNarrow = 4;       // rows of a panel where there are no more
constexpr int kWide = 16;        // else: a line of the cache, and a zmm register

enum class Float { k32, k16, kBrain16 };

// S, as it is stored; nothing has to be aligned. Offsets rise from 0, columns within a row.
struct StoredMatrix {
  int64_t n;
  const void* values;  // [E]
  Float type;
  const void* columns;  // [E], uint16 or int32
  bool wide_columns;
  const int32_t* offsets;  // [N + 1]
};

// Rows of x: [ceil(m / width)][k][width].
struct Panels {
  int64_t m, k;
  int width;  // 1, kNarrow or kWide
  const float* data;

  int64_t count() const { return (m + width - 1) / width; }
};

// Of so many rows.
inline int PanelWidth(int64_t m) { return m == 1 ? 1 : m <= kNarrow ? kNarrow : kWide; }

// x or y: rows of `stride` numbers, float32 or float16.
struct Rows {
  void* data;
  Float type;
  int64_t stride;
};

// One implementation; a row of kernels.inc.
struct Kernel {
  const char* name;
  bool (*runs_on)(const CpuFeatures& cpu);

  // Columns [begin, end) of all panels into `out`, which is panels.data, at a multiple of 64. begin is a
  // multiple of 16; end too, or k.
  void (*arrange)(const Rows& x, const Panels& panels, float* out, int64_t begin, int64_t end);

  // y for rows [begin, end) of S.
  void (*multiply)(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end);
};

// The first row of kernels.inc that runs on the CPU.
const Kernel* ChooseKernel(const CpuFeatures& cpu);

// All rows, for tests and benchmarks.
const Kernel* Kernels(int* count);

}  // namespace sparse_matmul
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_SPARSE_MATMUL_SPARSE_MATMUL_H_
