// The reference against the definition, and every row of kernels.inc that this CPU runs against the
// reference: all bits, groups and remainders.
#include "kernels/matmul_nbits/matmul_nbits.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernels/matmul_nbits/test_problem.h"
#include "kernels/matmul_nbits/test_run.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

template <class Expected>
void Compare(const char* name, const Case& c, const std::vector<float>& y,
             const std::vector<Expected>& expected, double epsilons) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(expected[i])));
    const double difference = std::fabs(static_cast<double>(y[i]) - static_cast<double>(expected[i]));
    if (difference > error || difference != difference) error = difference;  // NaN stays: nothing is greater
  }
  if (error <= epsilons * kEpsilon * largest) return;
  std::printf("%s: N %lld K %lld group %lld bits %d %s M %lld: error %g of %g\n", name,
              static_cast<long long>(c.n), static_cast<long long>(c.k), static_cast<long long>(c.group),
              c.bits, c.symmetric ? "symmetric" : "zero points", static_cast<long long>(c.m), error, largest);
  ++failures;
}

void CheckProblem(const Problem& problem, const std::vector<const Kernel*>& kernels,
                  const Kernel& reference) {
  const Case& c = problem.shape;
  PackedWeights weights;
  if (!Pack(problem.stored, &weights)) std::abort();
  const std::vector<float> expected = Run(reference, problem, weights);
  // Every group rounds its part and the sum once each, a kernel that multiplies and adds in one step the
  // first not at all.
  const double epsilons = 4.0 * static_cast<double>(weights.groups);
  Compare("reference", c, expected, Define(problem, weights.group), epsilons);
  for (const Kernel* kernel : kernels)
    Compare(kernel->name, c, Run(*kernel, problem, weights), expected, epsilons);
}

void Check(const Case& c, const std::vector<const Kernel*>& kernels, const Kernel& reference) {
  CheckProblem(Problem(c), kernels, reference);
}

// A row with NaN or infinity is NaN wherever in its group that stands, and the others do not feel it.
void CheckNonFinite(const Kernel& kernel) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    for (const int place : {0, 5, 31, 40, 63, 64, 69}) {
      Problem problem({20, 70, 32, 4, true, 15});
      problem.x[static_cast<size_t>(70 * 3 + place)] = bad;
      PackedWeights weights;
      if (!Pack(problem.stored, &weights)) std::abort();
      const std::vector<float> y = Run(kernel, problem, weights);
      for (int i = 0; i < 15 * 20; ++i) {
        if (std::isnan(y[static_cast<size_t>(i)]) == (i / 20 == 3)) continue;
        std::printf("%s: row 3 of x holds %f at %d, row %d of y holds %f\n", kernel.name,
                    static_cast<double>(bad), place, i / 20, static_cast<double>(y[static_cast<size_t>(i)]));
        ++failures;
        return;
      }
    }
  }
}

// Symmetric weights are multiplied as those with zero points in the middle: the same integers.
void CheckMiddle(const Kernel& kernel) {
  for (const int bits : {2, 3, 4, 8}) {
    const Problem problem({50, 100, 32, bits, true, 13});
    PackedWeights symmetric, with_points;
    if (!Pack(problem.stored, &symmetric) || !Pack(problem.stored, &with_points) || !AddMiddle(&with_points))
      std::abort();
    Compare(kernel.name, problem.shape, Run(kernel, problem, with_points), Run(kernel, problem, symmetric),
            0.0);
  }
}

// Bias, gate and residual on the way to y, for every remainder of columns; gates from nothing to all.
void CheckFinish(const Kernel& kernel, const Kernel& reference) {
  for (const int64_t n : {1, 16, 33, 150}) {
    for (const int64_t m : {1, 30}) {
      const Problem problem({n, 70, 32, 4, true, m});
      const size_t size = static_cast<size_t>(m * n);
      std::mt19937 random(7);
      std::normal_distribution<float> normal;
      std::vector<float> added(static_cast<size_t>(2 * n)), residual(size), gate(size);
      for (float& value : added) value = normal(random);
      for (float& value : residual) value = normal(random);
      for (float& value : gate) value = 8.0f * normal(random);
      // Zero, whatever the size, and all of the gate.
      const float ends[] = {-3.4e38f, 3.4e30f, -1e30f, -88.0f, -87.0f, 88.0f, -200.0f, 200.0f};
      for (size_t i = 0; i < gate.size(); i += 3) gate[i] = ends[i / 3 % 8];
      PackedWeights weights;
      if (!Pack(problem.stored, &weights)) std::abort();
      for (const bool gated : {false, true}) {
        std::vector<float> found[2];
        for (int i = 0; i < 2; ++i) {
          std::vector<float>& y = found[i];
          y = gate;
          Columns columns{y.data(), n, n};
          columns.added[0] = added.data();
          columns.added[1] = added.data() + n;
          columns.residual = residual.data();
          columns.gated = gated;
          RunInto(i == 0 ? kernel : reference, problem, weights, columns);
        }
        // A product's groups as elsewhere, and six operations that round once each.
        Compare(kernel.name, problem.shape, found[0], found[1],
                4.0 * static_cast<double>(weights.groups) + 6.0);
      }
    }
  }
}

