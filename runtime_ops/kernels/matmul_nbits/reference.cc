// The contract of matmul_nbits.h in plain C++: what every other kernel is tested against, and what runs where
// no other does.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/matmul_nbits/kernels.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

// The code of k (of the group) in a row of a block; `group` points at the group's first line.
int CodeAt(const uint8_t* group, int64_t size, int bits, int64_t k, int row) {
  const int64_t quad = k / 4, byte = row * 4 + k % 4;
  if (bits == 3) {
    const int64_t part = quad / 8, of_part = quad % 8;
    const uint8_t* lines = group + part * 3 * kLine;
    const int64_t low_lines = size - part * 32 > 16 ? 2 : 1;
    const int low = lines[of_part / 4 * kLine + byte] >> (of_part % 4 * 2) & 3;
    return low | (lines[low_lines * kLine + byte] >> of_part & 1) << 2;
  }
  const int64_t per_byte = 8 / bits;
  return group[quad / per_byte * kLine + byte] >> (quad % per_byte * bits) & ((1 << bits) - 1);
}

// max |x|; NaN where one is NaN.
float Largest(const float* x, int64_t count) {
  float largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float size = std::fabs(x[k]);
    if (size > largest || size != size) largest = size;  // NaN stays: nothing is greater
  }
  return largest;
}

float Activate(float v, Activation activation, float alpha) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0 : v;  // NaN is not below
    case Activation::kGelu:
      return 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f));
    case Activation::kFastGelu:
      return 0.5f * v * (1.0f + std::tanh(0.79788456080286536f * (v + 0.044715f * v * v * v)));
    case Activation::kQuickGelu:
      return v / (1.0f + std::exp(-alpha * v));
    case Activation::kNone:
      break;
  }
  return v;
}

// Rows that stay float32, to tiles.
void Arrange(const float* x, const PackedWeights& weights, Activations* out, int64_t begin, int64_t end) {
  const int64_t padded = weights.groups * weights.group;
  for (int64_t m = begin * out->height; m < std::min(end * out->height, out->m); ++m) {
    const int64_t tile = m / out->height, row = m % out->height, rows = out->rows_of(tile);
    float* to = out->floats() + tile * out->height * padded + row;
    for (int64_t k = 0; k < padded; ++k) to[k * rows] = k < weights.k ? x[m * weights.k + k] : 0;
  }
}

// y[m, n] of activations that stay float32.
float FloatProduct(const Activations& x, const PackedWeights& weights, int64_t m, int64_t n) {
  const int64_t group = weights.group, tile = m / x.height, rows = x.rows_of(tile);
  const float* of_row = x.floats() + tile * x.height * weights.groups * group + m % x.height;
  const int lane = static_cast<int>(n % kRows);
  float total = 0;
  for (int64_t g = 0; g < weights.groups; ++g) {
    const int64_t cell = n / kRows * weights.groups + g;
    const int point = weights.symmetric() ? weights.middle() : weights.zero_points[cell * kRows + lane];
    float sum = 0;
    for (int64_t k = 0; k < group; ++k) {
      const int code = CodeAt(weights.codes + cell * weights.group_bytes(), group, weights.bits, k, lane);
      sum += of_row[(g * group + k) * rows] * static_cast<float>(code - point);
    }
    total += sum * weights.scales[cell * kRows + lane];
  }
  return total;
}

}  // namespace

void QuantizeReference(const void* x, const PackedWeights& weights, Activations* out, int64_t begin,
                       int64_t end) {
  if (out->rounding == Rounding::kNone)
    return Arrange(static_cast<const float*>(x), weights, out, begin, end);
  const int64_t group = weights.group, groups = weights.groups;
  const int factor = weights.symmetric() ? weights.middle() : 1;
  const bool in_floats = out->rounding == Rounding::kByGroup || out->rounding == Rounding::kByRow;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int rows = out->rows_of(tile);
    int8_t* codes = out->codes + tile * out->height * groups * group;
    for (int row = 0; row < rows; ++row) {
      const int64_t source = (tile * out->height + row) * weights.k;
      const float* floats = in_floats ? static_cast<const float*>(x) + source : nullptr;
      const uint8_t* bytes = in_floats ? nullptr : static_cast<const uint8_t*>(x) + source;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group, count = std::min(group, weights.k - first);
        const float largest = !in_floats                            ? 0
                              : out->rounding == Rounding::kByGroup ? Largest(floats + first, count)
                                                                    : Largest(floats, weights.k);
        const bool finite = largest <= kLargestFloat;
        const float inverse = finite && largest > kSmallestMaximum ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int64_t k = 0; k < group; ++k) {
          int32_t code = 0;
          if (k < count && in_floats && finite) {
            code = static_cast<int32_t>(
                std::nearbyint(std::fmin(std::fmax(floats[first + k] * inverse, -127.0f), 127.0f)));
          } else if (k < count && !in_floats) {
            code = out->rounding == Rounding::kUnsigned ? bytes[first + k] - 128
                                                        : static_cast<int8_t>(bytes[first + k]);
          }
          codes[((g * (group / 4) + k / 4) * rows + row) * 4 + k % 4] = static_cast<int8_t>(code);
          sum += code;
        }
        const int64_t cell = tile * out->height * groups + g * rows + row;
        out->scales[cell] = !in_floats ? out->scale : finite ? largest / 127.0f : NAN;
        out->sums[cell] = -factor * sum;
      }
    }
  }
}

void MultiplyReference(const Activations& x, const PackedWeights& weights, const Columns& columns,
                       int64_t begin, int64_t end, uint8_t*) {
  const int64_t group = weights.group, groups = weights.groups;
  for (int64_t n = begin * kPairRows; n < std::min(end * kPairRows, columns.end); ++n) {
    const int64_t block = n / kRows;
    const int lane = static_cast<int>(n % kRows);
    for (int64_t m = 0; m < x.m; ++m) {
      const int64_t tile = m / x.height, row = m % x.height;
      const int rows = x.rows_of(tile);
      const int8_t* codes = x.codes + tile * x.height * groups * group;
      float total = x.rounding == Rounding::kNone ? FloatProduct(x, weights, m, n) : 0;
      for (int64_t g = 0; x.rounding != Rounding::kNone && g < groups; ++g) {
        const int64_t cell = block * groups + g, of_x = tile * x.height * groups + g * rows + row;
        int32_t sum = x.sums[of_x];
        if (!weights.symmetric()) sum *= weights.zero_points[cell * kRows + lane];
        for (int64_t k = 0; k < group; ++k) {
          const int code = CodeAt(weights.codes + cell * weights.group_bytes(), group, weights.bits, k, lane);
          sum += codes[((g * (group / 4) + k / 4) * rows + row) * 4 + k % 4] *
                 (weights.has_table ? weights.table[code] : code);
        }
        total += static_cast<float>(sum) * (x.scales[of_x] * weights.scales[cell * kRows + lane]);
      }
      const int64_t at = m * columns.stride + n;
      for (const float* added : columns.added) total += added == nullptr ? 0 : added[n];
      total = Activate(total, columns.activation, columns.alpha);
      if (columns.gated) total *= columns.y[at] / (1.0f + std::exp(-columns.y[at]));
      columns.y[at] = columns.residual == nullptr ? total : total + columns.residual[at];
    }
  }
}

}  // namespace matmul_nbits
}  // namespace qcompiler
