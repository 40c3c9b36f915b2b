// Activation functions of 16 numbers at once, for any instruction set: vectors of the compiler's, the same
// bits from each, since no product and sum are contracted.
//
// They err by at most 3 float32 epsilons of |v|, relu not at all. NaN stays NaN, infinity infinity; of
// -infinity comes NaN, as the formulas have it (-infinity times 0), but of relu 0.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_ACTIVATION_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_ACTIVATION_H_

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "kernels/matmul_nbits/quantize.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

// v / (1 + exp(-w)). exp(-w) is 2^whole times 2^part, part within half, by the series of exp to the seventh
// power: 1e-8 of it. Where exp(-w) is past 2^126 that is taken for infinity.
QCOMPILER_INLINE void TimesSigmoid(const Floats16& w, Floats16* v) {
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  constexpr int32_t kRoundingBits = 0x4b400000;
  constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;
  const Floats16 least = Floats16{} - 126.0f, most = Floats16{} + 126.0f;
  const Floats16 asked = w * -kLog2E;
  Floats16 power = asked < least ? least : asked;
  power = power > most ? most : power;
  const Floats16 shifted = power + kRounding;
  const Floats16 part = (power - (shifted - kRounding)) * kLn2;
  const Ints16 whole = reinterpret_cast<Ints16>(shifted) - kRoundingBits;
  Floats16 series = part * (1.0f / 5040) + 1.0f / 720;
  series = series * part + 1.0f / 120;
  series = series * part + 1.0f / 24;
  series = series * part + 1.0f / 6;
  series = series * part + 0.5f;
  series = series * part + 1.0f;
  series = series * part + 1.0f;
  const Floats16 result = *v / (1.0f + series * reinterpret_cast<Floats16>((whole + 127) << 23));
  *v = asked > most ? *v * 0.0f : result;
}

// v times the share of normal numbers below v. That is 1/2 + v P(v^2) / Q(v^2), P and Q fitted to it for |v|
// < 5.5 (an error of 8e-9, all coefficients positive: nothing cancels); beyond, 2e-8 are left to 0 or 1.
QCOMPILER_INLINE void Gelu(Floats16* value) {
  constexpr float kEnd = 5.5f;
  const Floats16 v = *value;
  const Floats16 square = v * v;
  Floats16 above = square * 2.2931219589850116e-08f + 6.301536814135034e-06f;
  above = above * square + 0.0001645701559027657f;
  above = above * square + 0.004651459865272045f;
  above = above * square + 0.03345857188105583f;
  above = above * square + 0.3989422619342804f;
  Floats16 below = square * 1.199026200993103e-06f + 7.216573430923745e-05f;
  below = below * square + 0.0018606256926432252f;
  below = below * square + 0.028415938839316368f;
  below = below * square + 0.2505345940589905f;
  below = below * square + 1.0f;
  Floats16 share = 0.5f + v * (above / below);
  share = share < 0.0f ? Floats16{} : share;  // as it may be by a rounding
  share = v < -kEnd ? Floats16{} : share;
  share = v > kEnd ? Floats16{} + 1.0f : share;
  *value = v * share;
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