struct Function {
  Activation activation;
  float alpha;
};
constexpr Function kFunctions[] = {{Activation::kRelu, 1.0f},        {Activation::kGelu, 1.0f},
                                   {Activation::kFastGelu, 1.0f},    {Activation::kQuickGelu, 1.0f},
                                   {Activation::kQuickGelu, 1.702f}, {Activation::kQuickGelu, -0.5f},
                                   {Activation::kQuickGelu, 1e-30f}, {Activation::kQuickGelu, 3e38f}};

// The functions that matmul_nbits.h names, without the cancellations that their formulas have.
double Defined(const Function& function, double v) {
  switch (function.activation) {
    case Activation::kRelu:
      return v < 0 ? 0 : v;
    case Activation::kGelu:
      return v * (0.5 * std::erfc(-v * std::sqrt(0.5)));
    case Activation::kFastGelu:
      return v / (1 + std::exp(-2 * std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    case Activation::kQuickGelu:
      return v / (1 + std::exp(-static_cast<double>(function.alpha) * v));
    case Activation::kNone:
      break;
  }
  return v;
}

// Activations of numbers from far below 0 to far above, which come as the bias of a product that is 0.
void CheckActivations(const Kernel& kernel) {
  std::vector<float> values = {0.0f, -0.0f, 1e-45f, -1e-45f, 3.4e38f, -3.4e38f, INFINITY, -INFINITY, NAN};
  for (float size = 1e-30f; size < 1e30f; size *= 1.37f) {
    values.push_back(size);
    values.push_back(-size);
  }
  for (int i = -120000; i <= 120000; ++i) values.push_back(static_cast<float>(i) * 1e-3f);
  const int64_t n = static_cast<int64_t>(values.size());
  Problem problem({n, 16, 16, 4, true, 1});
  std::fill(problem.x.begin(), problem.x.end(), 0.0f);
  PackedWeights weights;
  if (!Pack(problem.stored, &weights)) std::abort();
  for (const Function& function : kFunctions) {
    std::vector<float> y(values.size());
    Columns columns{y.data(), n, n};
    columns.added[0] = values.data();
    columns.activation = function.activation;
    columns.alpha = function.alpha;
    RunInto(kernel, problem, weights, columns);
    for (size_t i = 0; i < values.size(); ++i) {
      const double v = static_cast<double>(values[i]), expected = Defined(function, v);
      const double found = static_cast<double>(y[i]);
      const double allowed = function.activation == Activation::kRelu
                                 ? 0
                                 : 3 * kEpsilon * std::fabs(v) + std::numeric_limits<float>::denorm_min();
      // Infinities as they are: their difference is none.
      if (std::isnan(expected) ? std::isnan(found)
                               : found == expected || std::fabs(found - expected) <= allowed)
        continue;
      std::printf("%s: activation %d (alpha %g) of %.9g is %.9g and should be %.9g\n", kernel.name,
                  static_cast<int>(function.activation), static_cast<double>(function.alpha), v, found,
                  expected);
      ++failures;
      break;
    }
  }
}

// Activations of products with a bias, for every remainder of columns.
void CheckActivated(const Kernel& kernel, const Kernel& reference) {
  for (const int64_t n : {1, 15, 16, 33, 150}) {
    for (const int64_t m : {1, 30}) {
      const Problem problem({n, 70, 32, 4, false, m});
      std::vector<float> bias(static_cast<size_t>(n));
      std::mt19937 random(11);
      std::normal_distribution<float> normal;
      for (float& value : bias) value = normal(random);
      PackedWeights weights;
      if (!Pack(problem.stored, &weights)) std::abort();
      for (const Function& function : kFunctions) {
        if (std::fabs(function.alpha) > 2) continue;  // as steep as a step: it magnifies a rounding
        std::vector<float> found[2];
        for (int i = 0; i < 2; ++i) {
          std::vector<float>& y = found[i];
          y.assign(static_cast<size_t>(m * n), -1.0f);
          Columns columns{y.data(), n, n};
          columns.added[0] = bias.data();
          columns.activation = function.activation;
          columns.alpha = function.alpha;
          RunInto(i == 0 ? kernel : reference, problem, weights, columns);
        }
        // A product's groups as elsewhere, twice, as the functions are steeper than 1 (at most 1.2), and
        // their own 3 epsilons on either side. Sums are below twice the largest output, unless none is above
        // 0.
        Compare(kernel.name, problem.shape, found[0], found[1],
                2 * (4.0 * static_cast<double>(weights.groups) + 6.0));
      }
    }
  }
}

// The largest sums there are: activations all alike or of alternating sign, codes and zero points at their
// ends.
void CheckExtremes(const std::vector<const Kernel*>& kernels, const Kernel& reference) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const uint8_t codes : {0x00, 0xff}) {
      for (const uint8_t points : {0x00, 0xff}) {
        for (const bool alternating : {false, true}) {
          const Case c{20, 300, 128, bits, false, 5};
          Problem problem(c);
          std::fill(problem.codes.begin(), problem.codes.end(), codes);
          std::fill(problem.zero_points.begin(), problem.zero_points.end(), points);
          for (size_t i = 0; i < problem.x.size(); ++i)
            problem.x[i] = alternating && i % 2 == 1 ? -3.0f : 3.0f;
          CheckProblem(problem, kernels, reference);
        }
      }
    }
  }
}

