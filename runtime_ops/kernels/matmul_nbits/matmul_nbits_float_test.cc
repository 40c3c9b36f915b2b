// Activations that stay float32: every row of kernels.inc that this CPU runs against the definition, for all
// bits, groups and remainders, and with NaN, infinity, bias, gate and residual against the reference.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "kernels/matmul_nbits/test_problem.h"
#include "kernels/matmul_nbits/test_run.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// How far an output may be off. Each of K products and sums is rounded once, by half an epsilon of itself at
// most: K / 2 epsilons of the sum of the parts' sizes if all err the same way. They do not: of parts of
// changing sign sums stay short, and 4 epsilons are more than was seen in any order. One part more or less
// is 1 / K of that sum: 2000 epsilons for the largest K here.
constexpr double kEpsilons = 4;

void Fail(const Kernel& kernel, const Case& c, const char* what, int64_t m, int64_t n, float found,
          double expected) {
  std::printf("%s: N %lld, K %lld, group %lld, bits %d, %s, M %lld: %s y[%lld, %lld] is %g, not %g\n",
              kernel.name, static_cast<long long>(c.n), static_cast<long long>(c.k),
              static_cast<long long>(c.group), c.bits, c.symmetric ? "symmetric" : "zero points",
              static_cast<long long>(c.m), what, static_cast<long long>(m), static_cast<long long>(n),
              static_cast<double>(found), expected);
  ++failures;
}

void Check(Case c, const std::vector<const Kernel*>& kernels) {
  c.rounding = Rounding::kNone;
  const Problem problem(c);
  PackedWeights weights;
  if (!Pack(problem.stored, &weights)) std::abort();
  const std::vector<double> w = Weights(problem);
  std::vector<double> expected(static_cast<size_t>(c.m * c.n)), sizes(expected.size());
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t n = 0; n < c.n; ++n) {
      const size_t at = static_cast<size_t>(m * c.n + n);
      for (int64_t k = 0; k < c.k; ++k) {
        const double part = static_cast<double>(problem.x[static_cast<size_t>(m * c.k + k)]) *
                            w[static_cast<size_t>(n * c.k + k)];
        expected[at] += part;
        sizes[at] += std::fabs(part);
      }
    }
  }
  for (const Kernel* kernel : kernels) {
    const std::vector<float> y = Run(*kernel, problem, weights);
    for (size_t i = 0; i < y.size(); ++i) {
      if (std::fabs(static_cast<double>(y[i]) - expected[i]) <= kEpsilons * kEpsilon * sizes[i]) continue;
      const int64_t at = static_cast<int64_t>(i);
      Fail(*kernel, c, "of floats", at / c.n, at % c.n, y[i], expected[i]);
      break;
    }
  }
}

bool SameKind(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::isinf(a) || std::isinf(b) ? a == b : true;
}

// NaN makes its row NaN; infinity makes it infinity of the weight's sign, or NaN where that is 0; other rows
// do not feel it. Both kinds are met by weights of few bits.
void CheckNonFinite(const Kernel& kernel) {
  for (const int64_t m : {1, 4, 15}) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      for (const int64_t place : {0, 5, 31, 40, 63, 64, 69}) {
        Problem problem({20, 70, 32, 2, true, m, false, Rounding::kNone});
        problem.x[static_cast<size_t>(70 * (m - 1) + place)] = bad;
        PackedWeights weights;
        if (!Pack(problem.stored, &weights)) std::abort();
        const std::vector<double> w = Weights(problem);
        const std::vector<float> y = Run(kernel, problem, weights);
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t n = 0; n < 20; ++n) {
            const float product = bad * static_cast<float>(w[static_cast<size_t>(n * 70 + place)]);
            const float expected = row == m - 1 ? product : 0.0f,
                        found = y[static_cast<size_t>(row * 20 + n)];
            if (SameKind(found, expected)) continue;
            Fail(kernel, problem.shape, "with NaN or infinity", row, n, found, static_cast<double>(expected));
            return;
          }
        }
      }
    }
  }
}

