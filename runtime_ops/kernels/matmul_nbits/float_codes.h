// Codes of few bits as floats less their zero point, exactly, for any instruction set.
//
// An integer below 2^23 becomes a float without a conversion: as the lowest bits of the fraction of 2^23 it
// makes 2^23 more than itself, exactly. A code that lies `at` bits higher does so with 2^(23 - at), so that
// most need no shift; what is too much goes with the zero point.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_CODES_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_CODES_H_

#include "kernels/matmul_nbits/strip.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

// A register's lanes as integers, one for each row of weights.
template <class Isa>
struct WordsOf {
  typedef uint32_t Type __attribute__((vector_size(4 * Isa::kLanes)));
};
template <class Isa>
using Words = typename WordsOf<Isa>::Type;

// A run is what is unrolled: kK codes of each row in kBytes. Word<k> has that of k from bit At(k) on, of
// which there are kPlaces different ones, Place(k).
template <class Isa, int kBits>
struct Run {
  static constexpr int kK = 16, kBytes = kLine * kBits / 2, kWidth = kBits, kPlaces = kBits == 8 ? 2 : 4;
  static constexpr int kOfLine = 32 / kBits;
  static constexpr int Byte(int k) { return k % 4; }
  static constexpr int Quad(int k) { return k % kOfLine / 4; }
  static constexpr int Place(int k) { return Byte(k) % 2 + Quad(k) % 2 * 2; }

  template <int k>
  static QCOMPILER_INLINE Words<Isa> Word(const uint8_t* at) {
    const Words<Isa> line = reinterpret_cast<Words<Isa>>(Isa::Load(at + k / kOfLine * kLine));
    return line >> (Byte(k) / 2 * 16 + Quad(k) / 2 * 2 * kBits);
  }
};

// Of 3 bits, with kRunK codes: those of 32 k in three lines, or the last 16 k of a group in two.
template <class Isa, int kRunK>
struct RunOfThree {
  static constexpr int kK = kRunK, kBytes = kLine * (kRunK / 16 + 1), kWidth = 3, kPlaces = 2;
  static constexpr int Place(int k) { return k % 2; }

  template <int k>
  static QCOMPILER_INLINE Words<Isa> Word(const uint8_t* at) {
    constexpr int kQuad = k / 4;
    const auto codes = ThreeBits<Isa, kQuad % 4, kQuad>(at + kQuad / 4 * kLine, at + kRunK / 16 * kLine);
    return reinterpret_cast<Words<Isa>>(codes) >> (k % 4 / 2 * 16);
  }
};

template <class Isa>
struct Run<Isa, 3> : RunOfThree<Isa, 32> {};

// The bit at which codes of a place begin, and the float whose fraction they are put into.
template <class Of>
constexpr int At(int place) {
  return place % 2 * 8 + place / 2 * Of::kWidth;
}
template <class Of>
constexpr uint32_t RaisedBits(int place) {
  return static_cast<uint32_t>(127 + 23 - At<Of>(place)) << 23;
}

// What is subtracted at each place: the zero point, and what the codes are too much.
template <class Isa>
struct Points {
  typename Isa::Floats at[4];
};

template <class Isa, class Of, int... place>
QCOMPILER_INLINE void RaisePoints(Indices<place...>, typename Isa::Floats point, Points<Isa>& points) {
  ((points.at[place] = point + Isa::BroadcastFloat(static_cast<float>(1 << (23 - At<Of>(place))))), ...);
}

template <class Isa, int kBits, int... v>
QCOMPILER_INLINE void LoadPoints(Indices<v...>, const Strip<Isa>& strip, int64_t g,
                                 Points<Isa> (&points)[Isa::kVectors]) {
  using Of = Run<Isa, kBits>;
  constexpr UpTo<Of::kPlaces> kAll;
  if (strip.zero_points[0] != nullptr) {
    (RaisePoints<Isa, Of>(kAll, Isa::ToFloats(Isa::Widen(strip.zero_points[v] + g * kRows)), points[v]), ...);
  } else {
    (RaisePoints<Isa, Of>(kAll, Isa::BroadcastFloat(1 << (kBits - 1)), points[v]), ...);
  }
}

// code - zero_point of k of a run, exactly.
template <class Isa, class Of, int k>
QCOMPILER_INLINE typename Isa::Floats Value(const uint8_t* at, const Points<Isa>& points) {
  constexpr int kPlace = Of::Place(k);
  constexpr uint32_t kMask = ((1u << Of::kWidth) - 1) << At<Of>(kPlace);
  const Words<Isa> raised = (Of::template Word<k>(at) & kMask) | RaisedBits<Of>(kPlace);
  return reinterpret_cast<typename Isa::Floats>(raised) - points.at[kPlace];
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_FLOAT_CODES_H_
