// Any shapes, weights and activations through Pack and every kernel that this CPU runs, against the formula
// of matmul_nbits.h in float64: numbers, what must be NaN, and that nothing else is written.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/matmul_nbits/kernels.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t kMostWork = 1 << 16;  // products: an input takes milliseconds
constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr double kSmallest = std::numeric_limits<float>::denorm_min();
constexpr float kUntouched = -12345.0f;
constexpr float kLargestX = 1e34f;  // of activations that stay float32: see matmul_nbits.h

// Normal numbers with hard ones between them: which, `kinds` says, and one in how many at most, `rarity`.
class Numbers {
 public:
  Numbers(std::mt19937* random, unsigned kinds, unsigned rarity)
      : random_(random), kinds_(kinds), rarity_(rarity) {}

  float Next() {
    constexpr float kHard[] = {0.0f,     -0.0f,     1e-38f, 1e-45f, -3e-40f,     3.4e38f, -3.4e38f, 1e-36f,
                               INFINITY, -INFINITY, NAN,    1.0f,   16777216.0f, 1e19f,   -1e-19f};
    const unsigned kind = (*random_)() % rarity_;
    if (kind < std::size(kHard) && (kinds_ >> kind & 1)) return kHard[kind];
    return normal_(*random_);
  }

 private:
  std::mt19937* random_;
  unsigned kinds_, rarity_;
  std::normal_distribution<float> normal_;
};

struct Matrix {
  int64_t n;
  std::vector<uint8_t> codes, zero_points;  // after `offset` bytes that are none: stored at any address
  std::vector<float> scales;
  bool symmetric;
};

struct Problem {
  explicit Problem(FuzzedDataProvider* bytes);

  std::vector<StoredWeights> Stored() const;

  int64_t k, m, group;
  int bits;
  size_t offset;
  bool has_table;
  uint8_t table[16];
  std::vector<Matrix> matrices;
  Rounding rounding;
  std::vector<float> x;
  std::vector<uint8_t> bytes;  // x where it comes as 8 bits, all of one scale
  float scale_of_bytes;

  bool in_bytes() const { return rounding == Rounding::kSigned || rounding == Rounding::kUnsigned; }
  int point_bits() const { return bits == 3 ? 4 : bits; }
};

