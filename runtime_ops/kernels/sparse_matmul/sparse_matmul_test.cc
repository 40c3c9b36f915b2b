// The reference against the definition in float64, and every row of kernels.inc that this CPU runs against
// the reference, bit by bit: all types, widths of panels and remainders.
#include "kernels/sparse_matmul/sparse_matmul.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/float16.h"

namespace qcompiler {
namespace sparse_matmul {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
int failures = 0;

void Fail(const char* kernel, const char* what) {
  std::printf("%s: %s\n", kernel, what);
  ++failures;
}

// Numbers of S in each row.
enum class Pattern { kFew, kNone, kFull, kMixed };

struct Case {
  int64_t n, k, m;
  Float type;
  bool wide;
  Pattern pattern;
  Float activations;
};

// Elements at an odd address: nothing promises more.
struct Unaligned {
  std::vector<uint8_t> bytes = std::vector<uint8_t>(1);
  template <class T>
  void Push(T value) {
    const size_t at = bytes.size();
    bytes.resize(at + sizeof(value));
    std::memcpy(&bytes[at], &value, sizeof(value));
  }
  const void* data() const { return bytes.data() + 1; }
};

struct Problem {
  explicit Problem(const Case& c) : shape(c), offsets{0} {
    std::mt19937 random(static_cast<unsigned>(c.n * 31 + c.k * 7 + c.m));
    std::normal_distribution<float> normal;
    dense.resize(static_cast<size_t>(c.n * c.k));
    for (int64_t n = 0; n < c.n; ++n) {
      const bool full = c.pattern == Pattern::kFull || (c.pattern == Pattern::kMixed && n % 5 == 3);
      for (int64_t k = 0; k < c.k; ++k) {
        if (c.pattern == Pattern::kNone || (!full && random() % 10 != 0)) continue;
        const float value = PushValue(normal(random));
        c.wide ? columns.Push(static_cast<int32_t>(k)) : columns.Push(static_cast<uint16_t>(k));
        dense[static_cast<size_t>(n * c.k + k)] = value;
        ++count;
      }
      offsets.push_back(count);
    }
    x.resize(static_cast<size_t>(c.m * c.k));
    for (float& value : x) value = normal(random);
    for (float& value : x) {
      halves.push_back(FloatToFloat16(value));
      if (c.activations == Float::k16) value = Float16ToFloat(halves.back());
    }
    stored = {c.n, values.data(), c.type, columns.data(), c.wide, offsets.data()};
  }

  float PushValue(float value) {
    if (shape.type == Float::k32) {
      values.Push(value);
      return value;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint16_t half =
        shape.type == Float::k16 ? FloatToFloat16(value) : static_cast<uint16_t>(bits >> 16);
    values.Push(half);
    return shape.type == Float::k16 ? Float16ToFloat(half) : BrainFloat16ToFloat(half);
  }

  Rows rows() {
    if (shape.activations == Float::k32) return {x.data(), Float::k32, shape.k};
    return {halves.data(), Float::k16, shape.k};
  }

  Case shape;
  Unaligned values, columns;
  std::vector<int32_t> offsets;
  int32_t count = 0;
  std::vector<float> dense, x;  // dense [N, K]
  std::vector<uint16_t> halves;
  StoredMatrix stored;
};

// y [M, N] of one kernel as float32, in several calls; what it must not write is watched.
std::vector<float> Run(const Kernel& kernel, Problem* problem, int width) {
  const Case& c = problem->shape;
  Panels panels{c.m, c.k, width, nullptr};
  AlignedBuffer arranged;
  if (!arranged.Allocate(static_cast<size_t>(panels.count() * c.k * width * 4))) std::abort();
  float* out = reinterpret_cast<float*>(arranged.data());
  panels.data = out;
  const int64_t half = c.k / 2 / 16 * 16, middle = c.n / 3;
  kernel.arrange(problem->rows(), panels, out, 0, half);
  kernel.arrange(problem->rows(), panels, out, half, c.k);
  const size_t size = static_cast<size_t>(c.m * c.n), beyond = 16;
  std::vector<float> y(size + beyond, -1.0f);
  std::vector<uint16_t> y_halves(size + beyond, 0xbc00);  // -1
  const bool is_half = c.activations == Float::k16;
  const Rows to{is_half ? static_cast<void*>(y_halves.data()) : y.data(), c.activations, c.n};
  kernel.multiply(panels, problem->stored, to, 0, middle);
  kernel.multiply(panels, problem->stored, to, middle, c.n);
  if (is_half) std::transform(y_halves.begin(), y_halves.end(), y.begin(), Float16ToFloat);
  if (std::any_of(y.begin() + static_cast<int64_t>(size), y.end(), [](float v) { return v != -1.0f; }))
    Fail(kernel.name, "wrote past the end of y");
  y.resize(size);
  return y;
}

// Of rounding: once each product and each addition, in float32, and y in its type.
void CheckDefinition(const Problem& problem, const std::vector<float>& y) {
  const Case& c = problem.shape;
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t n = 0; n < c.n; ++n) {
      double sum = 0, sizes = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double product = static_cast<double>(problem.dense[static_cast<size_t>(n * c.k + k)]) *
                               static_cast<double>(problem.x[static_cast<size_t>(m * c.k + k)]);
        sum += product;
        sizes += std::fabs(product);
      }
      const double numbers =
          problem.offsets[static_cast<size_t>(n + 1)] - problem.offsets[static_cast<size_t>(n)];
      double allowed = (numbers / kPartialSums + 4) * kEpsilon * sizes;
      if (c.activations == Float::k16) allowed += std::fabs(sum) * 0x1p-11 + 0x1p-25;
      const double found = static_cast<double>(y[static_cast<size_t>(m * c.n + n)]);
      if (std::fabs(found - sum) <= allowed) continue;
      std::printf("reference: N %lld K %lld M %lld: %g at row %lld and column %lld is not %g\n",
                  static_cast<long long>(c.n), static_cast<long long>(c.k), static_cast<long long>(c.m),
                  found, static_cast<long long>(m), static_cast<long long>(n), sum);
      ++failures;
      return;
    }
  }
}

