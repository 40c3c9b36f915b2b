// y = x W^T with weights of few bits: the contract that every kernel of this folder keeps.
//
//   y[m, n] = sum over k of x[m, k] (code[n, k] - zero_point[n, g]) scale[n, g],     g = k / group
//
// or, where codes of 4 bits stand for the bytes of a table,
//
//   y[m, n] = sum over k of x[m, k] (table[code[n, k]] - 128) scale[n, g]
//
// Activations are quantized too, to 8 bits for each row and group of weights, symmetric about 0:
//
//   a[m, k] = round(x[m, k] (127 / max)),   s[m, g] = max / 127,   max = max |x[m, group g]|   (half to even)
//
// (or with the maximum of the whole row for all of its groups; or they come as 8 bits already, all with one
// s), so that a group's part of the sum is  s[m, g] scale[n, g] (sum a code - zero_point sum a), the brackets
// exact in int32. A group whose activations hold NaN or infinity makes the whole row of y NaN.
//
// Or activations stay float32, and so do sums, whose order is the kernel's. NaN and infinity then spread as
// in a product of floats. The sum of a group may be taken before its scale: |x| has to stay below 1e34.
//
// Layout of packed weights. Rows come in blocks of 16, K in groups. A *line* of 64 bytes has 4 bytes for each
// of the 16 rows; byte j of a row holds, from its lowest bits on, the codes of k = 4 i + j for i = 0, 1, ..
// as many as fit: two for 4 bits, four for 2 bits, one for 8 bits. 3 bits are a line of 2-bit codes with
// their low bits for k 0..15, one for k 16..31, and a line of their high bits for k 0..31, bit i of byte j
// being that of k = 4 i + j; the last 16 k of a group have half of such a line. The lines of a group follow
// one another, then the next group of the block, then the next block. What fills up the last block and the
// last group is 0 and changes nothing: those rows are not stored, and there activations are 0.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_MATMUL_NBITS_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_MATMUL_NBITS_H_

#include <cstddef>
#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"

namespace qcompiler {
namespace matmul_nbits {

constexpr int kRows = 16;             // of a block: the int32 lanes of a zmm register
constexpr int kLine = 64;             // bytes: 4 for each row of a block
constexpr int kPairRows = 2 * kRows;  // work is shared out in pairs of blocks
constexpr int kMaxGroup =
    128;  // longer groups are cut: |sum a| stays below 2^15, and more scales for activations err less

// Weights as com.microsoft::MatMulNBits stores them, and of 3 bits, which it does not know, so that few
// operations make its 4 bits of them. Twice a code of 3 bits is one of 4 whose lowest bit is 0. Of the group
// / 2 bytes that these fill, two codes a byte, the first three quarters are stored, and in their lowest bits
// of codes, which are 0, the last quarter: byte j of it has bit 1, 2 and 3 of its codes in byte j of the
// first, second and third quarter.
struct StoredWeights {
  int64_t n, k;
  int bits;                    // 2, 3, 4, 8
  int64_t group;               // multiple of 16
  const uint8_t* codes;        // [N, ceil(K / group), group bits / 8]: the lowest bits are the first code
  const float* scales;         // [N, ceil(K / group)]
  const uint8_t* zero_points;  // [N, ceil(ceil(K / group) point_bits() / 8)], or nullptr: 2^(bits - 1)
  const uint8_t* table;        // of 16 bytes, or nullptr; with 4 bits, without zero points, for float32 x

  // Of a stored zero point: of 3 bits it is there twice as large, in 4.
  int point_bits() const { return bits == 3 ? 4 : bits; }
};

// The same in the order of the kernels, each part at a multiple of 64 bytes: packed here, or elsewhere, as in
// a model's file.
struct PackedWeights {
  int64_t k = 0;
  int64_t rows = 0;  // N
  int bits = 0;
  int64_t group = 0;                     // that of the kernel, at most kMaxGroup, a multiple of 16
  int64_t groups = 0;                    // along K
  int64_t blocks = 0;                    // of rows
  const uint8_t* codes = nullptr;        // [blocks, groups, lines, 64]
  const float* scales = nullptr;         // [blocks, groups, 16]
  const uint8_t* zero_points = nullptr;  // [blocks, groups, 16], or nullptr: middle()
  bool one_scale = false;                // symmetric, and every row has the same scale in all groups
  bool has_table = false;
  alignas(16) uint8_t table[16];
  struct {
    AlignedBuffer codes, scales, zero_points;
  } own;  // of what is pointed at, the parts that live with it