// The same of activations in 8 bits, -128 among them.
void CheckExtremeBytes(const std::vector<const Kernel*>& kernels, const Kernel& reference) {
  for (const int bits : {4, 8}) {
    for (const uint8_t codes : {0x00, 0xff}) {
      for (const uint8_t byte : {0x80, 0x7f}) {
        for (const bool one_scale : {false, true}) {
          Problem problem({20, 3000, 128, bits, true, 5, false, Rounding::kSigned, one_scale});
          std::fill(problem.codes.begin(), problem.codes.end(), codes);
          std::fill(problem.bytes.begin(), problem.bytes.end(), byte);
          CheckProblem(problem, kernels, reference);
        }
      }
    }
  }
}

int Main() {
  const CpuFeatures cpu = DetectCpu();
  int count = 0;
  const Kernel* rows = Kernels(&count);
  const Kernel& reference = rows[count - 1];
  std::vector<const Kernel*> kernels;
  for (int i = 0; i < count - 1; ++i) {
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
          for (const int64_t m : {1, 2, 13, 29}) {
            const int64_t stored_group = group == 2000 ? (k + 15) / 16 * 16 : group;  // per channel
            Check({n, k, stored_group, bits, symmetric, m}, kernels, reference);
          }
        }
      }
    }
  }
  // Every height of a tile, and a row that is cut into several panels.
  for (int64_t m = 1; m <= 24; ++m) Check({40, 200, 64, 4, false, m}, kernels, reference);
  Check({35, 3000, 128, 4, false, 14}, kernels, reference);
  for (const int64_t group : {16, 64, 160}) {
    for (const auto& [n, k] : shapes) {
      for (const int64_t m : {1, 2, 13, 29}) Check({n, k, group, 4, true, m, true}, kernels, reference);
    }
  }
  for (const Rounding rounding : {Rounding::kByRow, Rounding::kSigned, Rounding::kUnsigned}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const bool one_scale : {false, true}) {
        for (const auto& [n, k] : shapes) {
          for (const int64_t m : {1, 13, 29}) {
            Check({n, k, 32, bits, true, m, false, rounding, one_scale}, kernels, reference);
            Check({n, k, 256, bits, false, m, false, rounding, one_scale}, kernels, reference);
          }
        }
      }
    }
    Check({35, 3000, 128, 8, true, 14, false, rounding, true}, kernels, reference);
  }
  // Rows in several runs of tiles, the last of one tile alone, and weights of several panels.
  for (const int bits : {3, 4, 8}) Check({33, 4096, 128, bits, false, 128}, kernels, reference);
  Check({17, 4096, 128, 2, true, 132}, kernels, reference);
  Check({17, 11008, 32, 4, true, 47}, kernels, reference);
  Check({17, 1536, 64, 4, true, 345}, kernels, reference);
  Check({17, 4096, 128, 8, true, 130, false, Rounding::kByRow, true}, kernels, reference);
  Check({17, 20000, 16, 4, true, 30, true}, kernels, reference);
  CheckExtremes(kernels, reference);
  CheckExtremeBytes(kernels, reference);
  kernels.push_back(&reference);
  for (const Kernel* kernel : kernels) {
    CheckNonFinite(*kernel);
    CheckMiddle(*kernel);
    CheckFinish(*kernel, reference);
    CheckActivations(*kernel);
    CheckActivated(*kernel, reference);
  }
  if (failures == 0) std::printf("%zu kernels agree with the reference\n", kernels.size() - 1);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

int main() { return qcompiler::matmul_nbits::Main(); }