void Check(const Case& c, const std::vector<const Kernel*>& kernels, const Kernel& reference) {
  Problem problem(c);
  const std::vector<float> expected = Run(reference, &problem, 1);
  CheckDefinition(problem, expected);
  for (const Kernel* kernel : kernels) {
    for (const int width : {1, kNarrow, kWide}) {
      if (width == 1 && c.m > 1) continue;
      if (Run(*kernel, &problem, width) != expected) Fail(kernel->name, "other numbers than the reference's");
    }
  }
}

// What a row of S does not read, it does not feel; what it reads makes it NaN or infinite.
void CheckNonFinite(const Kernel& kernel) {
  for (const int64_t m : {1, 3, 20}) {
    Problem problem({40, 50, m, Float::k32, false, Pattern::kFew, Float::k32});
    problem.x[7] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> y = Run(kernel, &problem, PanelWidth(m));
    for (int64_t i = 0; i < m * 40; ++i) {
      const bool reads = i < 40 && problem.dense[static_cast<size_t>(i * 50 + 7)] != 0.0f;
      if (std::isnan(y[static_cast<size_t>(i)]) != reads) return Fail(kernel.name, "NaN went astray");
    }
  }
}

// Every float16 comes back, and between two of them the nearest is found.
void CheckFloat16() {
  for (uint32_t half = 0; half < 0x7c00; ++half) {
    const float value = Float16ToFloat(static_cast<uint16_t>(half));
    const float next = half == 0x7bff ? 65536.0f : Float16ToFloat(static_cast<uint16_t>(half + 1));
    const float middle = value / 2 + next / 2;
    const bool right = FloatToFloat16(value) == half && FloatToFloat16(-value) == (half | 0x8000) &&
                       FloatToFloat16(middle) == half + (half & 1) &&
                       FloatToFloat16(std::nextafter(middle, 0.0f)) == half &&
                       FloatToFloat16(std::nextafter(middle, next)) == half + 1;
    if (!right) return Fail("FloatToFloat16", "not the nearest");
  }
  if (FloatToFloat16(std::numeric_limits<float>::infinity()) != 0x7c00 ||
      !std::isnan(Float16ToFloat(FloatToFloat16(std::numeric_limits<float>::quiet_NaN()))))
    Fail("FloatToFloat16", "infinity or NaN is lost");
}

int Main() {
  const CpuFeatures cpu = DetectCpu();
  int count = 0;
  const Kernel* rows = Kernels(&count);
  const Kernel& reference = rows[count - 1];
  std::vector<const Kernel*> kernels;
  for (int i = 0; i < count; ++i) {
    if (rows[i].runs_on(cpu)) {
      kernels.push_back(&rows[i]);
    } else {
      std::printf("skipped: %s (this CPU does not have it)\n", rows[i].name);
    }
  }
  for (const Float type : {Float::k32, Float::k16, Float::kBrain16}) {
    for (const bool wide : {false, true}) {
      for (const Pattern pattern : {Pattern::kFew, Pattern::kNone, Pattern::kFull, Pattern::kMixed}) {
        for (const Float activations : {Float::k32, Float::k16}) {
          for (const int64_t m : {1, 3, 17})
            Check({70, 67, m, type, wide, pattern, activations}, kernels, reference);
        }
      }
    }
  }
  for (int64_t m = 1; m <= 40; ++m)
    Check({37, 40, m, Float::k16, false, Pattern::kFew, Float::k32}, kernels, reference);
  for (int64_t n = 1; n <= 40; ++n)
    Check({n, n + 2, 5, Float::k16, false, Pattern::kFew, Float::k32}, kernels, reference);
  // Rows that no window holds, and tiles that none does.
  for (const Pattern pattern : {Pattern::kFull, Pattern::kMixed}) {
    for (const int64_t m : {1, 2, 18})
      Check({12, 4500, m, Float::k16, false, pattern, Float::k32}, kernels, reference);
  }
  for (const Kernel* kernel : kernels) CheckNonFinite(*kernel);
  CheckFloat16();
  if (failures == 0) std::printf("%zu kernels agree with the reference\n", kernels.size() - 1);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sparse_matmul
}  // namespace qcompiler

int main() { return qcompiler::sparse_matmul::Main(); }