  // Lines of a group.
  int64_t lines() const { return bits == 3 ? group / 16 + (group + 31) / 32 : group * bits / 32; }
  int64_t group_bytes() const { return lines() * kLine; }
  bool symmetric() const { return zero_points == nullptr; }
  // Groups of blocks: of each there are group_bytes() of codes, and kRows scales and zero points.
  int64_t cells() const { return blocks * groups; }
  // What counts as 0 where weights are symmetric.
  int middle() const { return has_table ? 128 : 1 << (bits - 1); }
};

// False where there is no memory.
bool Pack(const StoredWeights& stored, PackedWeights* packed);

// The two parts of it: what `stored` says but for its pointers, and what is found in the packed scales.
void SetSizes(const StoredWeights& stored, PackedWeights* packed);
bool HasOneScale(const PackedWeights& packed);

// Gives symmetric weights zero points of their own, all in the middle, so that they go with others on the
// same activations. False where there is no memory.
bool AddMiddle(PackedWeights* packed);

// What activations come as.
enum class Rounding {
  kByGroup,   // float32; each group of a row has a scale
  kByRow,     // float32; each row has a scale
  kSigned,    // int8 of one scale
  kUnsigned,  // uint8 of one scale, 128 more than the contract's a
  kNone,      // float32, and stays so; not for tables
};

// Rows of activation, quantized, in tiles of `height` rows (the last one may have fewer).
struct Activations {
  int64_t m = 0, groups = 0, group = 0;
  int height = 0;  // rows of a tile
  Rounding rounding = Rounding::kByGroup;
  float scale = 0;  // the one of kSigned and kUnsigned
  int8_t* codes;    // [tiles][groups][group / 4][rows of the tile][4]; of kNone floats()
  float* scales;    // [tiles][groups][rows of the tile]
  int32_t* sums;    // as scales: minus the sum of a group's codes; times middle() where the weights are
                    // symmetric

  // Activations that stay float32: [tiles][groups group][rows of the tile].
  float* floats() const { return reinterpret_cast<float*>(codes); }
  // Whether a row's scales are all the same.
  bool one_scale() const { return rounding != Rounding::kByGroup; }
  int64_t tiles() const { return (m + height - 1) / height; }
  int rows_of(int64_t tile) const {
    const int64_t left = m - tile * height;
    return static_cast<int>(left < height ? left : height);
  }
};

// What becomes of a product: activation.h says how exactly.
enum class Activation {
  kNone,
  kRelu,       // max(v, 0)
  kGelu,       // v (1 + erf(v / sqrt(2))) / 2
  kFastGelu,   // v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2
  kQuickGelu,  // v / (1 + exp(-alpha v))
};

// Where columns of y go, of row m and column n, 0 <= n < end, to y[m * stride + n], and what is done to them
// on the way there: y = activation(product + bias) silu(gate) + residual, silu(v) = v / (1 + exp(-v)).
struct Columns {
  float* y;
  int64_t stride;
  int64_t end;
  const float* added[2] = {};       // [end] each, or nullptr: the bias is their sum
  const float* residual = nullptr;  // where y is: row m at m * stride, or nullptr
  bool gated = false;               // y holds the gate
  Activation activation = Activation::kNone;
  float alpha = 1;  // finite

  int64_t pairs() const { return (end + kPairRows - 1) / kPairRows; }
};

// One implementation; a row of kernels.inc.
struct Kernel {
  const char* name;
  int max_tile;  // most rows of a tile
  bool (*runs_on)(const CpuFeatures& cpu);

  // Tiles [begin, end) of x [M, K] (row stride K) of the type that out->rounding says; the rest of `out` is
  // set too, but for what its pointers point at.
  void (*quantize)(const void* x, const PackedWeights& weights, Activations* out, int64_t begin, int64_t end);

  // y for pairs of blocks [begin, end), which are `columns`'; `scratch` has kScratchBytes at a multiple
  // of 64.
  void (*multiply)(const Activations& x, const PackedWeights& weights, const Columns& columns, int64_t begin,
                   int64_t end, uint8_t* scratch);
};

// Rows of a tile for m rows in all: as equal as can be, since a short tile costs nearly as much as a full
// one.
int TileHeight(int64_t m, const Kernel& kernel);

// Sums of so many products of codes and activations are exact in int32.
constexpr int64_t kMostExact = 65536;

// Of the caches: a panel of unpacked codes is in the first one beside a tile of x, the rows of x that a strip
// goes over in the second, with the sums of what they are multiplied with.
constexpr int64_t kPanelBytes = 16 << 10, kNearBytes = 512 << 10, kTotalsBytes = 256 << 10;
constexpr int64_t kMostRows = 512;  // of x that are gone over together
constexpr size_t kScratchBytes = kPanelBytes + kTotalsBytes;

// Sizes of the three buffers of Activations for m rows, in bytes, each a multiple of 64.
struct ActivationSizes {
  size_t codes, scales, sums;
};
ActivationSizes SizesFor(int64_t m, const PackedWeights& weights, Rounding rounding);

// The first row of kernels.inc that runs on the CPU.
const Kernel* ChooseKernel(const CpuFeatures& cpu);

// All rows, for tests and benchmarks.
const Kernel* Kernels(int* count);

}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_MATMUL_NBITS_H_
