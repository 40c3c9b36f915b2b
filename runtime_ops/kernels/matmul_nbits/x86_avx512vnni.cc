// matmul_nbits with AVX-512 VNNI: vpdpbusd takes 4 k of 16 rows at once.
#include <immintrin.h>

#include "kernels/matmul_nbits/tile.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct Avx512Vnni {
  using Ints = __m512i;
  using Floats = __m512;
  using With128 = Avx512Vnni;
  static constexpr int kLanes = 16, kVectors = 2, kMaxTile = kMaxTileAvx512Vnni,
                       kSumRows = 4;  // 24 of 32 registers
  static constexpr bool kSigned = false;
  // vpdpbusd takes 5 cycles, 2 of them start in one: 10 sums have to be on their way.
  static constexpr int Chains(int height) { return height <= 2 ? 2 : 1; }

  static QCOMPILER_INLINE Ints Load(const uint8_t* at) { return _mm512_load_si512(at); }
  static QCOMPILER_INLINE void Store(uint8_t* at, Ints value) { _mm512_store_si512(at, value); }
  static QCOMPILER_INLINE Ints Zero() { return _mm512_setzero_si512(); }
  static QCOMPILER_INLINE Ints Broadcast(int32_t value) { return _mm512_set1_epi32(value); }
  static QCOMPILER_INLINE Ints Broadcast4(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, sizeof(four));
    return _mm512_set1_epi32(four);
  }
  static QCOMPILER_INLINE Ints Add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static QCOMPILER_INLINE Ints MultiplyPoints(Ints points, Ints sum) {
    return _mm512_madd_epi16(points, sum);
  }
  static QCOMPILER_INLINE Ints And(Ints a, int byte) {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(byte)));
  }
  static QCOMPILER_INLINE Ints Or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
  static QCOMPILER_INLINE Ints Lookup(const uint8_t* table, Ints index) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), index);
  }
  static QCOMPILER_INLINE Ints Xor80(Ints a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftRight(Ints a) {
    return n == 0 ? a : _mm512_srli_epi16(a, n);
  }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftLeft(Ints a) {
    return _mm512_slli_epi16(a, n);
  }
  static QCOMPILER_INLINE Ints Widen(const uint8_t* at) {
    return _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
  }
  template <int>
  static QCOMPILER_INLINE Ints Dot(Ints sum, Ints codes, Ints a) {
    return _mm512_dpbusd_epi32(sum, codes, a);
  }
  static QCOMPILER_INLINE Floats LoadFloats(const float* at) { return _mm512_load_ps(at); }
  static QCOMPILER_INLINE void StoreFloats(float* at, Floats value) { _mm512_store_ps(at, value); }
  static QCOMPILER_INLINE Floats BroadcastFloat(float value) { return _mm512_set1_ps(value); }
  static QCOMPILER_INLINE Floats ToFloats(Ints value) { return _mm512_cvtepi32_ps(value); }
  static QCOMPILER_INLINE Floats MultiplyFloats(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static QCOMPILER_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static QCOMPILER_INLINE void Prefetch(const uint8_t* at) {
    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
  }
};

}  // namespace

QCOMPILER_DEFINE_KERNEL(Avx512Vnni, Avx512Vnni)

}  // namespace matmul_nbits
}  // namespace qcompiler
