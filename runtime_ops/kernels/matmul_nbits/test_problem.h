// Products for tests, with weights as they are stored, and their y by the definition.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_PROBLEM_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct Case {
  int64_t n, k, group;
  int bits;
  bool symmetric;
  int64_t m;
  bool with_table = false;
  Rounding rounding = Rounding::kByGroup;
  bool one_scale = false;

  bool in_bytes() const { return rounding == Rounding::kSigned || rounding == Rounding::kUnsigned; }
  int point_bits() const { return bits == 3 ? 4 : bits; }
};

struct Problem {
  explicit Problem(const Case& c) : shape(c) {
    std::mt19937 random(static_cast<unsigned>(c.n * 31 + c.k * 7 + c.bits + c.m));
    std::normal_distribution<float> normal;
    const int64_t groups = (c.k + c.group - 1) / c.group;
    codes.resize(static_cast<size_t>(c.n * groups * c.group * c.bits / 8));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
    scales.resize(static_cast<size_t>(c.n * groups));
    for (float& scale : scales) scale = 0.01f * (1.0f + static_cast<float>(random() % 100) / 100.0f);
    if (!c.symmetric) zero_points.resize(static_cast<size_t>(c.n * ((groups * c.point_bits() + 7) / 8)));
    for (uint8_t& zero_point : zero_points) zero_point = static_cast<uint8_t>(random());
    if (c.one_scale) {
      for (size_t i = 0; i < scales.size(); ++i) scales[i] = scales[i - i % static_cast<size_t>(groups)];
    }
    x.resize(static_cast<size_t>(c.m * c.k));
    for (float& value : x) value = normal(random);
    bytes.resize(x.size());
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    bytes.front() = bytes.back() = c.rounding == Rounding::kUnsigned ? 0 : 0x80;  // -128
    for (uint8_t& byte : table) byte = static_cast<uint8_t>(random());
    table[3] = 0;  // the ends
    table[5] = 255;
    stored = {c.n,
              c.k,
              c.bits,
              c.group,
              codes.data(),
              scales.data(),
              c.symmetric ? nullptr : zero_points.data(),
              c.with_table ? table : nullptr};
  }

  Case shape;
  std::vector<uint8_t> codes, zero_points, bytes;
  std::vector<float> scales, x;
  float scale_of_bytes = 0.05f;
  uint8_t table[16];
  StoredWeights stored;
};

int Bits(const std::vector<uint8_t>& stream, int64_t row_bytes, int64_t row, int64_t index, int bits) {
  int value = 0;
  for (int i = 0; i < bits; ++i) {
    const int64_t bit = index * bits + i;
    value |= (stream[static_cast<size_t>(row * row_bytes + bit / 8)] >> (bit % 8) & 1) << i;
  }
  return value;
}

// Code k of a row of 3 bits, of which groups are in `group` codes: half of one of 4 bits, whose bits 1 to 3
// it is.
int ThreeBits(const std::vector<uint8_t>& stored, int64_t row_bytes, int64_t row, int64_t k, int64_t group) {
  const int64_t quarter = group / 8, byte = k % group / 2, half = k % 2 * 4;
  const int64_t first = row * row_bytes + k / group * 3 * quarter;
  int value = 0;
  for (int bit = 0; bit < 3; ++bit) {
    const bool last = byte >= 3 * quarter;
    const int64_t at = last ? bit * quarter + byte - 3 * quarter : byte;
    value |= (stored[static_cast<size_t>(first + at)] >> (half + (last ? 0 : bit + 1)) & 1) << bit;
  }
  return value;
}

// Row m of x as the contract rounds it; `group` is the kernel's.
void RoundRow(const Problem& problem, int64_t group, int64_t m, double* a) {
  const Case& c = problem.shape;
  if (c.in_bytes()) {
    for (int64_t k = 0; k < c.k; ++k) {
      const uint8_t byte = problem.bytes[static_cast<size_t>(m * c.k + k)];
      const int code = c.rounding == Rounding::kUnsigned ? byte - 128 : static_cast<int8_t>(byte);
      a[k] = code * static_cast<double>(problem.scale_of_bytes);
    }
    return;
  }
  const float* x = problem.x.data() + m * c.k;
  if (c.rounding == Rounding::kNone) {
    std::copy(x, x + c.k, a);
    return;
  }
  const int64_t part = c.rounding == Rounding::kByRow ? c.k : group;
  for (int64_t first = 0; first < c.k; first += part) {
    const int64_t end = std::min(first + part, c.k);
    float largest = 0;
    for (int64_t k = first; k < end; ++k) largest = std::max(largest, std::fabs(x[k]));
    for (int64_t k = first; k < end; ++k) {
      a[k] = static_cast<double>(std::nearbyint(x[k] * (127.0f / largest))) * (largest / 127.0f);
    }
  }
}

// The weights [N, K] by the formula at the head of matmul_nbits.h, in float64, bit by bit from what is
// stored.
std::vector<double> Weights(const Problem& problem) {
  const Case& c = problem.shape;
  const int64_t stored_groups = (c.k + c.group - 1) / c.group;
  std::vector<double> w(static_cast<size_t>(c.n * c.k));
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t k = 0; k < c.k; ++k) {
      const int64_t g = k / c.group;
      const int64_t row_bytes = stored_groups * c.group * c.bits / 8;
      const int code = c.bits == 3 ? ThreeBits(problem.codes, row_bytes, n, k, c.group)
                                   : Bits(problem.codes, row_bytes, n, k, c.bits);
      const int64_t points = (stored_groups * c.point_bits() + 7) / 8;
      const int stored_point = c.symmetric ? 0 : Bits(problem.zero_points, points, n, g, c.point_bits());
      const int zero_point = c.symmetric ? 1 << (c.bits - 1) : stored_point >> (c.bits == 3);
      w[static_cast<size_t>(n * c.k + k)] =
          (c.with_table ? problem.table[code] - 128 : code - zero_point) *
          static_cast<double>(problem.scales[static_cast<size_t>(n * stored_groups + g)]);
    }
  }
  return w;
}

// y by that formula, in float64; `group` is the kernel's.
inline std::vector<double> Define(const Problem& problem, int64_t group) {
  const Case& c = problem.shape;
  const std::vector<double> w = Weights(problem);
  std::vector<double> y(static_cast<size_t>(c.m * c.n)), a(static_cast<size_t>(c.k));
  for (int64_t m = 0; m < c.m; ++m) {
    RoundRow(problem, group, m, a.data());
    for (int64_t n = 0; n < c.n; ++n) {
      const double* row = w.data() + n * c.k;
      y[static_cast<size_t>(m * c.n + n)] = std::inner_product(a.begin(), a.end(), row, 0.0);
    }
  }
  return y;
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_PROBLEM_H_
