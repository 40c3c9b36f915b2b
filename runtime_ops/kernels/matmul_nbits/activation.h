// Activation functions of 16 numbers at once, for any instruction set: vectors of the compiler's, the same
// bits from each, since products and sums are rounded together where MultiplyAdd says so and nowhere else.
//
// They err by at most 3 float32 epsilons of |v|, relu not at all. NaN stays NaN, infinity infinity; of
// -infinity comes NaN, as the formulas have it (-infinity times 0), but of relu 0.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_ACTIVATION_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_ACTIVATION_H_

#include <cmath>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "kernels/matmul_nbits/quantize.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

using Words16 = uint32_t __attribute__((vector_size(64)));  // which may overflow

// a b + c, rounded once: half the operations. A loop for the compiler, which makes one instruction of it.
QCOMPILER_INLINE void MultiplyAdd(const Floats16& a, const Floats16& b, float c, Floats16* sum) {
  Floats16 result;
  for (int i = 0; i < 16; ++i) result[i] = __builtin_fmaf(a[i], b[i], c);
  *sum = result;
}

// first + second x + ..., written out: of an array the compiler makes a loop.
template <class... Rest>
QCOMPILER_INLINE void Polynomial(const Floats16& x, Floats16* sum, float first, Rest... rest) {
  if constexpr (sizeof...(rest) == 0) {
    *sum = Floats16{} + first;
  } else {
    Polynomial(x, sum, rest...);
    MultiplyAdd(*sum, x, first, sum);
  }
}

// v / (1 + exp(-w)). exp(-w) is 2^whole times 2^part, part within half, by a polynomial fitted to it (2e-9 of
// it); the whole is added to its exponent. Beyond 87 the sum is 1, or what is past 2^125 is taken for
// infinity.
QCOMPILER_INLINE void TimesSigmoid(const Floats16& w, Floats16* v) {
  constexpr float kEnd = 87.0f,
                  kRounding = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  const Floats16 power = w * -1.44269504088896341f;
  const Floats16 shifted = power + kRounding;
  Floats16 series;
  Polynomial(power - (shifted - kRounding), &series, 1.0f, 0.6931471824645996f, 0.24022646248340607f,
             0.05550328642129898f, 0.009618489071726799f, 0.0013399930903688073f, 0.00015345810970757167f);
  // kRounding's own bits are shifted out.
  const Words16 bits = reinterpret_cast<Words16>(series) + (reinterpret_cast<Words16>(shifted) << 23);
  Floats16 exp = reinterpret_cast<Floats16>(bits);
  exp = w > kEnd ? Floats16{} : exp;
  exp = w < -kEnd ? Floats16{} + INFINITY : exp;
  *v = *v / (1.0f + exp);
}

// v times the share of normal numbers below v. That is 1/2 + v P(v^2) / Q(v^2), P and Q fitted to it for |v|
// < 5.5 (an error of 8e-9, all coefficients positive: nothing cancels); beyond, 2e-8 are left to 0 or 1.
QCOMPILER_INLINE void Gelu(Floats16* v) {
  constexpr float kEnd = 5.5f;
  const Floats16 square = *v * *v;
  Floats16 above, below, share;
  Polynomial(square, &above, 0.3989422619342804f, 0.03345857188105583f, 0.004651459865272045f,
             0.0001645701559027657f, 6.301536814135034e-06f, 2.2931219589850116e-08f);
  Polynomial(square, &below, 1.0f, 0.2505345940589905f, 0.028415938839316368f, 0.0018606256926432252f,
             7.216573430923745e-05f, 1.199026200993103e-06f);
  MultiplyAdd(*v, above / below, 0.5f, &share);
  share = share < 0.0f ? Floats16{} : share;  // as it may be by a rounding
  share = *v < -kEnd ? Floats16{} : share;
  share = *v > kEnd ? Floats16{} + 1.0f : share;
  *v = *v * share;
}

// v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2, where (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
QCOMPILER_INLINE void FastGelu(Floats16* v) {
  constexpr float kFirst = 1.5957691216057308f, kThird = 0.071354816272f;  // 2 sqrt(2 / pi) (1, 0.044715)
  TimesSigmoid(*v * (kFirst + kThird * (*v * *v)), v);
}

QCOMPILER_INLINE void Activate(Activation activation, float alpha, Floats16* v) {
  switch (activation) {
    case Activation::kRelu:
      *v = *v < 0.0f ? Floats16{} : *v;  // NaN is not below
      break;
    case Activation::kGelu:
      return Gelu(v);
    case Activation::kFastGelu:
      return FastGelu(v);
    case Activation::kQuickGelu:
      return TimesSigmoid(*v * alpha, v);
    case Activation::kNone:
      break;
  }
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_ACTIVATION_H_