Problem::Problem(FuzzedDataProvider* bytes) {
  constexpr int kBits[] = {2, 3, 4, 8};
  constexpr int64_t kMostRows[] = {3, 20, 50},
                    kMostK[] = {40, 150, 500};  // small ones are fast, large ones panels
  bits = bytes->PickValueInArray(kBits);
  k = bytes->ConsumeIntegralInRange<int64_t>(1, bytes->PickValueInArray(kMostK));
  group = 16 * bytes->ConsumeIntegralInRange<int64_t>(1, (k + 31) / 16);
  offset = bytes->ConsumeIntegralInRange<size_t>(0, 3);
  has_table = bytes->ConsumeBool() && bits == 4;
  int64_t rows = 0;
  const size_t count = bytes->ConsumeIntegralInRange<size_t>(1, 3);
  for (size_t i = 0; i < count; ++i) {
    Matrix matrix;
    matrix.n = bytes->ConsumeIntegralInRange<int64_t>(1, bytes->PickValueInArray(kMostRows));
    matrix.symmetric = bytes->ConsumeBool() || has_table;
    rows += matrix.n;
    matrices.push_back(std::move(matrix));
  }
  m = bytes->ConsumeIntegralInRange<int64_t>(1, std::clamp<int64_t>(kMostWork / (rows * k), 1, 60));
  const auto kinds_of_scales = bytes->ConsumeIntegral<uint16_t>(),
             kinds_of_x = bytes->ConsumeIntegral<uint16_t>();
  const unsigned rarity = 16u << bytes->ConsumeIntegralInRange<int>(0, 8);
  std::mt19937 random(bytes->ConsumeIntegral<unsigned>());
  Numbers of_scales(&random, kinds_of_scales, rarity), of_x(&random, kinds_of_x, rarity);
  constexpr Rounding kRoundings[] = {Rounding::kByGroup, Rounding::kByRow, Rounding::kSigned,
                                     Rounding::kUnsigned, Rounding::kNone};
  rounding = bytes->PickValueInArray(kRoundings);
  if (has_table && (in_bytes() || rounding == Rounding::kNone)) rounding = Rounding::kByRow;
  const bool one_scale = bytes->ConsumeBool();
  scale_of_bytes = of_x.Next();
  for (uint8_t& byte : table) byte = static_cast<uint8_t>(random());
  const int64_t groups = (k + group - 1) / group;
  for (Matrix& matrix : matrices) {
    matrix.codes.resize(offset + static_cast<size_t>(matrix.n * groups * (group * bits / 8)));
    for (uint8_t& code : matrix.codes) code = static_cast<uint8_t>(random());
    matrix.scales.resize(static_cast<size_t>(matrix.n * groups));
    for (size_t i = 0; i < matrix.scales.size(); ++i) {
      const size_t of_row = i % static_cast<size_t>(groups);
      matrix.scales[i] = one_scale && of_row != 0 ? matrix.scales[i - of_row] : of_scales.Next();
    }
    if (matrix.symmetric) continue;
    matrix.zero_points.resize(offset + static_cast<size_t>(matrix.n * ((groups * point_bits() + 7) / 8)));
    for (uint8_t& point : matrix.zero_points) point = static_cast<uint8_t>(random());
  }
  x.resize(static_cast<size_t>(m * k));
  for (float& value : x) value = of_x.Next();
  this->bytes.resize(in_bytes() ? x.size() : 0);
  for (uint8_t& byte : this->bytes) byte = static_cast<uint8_t>(random());
}

std::vector<StoredWeights> Problem::Stored() const {
  std::vector<StoredWeights> stored;
  for (const Matrix& matrix : matrices) {
    stored.push_back({matrix.n, k, bits, group, matrix.codes.data() + offset, matrix.scales.data(),
                      matrix.symmetric ? nullptr : matrix.zero_points.data() + offset,
                      has_table ? table : nullptr});
  }
  return stored;
}

int Bits(const uint8_t* stream, int64_t index, int bits) {
  int value = 0;
  for (int i = 0; i < bits; ++i) {
    const int64_t bit = index * bits + i;
    value |= (stream[bit / 8] >> (bit % 8) & 1) << i;
  }
  return value;
}

// Code k of a row of 3 bits: half of one of 4 bits, whose bits 1 to 3 it is (see StoredWeights).
int ThreeBits(const uint8_t* row, int64_t k, int64_t group) {
  const int64_t quarter = group / 8, byte = k % group / 2, half = k % 2 * 4;
  row += k / group * 3 * quarter;
  if (byte < 3 * quarter) return row[byte] >> (half + 1) & 7;
  int value = 0;
  for (int bit = 0; bit < 3; ++bit) value |= (row[bit * quarter + byte - 3 * quarter] >> half & 1) << bit;
  return value;
}

// A group of x in 8 bits.
struct Rounded {
  std::vector<int> codes;
  float scale;
};

// What a kernel may have found for an output.
struct Expected {
  double y = 0, size = 0;          // the sum, and that of its parts' sizes, which bounds what is rounded
  bool nan = false;                // it has to be NaN
  bool open = false;               // an infinity or NaN among scales, or too large for float32: anything
  double rounding = 0, least = 0;  // of floats: how far it may be off, of the size and in all
};

// max |x|, or NaN where one is NaN or infinity.
float Largest(const float* x, int64_t count) {
  float largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (!std::isfinite(x[k])) return NAN;
    largest = std::max(largest, std::fabs(x[k]));
  }
  return largest;
}