// Weights as large as floats are: what fills up a group, which is further from 0 than they are, is infinite.
void CheckLargeScales(const Kernel& kernel) {
  for (const int64_t k : {1, 33, 34}) {
    for (const int64_t m : {1, 30}) {
      Problem problem({20, k, 32, 2, true, m, false, Rounding::kNone});
      std::fill(problem.codes.begin(), problem.codes.end(), uint8_t{0x55});  // 1 of 0..3: -1
      std::fill(problem.scales.begin(), problem.scales.end(), 3e38f);
      std::fill(problem.x.begin(), problem.x.end(), 1.0f / 64);
      PackedWeights weights;
      if (!Pack(problem.stored, &weights)) std::abort();
      const double expected = -static_cast<double>(k) / 64 * static_cast<double>(3e38f);
      const std::vector<float> y = Run(kernel, problem, weights);
      for (size_t i = 0; i < y.size(); ++i) {
        if (std::fabs(static_cast<double>(y[i]) - expected) <= kEpsilons * kEpsilon * -expected) continue;
        const int64_t at = static_cast<int64_t>(i);
        Fail(kernel, problem.shape, "with large scales", at / 20, at % 20, y[i], expected);
        break;
      }
    }
  }
}

// Bias, gate and residual on the way to y.
void CheckFinish(const Kernel& kernel, const Kernel& reference) {
  for (const int64_t n : {1, 33, 150}) {
    for (const int64_t m : {1, 30}) {
      const Problem problem({n, 70, 32, 4, true, m, false, Rounding::kNone});
      const size_t size = static_cast<size_t>(m * n);
      std::mt19937 random(7);
      std::normal_distribution<float> normal;
      std::vector<float> added(static_cast<size_t>(2 * n)), residual(size), gate(size), found[2];
      for (std::vector<float>* values : {&added, &residual, &gate})
        for (float& value : *values) value = normal(random);
      PackedWeights weights;
      if (!Pack(problem.stored, &weights)) std::abort();
      for (int i = 0; i < 2; ++i) {
        found[i] = gate;
        Columns columns{found[i].data(), n, n};
        columns.added[0] = added.data();
        columns.added[1] = added.data() + n;
        columns.residual = residual.data();
        columns.gated = true;
        RunInto(i == 0 ? kernel : reference, problem, weights, columns);
      }
      for (size_t i = 0; i < size; ++i) {
        // Outputs and their parts are below 16, ten operations round once each.
        if (std::fabs(found[0][i] - found[1][i]) <= 10 * 16 * static_cast<float>(kEpsilon)) continue;
        const int64_t at = static_cast<int64_t>(i);
        Fail(kernel, problem.shape, "finished", at / n, at % n, found[0][i],
             static_cast<double>(found[1][i]));
        break;
      }
    }
  }
}

int Main() {
  const CpuFeatures cpu = DetectCpu();
  int count = 0;
  const Kernel* rows = Kernels(&count);
  std::vector<const Kernel*> kernels;
  for (int i = 0; i < count; ++i) {
    if (rows[i].runs_on(cpu)) {
      kernels.push_back(&rows[i]);
    } else {
      std::printf("skipped: %s (this CPU does not have it)\n", rows[i].name);
    }
  }
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1}, {17, 100}, {48, 48}, {33, 421}};
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t group : {16, 32, 48, 64, 128, 160, 256, 2000}) {
      for (const bool symmetric : {false, true}) {
        for (const auto& [n, k] : shapes) {
          const int64_t stored_group = group == 2000 ? (k + 15) / 16 * 16 : group;  // per channel
          for (const int64_t m : {1, 2, 13, 29}) Check({n, k, stored_group, bits, symmetric, m}, kernels);
        }
      }
    }
    // Every height of a tile, and of one that takes codes in registers.
    for (int64_t m = 1; m <= 25; ++m) Check({40, 200, 64, bits, false, m}, kernels);
    // Several panels; rows that are more than the near cache, in several strips at once.
    Check({65, 4096, 128, bits, false, 128}, kernels);
  }
  Check({1030, 528, 16, 4, true, 60}, kernels);   // several times the strips whose sums are kept
  Check({33, 1024, 48, 3, false, 520}, kernels);  // more rows than are gone over together
  Check({35, 11008, 32, 4, true, 3}, kernels);
  for (const Kernel* kernel : kernels) {
    CheckNonFinite(*kernel);
    CheckLargeScales(*kernel);
    CheckFinish(*kernel, rows[count - 1]);
  }
  if (failures == 0) std::printf("%zu kernels agree with the definition\n", kernels.size());
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

int main() { return qcompiler::matmul_nbits::Main(); }
