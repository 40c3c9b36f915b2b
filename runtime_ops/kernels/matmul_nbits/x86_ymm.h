// What AVX2 and AVX-VNNI share: 8 rows of weights in a register, 16 registers.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_X86_YMM_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_X86_YMM_H_

#include <immintrin.h>

#include "kernels/matmul_nbits/tile.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct Ymm {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8, kVectors = 2;

  static QCOMPILER_INLINE Ints Load(const uint8_t* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  }
  static QCOMPILER_INLINE void Store(uint8_t* at, Ints value) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), value);
  }
  static QCOMPILER_INLINE Ints Zero() { return _mm256_setzero_si256(); }
  static QCOMPILER_INLINE Ints Broadcast(int32_t value) { return _mm256_set1_epi32(value); }
  static QCOMPILER_INLINE Ints Broadcast4(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, sizeof(four));
    return _mm256_set1_epi32(four);
  }
  static QCOMPILER_INLINE Ints Add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static QCOMPILER_INLINE Ints And(Ints a, int byte) {
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(byte)));
  }
  static QCOMPILER_INLINE Ints Or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
  static QCOMPILER_INLINE Ints Lookup(const uint8_t* table, Ints index) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), index);
  }
  static QCOMPILER_INLINE Ints Xor80(Ints a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftRight(Ints a) {
    return n == 0 ? a : _mm256_srli_epi16(a, n);
  }
  template <int n>
  static QCOMPILER_INLINE Ints ShiftLeft(Ints a) {
    return _mm256_slli_epi16(a, n);
  }
  static QCOMPILER_INLINE Ints Widen(const uint8_t* at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
  }
  static QCOMPILER_INLINE Floats LoadFloats(const float* at) { return _mm256_load_ps(at); }
  static QCOMPILER_INLINE void StoreFloats(float* at, Floats value) { _mm256_store_ps(at, value); }
  static QCOMPILER_INLINE Floats BroadcastFloat(float value) { return _mm256_set1_ps(value); }
  static QCOMPILER_INLINE Floats ToFloats(Ints value) { return _mm256_cvtepi32_ps(value); }
  static QCOMPILER_INLINE Floats MultiplyFloats(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static QCOMPILER_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static QCOMPILER_INLINE void Prefetch(const uint8_t* at) {
    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_X86_YMM_H_