// Rows of x [m][groups], in the kernels' own float32.
std::vector<Rounded> Round(const Problem& problem, int64_t group) {
  std::vector<Rounded> rounded;
  for (int64_t m = 0; m < problem.m; ++m) {
    const float* row = problem.x.data() + m * problem.k;
    const float largest_of_row = Largest(row, problem.k);
    for (int64_t first = 0; first < problem.k; first += group) {
      const int64_t count = std::min(group, problem.k - first);
      Rounded part{std::vector<int>(static_cast<size_t>(count)), problem.scale_of_bytes};
      if (problem.in_bytes()) {
        const uint8_t* x = problem.bytes.data() + m * problem.k + first;
        for (int64_t k = 0; k < count; ++k) {
          part.codes[static_cast<size_t>(k)] =
              problem.rounding == Rounding::kUnsigned ? x[k] - 128 : static_cast<int8_t>(x[k]);
        }
      } else {
        const float largest =
            problem.rounding == Rounding::kByRow ? largest_of_row : Largest(row + first, count);
        const float inverse = largest > kSmallestMaximum ? 127.0f / largest : 0.0f;
        for (int64_t k = 0; !std::isnan(largest) && k < count; ++k) {
          part.codes[static_cast<size_t>(k)] = static_cast<int>(std::nearbyint(row[first + k] * inverse));
        }
        part.scale = largest / 127.0f;
      }
      rounded.push_back(std::move(part));
    }
  }
  return rounded;
}

// code - zero_point of a matrix, [N, K].
std::vector<int> Values(const Problem& problem, const Matrix& matrix) {
  const int64_t groups = (problem.k + problem.group - 1) / problem.group;
  const uint8_t* codes = matrix.codes.data() + problem.offset;
  const uint8_t* points = matrix.symmetric ? nullptr : matrix.zero_points.data() + problem.offset;
  const int middle = problem.has_table ? 128 : 1 << (problem.bits - 1);
  std::vector<int> values;
  for (int64_t n = 0; n < matrix.n; ++n) {
    for (int64_t k = 0; k < problem.k; ++k) {
      const int code = problem.bits == 3 ? ThreeBits(codes, k, problem.group) : Bits(codes, k, problem.bits);
      const int stored = points == nullptr ? 0 : Bits(points, k / problem.group, problem.point_bits());
      const int point = points == nullptr ? middle : stored >> (problem.bits == 3);
      values.push_back((problem.has_table ? problem.table[code] : code) - point);
    }
    codes += groups * (problem.group * problem.bits / 8);
    if (points != nullptr) points += (groups * problem.point_bits() + 7) / 8;
  }
  return values;
}

// An output: of the groups of a row of x, and a row of weights with its scales.
Expected Define(const Problem& problem, const Rounded* x, int64_t group, const int* values,
                const float* scales) {
  Expected expected;
  for (int64_t first = 0; first < problem.k; first += group, ++x) {
    const int sum = std::inner_product(x->codes.begin(), x->codes.end(), values + first, 0);
    const float scale = scales[first / problem.group];
    if (std::isnan(x->scale)) expected.nan = true;
    if (std::isinf(x->scale)) expected.open = true;  // of bytes: the operator refuses it
    // The kernels multiply the two scales first.
    if (!std::isfinite(scale) || !std::isfinite(x->scale * scale)) expected.open = true;
    const double part = sum * (static_cast<double>(x->scale) * static_cast<double>(scale));
    expected.y += part;
    expected.size += std::fabs(part);
  }
  // A float32 in between may overflow where the sum does not.
  if (!(expected.size < 0.25 * static_cast<double>(kLargestFloat))) expected.open = true;
  return expected;
}

