// Codes out of the lines of matmul_nbits.h, for any instruction set; included by sources with a struct `Isa`
// that wraps its registers.
//
// What `Isa` has:
//   Ints, Floats          registers; Ints as kLanes int32 or 4 kLanes bytes
//   kLanes                rows of weights in a register
//   kVectors              registers of a strip: the rows of weights that are worked on together
//   kMaxTile              rows of activations whose sums for a strip fit the registers
//   kSumRows              rows of activations for which the float sums fit beside them
//   kChains(height)       independent sums for one output: a dot product takes several cycles
//   kSigned               Dot takes codes of 8 bits as signed: 128 less
//   Load, Store, Zero, Broadcast (int32), Broadcast4 (four int8 to every lane), Add
//   MultiplyPoints(points, sum)   int32; |sum| < 2^15, and points are 0 .. 255, 128 less where kSigned: where
//                         they are not, the low 16 bits hold sum, and its high ones meet the 0 above points
//   And, Or (bytes), ShiftRight<n>, ShiftLeft<n> (within 16 bits or bytes; bits from neighbours are masked)
//   Xor80 (flips the top bit of bytes), Widen (kLanes uint8 to int32)
//   Lookup                bytes of 0 .. 15 to those of a table
//   Dot<bits>(sum, codes, a)   sum + the products of 4 codes and 4 activations, -127 .. 127, in each lane
//   With128               the same Isa, or one whose Dot takes an activation of -128 too
//   LoadFloats, StoreFloats, ZeroFloats, BroadcastFloat, ToFloats, MultiplyFloats, MultiplyAdd (x y + z,
//   rounded once), Prefetch
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_UNITS_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_UNITS_H_

#include "kernels/matmul_nbits/matmul_nbits.h"

#define QCOMPILER_INLINE inline __attribute__((always_inline))

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// In place of bits: codes of 4 that stand for bytes of a table.
constexpr int kTable = 104;

// The bits of what Dot takes, and how much less than the contract says it takes them as.
template <int kBits>
constexpr int kDotBits = kBits == kTable ? 8 : kBits;
template <class Isa, int kBits>
constexpr int kOffset = Isa::kSigned && kDotBits<kBits> == 8 ? 128 : 0;

// A unit is the smallest run of lines whose codes are whole quads: kQuads of them in kBytes.
template <class Isa, int kBits>
struct Unit {
  static constexpr int kQuads = 8 / kBits, kBytes = kLine;

  template <int q>
  static QCOMPILER_INLINE typename Isa::Ints Quad(const uint8_t* at, const uint8_t*) {
    const auto codes = Isa::Load(at);
    if constexpr (kBits == 8) {
      if constexpr (Isa::kSigned) return Isa::Xor80(codes);
      return codes;
    } else {
      return Isa::And(Isa::template ShiftRight<kBits * q>(codes), (1 << kBits) - 1);
    }
  }
};

template <class Isa>
struct Unit<Isa, kTable> {
  static constexpr int kQuads = 2, kBytes = kLine;

  template <int q>
  static QCOMPILER_INLINE typename Isa::Ints Quad(const uint8_t* at, const uint8_t* table) {
    const auto bytes = Isa::Lookup(table, Unit<Isa, 4>::template Quad<q>(at, table));
    if constexpr (Isa::kSigned) return Isa::Xor80(bytes);
    return bytes;
  }
};

template <class Isa, int q, int bit>
QCOMPILER_INLINE typename Isa::Ints ThreeBits(const uint8_t* low, const uint8_t* high) {
  const auto two = Isa::And(Isa::template ShiftRight<2 * q>(Isa::Load(low)), 3);
  const auto line = Isa::Load(high);
  if constexpr (bit < 2)
    return Isa::Or(two, Isa::And(Isa::template ShiftLeft<2 - bit>(line), 4));
  else
    return Isa::Or(two, Isa::And(Isa::template ShiftRight<bit - 2>(line), 4));
}

template <class Isa>
struct Unit<Isa, 3> {  // 32 k
  static constexpr int kQuads = 8, kBytes = 3 * kLine;

  template <int q>
  static QCOMPILER_INLINE typename Isa::Ints Quad(const uint8_t* at, const uint8_t*) {
    return ThreeBits<Isa, q % 4, q>(at + q / 4 * kLine, at + 2 * kLine);
  }
};

template <class Isa>
struct HalfUnit {  // of 3 bits: the last 16 k of a group
  static constexpr int kQuads = 4, kBytes = 2 * kLine;

  template <int q>
  static QCOMPILER_INLINE typename Isa::Ints Quad(const uint8_t* at, const uint8_t*) {
    return ThreeBits<Isa, q, q>(at, at + kLine);
  }
};

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_UNITS_H_
