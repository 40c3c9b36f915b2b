// matmul_nbits with Arm's dot product of signed bytes: 4 rows of weights in a register, 32 registers.
#include <arm_neon.h>

#include "kernels/matmul_nbits/tile.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct NeonDotprod {
  using Ints = int32x4_t;
  using Floats = float32x4_t;
  using With128 = NeonDotprod;
  static constexpr int kLanes = 4, kVectors = 4, kMaxTile = kMaxTileNeonDotprod, kSumRows = 1;
  static constexpr bool kSigned = true;
  static constexpr int Chains(int height) { return height == 1 ? 2 : 1; }

  static QCOMPILER_INLINE uint8x16_t Bytes(Ints a) { return vreinterpretq_u8_s32(a); }
  static QCOMPILER_INLINE Ints FromBytes(uint8x16_t a) { return vreinterpretq_s32_u8(a); }
  static QCOMPILER_INLINE Ints Load(const uint8_t* at) { return FromBytes(vld1q_u8(at)); }
  static QCOMPILER_INLINE void Store(uint8_t* at, Ints value) { vst1q_u8(at, Bytes(value)); }
  static QCOMPILER_INLINE Ints Zero() { return vdupq_n_s32(0); }
  static QCOMPILER_INLINE Ints Broadcast(int32_t value) { return vdupq_n_s32(value); }
  static QCOMPILER_INLINE Ints Broadcast4(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, sizeof(four));
    return vdupq_n_s32(four);
  }
  static QCOMPILER_INLINE Ints Add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static QCOMPILER_INLINE Ints MultiplyPoints(Ints points, Ints sum) { return vmulq_s32(points, sum); }
  static QCOMPILER_INLINE Ints And(Ints a, int byte) {
    return FromBytes(vandq_u8(Bytes(a), vdupq_n_u8(static_cast<uint8_t>(byte))));
  }
  static QCOMPILER_INLINE Ints Or(Ints a, Ints b) { return vorrq_s32(a, b); }
  static QCOMPILER_INLINE Ints Lookup(const uint8_t* table, Ints index) {
    return FromBytes(vqtbl1q_u8(vld1q_u8(table), Bytes(index)));
  }
  static QCOMPILER_INLINE Ints Xor80(Ints a) { return FromBytes(veorq_u8(Bytes(a), vdupq_n_u8(0x80))); }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftRight(Ints a) {
    if constexpr (n == 0)
      return a;
    else
      return FromBytes(vshrq_n_u8(Bytes(a), n));
  }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftLeft(Ints a) {
    return FromBytes(vshlq_n_u8(Bytes(a), n));
  }
  static QCOMPILER_INLINE Ints Widen(const uint8_t* at) {
    uint32_t four;
    std::memcpy(&four, at, sizeof(four));
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
  }
  template <int>
  static QCOMPILER_INLINE Ints Dot(Ints sum, Ints codes, Ints a) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(a));
  }
  static QCOMPILER_INLINE Floats LoadFloats(const float* at) { return vld1q_f32(at); }
  static QCOMPILER_INLINE void StoreFloats(float* at, Floats value) { vst1q_f32(at, value); }
  static QCOMPILER_INLINE Floats BroadcastFloat(float value) { return vdupq_n_f32(value); }
  static QCOMPILER_INLINE Floats ToFloats(Ints value) { return vcvtq_f32_s32(value); }
  static QCOMPILER_INLINE Floats MultiplyFloats(Floats a, Floats b) { return vmulq_f32(a, b); }
  static QCOMPILER_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static QCOMPILER_INLINE void Prefetch(const uint8_t* at) { __builtin_prefetch(at); }
};

}  // namespace

QCOMPILER_DEFINE_KERNEL(NeonDotprod, NeonDotprod)

}  // namespace matmul_nbits
}  // namespace qcompiler