// An output of a row of x that stays float32.
Expected DefineFloats(const Problem& problem, const float* x, const int* values, const float* scales) {
  Expected expected;
  for (int64_t k = 0; k < problem.k; ++k) {
    const float scale = scales[k / problem.group];
    if (std::isnan(x[k]) || std::isnan(scale)) expected.nan = true;
    // What infinities make depends on the signs they meet, which the test of the kernels looks at.
    if (!std::isfinite(x[k]) || !std::isfinite(scale) || std::fabs(x[k]) > kLargestX) expected.open = true;
    // A kernel may scale a weight before it meets x.
    if (!std::isfinite(static_cast<float>(values[k]) * scale)) expected.open = true;
    const double part = values[k] * static_cast<double>(scale) * static_cast<double>(x[k]);
    expected.y += part;
    expected.size += std::fabs(part);
    // A group's sum is float32 before its scale and after it: subnormal ones are off by half of the smallest.
    expected.least +=
        kSmallest * (1 + std::fabs(static_cast<double>(scale)) + std::fabs(static_cast<double>(x[k])));
  }
  if (!(expected.size < 0.25 * static_cast<double>(kLargestFloat))) expected.open = true;
  // Half an epsilon for each product and each sum, all the same way.
  expected.rounding = (0.5 * static_cast<double>(problem.k) + 4) * kEpsilon;
  return expected;
}

// [M, N] of each matrix, one after the other.
std::vector<Expected> DefineAll(const Problem& problem, int64_t group) {
  const bool rounded = problem.rounding != Rounding::kNone;
  const std::vector<Rounded> x = rounded ? Round(problem, group) : std::vector<Rounded>();
  const int64_t groups_of_x = (problem.k + group - 1) / group;
  const int64_t groups = (problem.k + problem.group - 1) / problem.group;
  std::vector<Expected> expected;
  for (const Matrix& matrix : problem.matrices) {
    const std::vector<int> values = Values(problem, matrix);
    for (int64_t m = 0; m < problem.m; ++m) {
      for (int64_t n = 0; n < matrix.n; ++n) {
        const int* of_row = values.data() + n * problem.k;
        const float* scales = matrix.scales.data() + n * groups;
        expected.push_back(rounded ? Define(problem, x.data() + m * groups_of_x, group, of_row, scales)
                                   : DefineFloats(problem, problem.x.data() + m * problem.k, of_row, scales));
      }
    }
  }
  return expected;
}

bool Agrees(float found, const Expected& expected, int64_t groups) {
  if (expected.nan) return std::isnan(found);
  if (expected.open) return true;
  if (expected.rounding > 0) {
    const double bound = expected.rounding * expected.size + expected.least;
    return std::fabs(static_cast<double>(found) - expected.y) <= bound;
  }
  // As in matmul_nbits_test.cc, each part and each sum rounded once. The product of two scales may be
  // subnormal: off by half of the smallest number, times a group's sum of at most 128 127 255.
  const double rounding = static_cast<double>(groups) * (4 * kEpsilon * expected.size + 2.1e6 * kSmallest);
  return std::fabs(static_cast<double>(found) - expected.y) <= rounding;
}

// y [M, N] of each matrix, with the work cut in two at a place of the fuzzer's.
std::vector<std::vector<float>> Run(const Kernel& kernel, const Problem& problem,
                                    const std::vector<PackedWeights>& weights, uint32_t cut,
                                    int64_t padding) {
  const ActivationSizes sizes = SizesFor(problem.m, weights.front(), problem.rounding);
  AlignedBuffer codes, scales, sums, scratch;
  if (!codes.Allocate(sizes.codes) || !scales.Allocate(sizes.scales) || !sums.Allocate(sizes.sums) ||
      !scratch.Allocate(kScratchBytes)) {
    std::abort();
  }
  Activations activations;
  activations.m = problem.m;
  activations.groups = weights.front().groups;
  activations.group = weights.front().group;
  activations.height = TileHeight(problem.m, kernel);
  activations.codes = reinterpret_cast<int8_t*>(codes.data());
  activations.scales = reinterpret_cast<float*>(scales.data());
  activations.sums = reinterpret_cast<int32_t*>(sums.data());
  activations.rounding = problem.rounding;
  activations.scale = problem.scale_of_bytes;
  const void* x = problem.in_bytes() ? static_cast<const void*>(problem.bytes.data()) : problem.x.data();
  const int64_t tiles = activations.tiles(), some = cut % (tiles + 1);
  kernel.quantize(x, weights.front(), &activations, 0, some);
  kernel.quantize(x, weights.front(), &activations, some, tiles);
  std::vector<std::vector<float>> found;
  for (const PackedWeights& matrix : weights) {
    const int64_t stride = matrix.rows + padding;
    std::vector<float> y(static_cast<size_t>((problem.m - 1) * stride + matrix.rows), kUntouched);
    const Columns columns{y.data(), stride, matrix.rows};
    const int64_t middle = cut % (columns.pairs() + 1);
    kernel.multiply(activations, matrix, columns, middle, columns.pairs(), scratch.data());
    kernel.multiply(activations, matrix, columns, 0, middle, scratch.data());
    found.push_back(std::move(y));
  }
  return found;
}

void Check(const Kernel& kernel, const Problem& problem, const std::vector<PackedWeights>& weights,
           const std::vector<Expected>& expected, uint32_t cut, int64_t padding) {
  const std::vector<std::vector<float>> found = Run(kernel, problem, weights, cut, padding);
  const Expected* next = expected.data();
  for (size_t i = 0; i < found.size(); ++i) {
    const int64_t n = problem.matrices[i].n, stride = n + padding;
    for (int64_t row = 0; row < problem.m; ++row) {
      for (int64_t column = 0;
           column < stride && row * stride + column < static_cast<int64_t>(found[i].size()); ++column) {
        const float y = found[i][static_cast<size_t>(row * stride + column)];
        if (column < n ? Agrees(y, *next++, weights.front().groups) : y == kUntouched) continue;
        std::fprintf(stderr,
                     "%s: matrix %zu of N %lld, K %lld, group %lld, bits %d, %s, rounding %d, M %lld: "
                     "y[%lld, %lld] is %g",
                     kernel.name, i, static_cast<long long>(n), static_cast<long long>(problem.k),
                     static_cast<long long>(problem.group), problem.bits,
                     problem.has_table               ? "table"
                     : problem.matrices[i].symmetric ? "symmetric"
                                                     : "zero points",
                     static_cast<int>(problem.rounding), static_cast<long long>(problem.m),
                     static_cast<long long>(row), static_cast<long long>(column), static_cast<double>(y));
        if (column < n) std::fprintf(stderr, ", not %g (parts of %g)", next[-1].y, next[-1].size);
        std::fprintf(stderr, "\n");
        std::abort();
      }
    }
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace qcompiler::matmul_nbits;
  FuzzedDataProvider bytes(data, size);
  const Problem problem(&bytes);
  const uint32_t cut = bytes.ConsumeIntegral<uint8_t>();
  const int64_t padding = bytes.ConsumeIntegralInRange<int64_t>(0, 3);
  const std::vector<StoredWeights> stored = problem.Stored();
  std::vector<PackedWeights> weights(stored.size());
  const bool symmetric = std::all_of(stored.begin(), stored.end(), [](const StoredWeights& matrix) {
    return matrix.zero_points == nullptr;
  });
  for (size_t i = 0; i < stored.size(); ++i) {
    if (!Pack(stored[i], &weights[i])) std::abort();
    if (!symmetric && weights[i].symmetric() && !AddMiddle(&weights[i])) std::abort();
  }

  const std::vector<Expected> expected = DefineAll(problem, weights.front().group);
  static const qcompiler::CpuFeatures cpu = qcompiler::DetectCpu();
  int count = 0;
  const Kernel* kernels = Kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (kernels[i].runs_on(cpu)) Check(kernels[i], problem, weights, expected, cut, padding);
  }
  return 0;
}
