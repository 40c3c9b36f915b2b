// matmul_nbits with AVX2: vpmaddubsw multiplies bytes and adds pairs in 16 bits, which hold them.
#include "kernels/matmul_nbits/x86_ymm.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct Avx2With128;

struct Avx2 : Ymm {
  using With128 = Avx2With128;
  static constexpr int kMaxTile = kMaxTileAvx2, kSumRows = 1;
  static constexpr bool kSigned = true;
  static constexpr int Chains(int) { return 1; }

  static QCOMPILER_INLINE Ints MultiplyPoints(Ints points, Ints sum) {
    return _mm256_mullo_epi32(points, sum);
  }

  // 8 bits: two products of 255 and 127 would not fit in 16 bits, those of 128 and 127 do; vpmaddubsw wants
  // one factor without a sign, so the sign goes to the other.
  template <int kBits>
  static QCOMPILER_INLINE Ints Dot(Ints sum, Ints codes, Ints a) {
    const Ints pairs = kBits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes))
                                  : _mm256_maddubs_epi16(codes, a);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// Products in 16 bits, of the even bytes and of the odd ones: none of -128 and 128 is too large for their
// sum.
struct Avx2With128 : Avx2 {
  template <int>
  static QCOMPILER_INLINE Ints Dot(Ints sum, Ints codes, Ints a) {
    const Ints even = _mm256_madd_epi16(_mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8),
                                        _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
    const Ints odd = _mm256_madd_epi16(_mm256_srai_epi16(codes, 8), _mm256_srai_epi16(a, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
};

}  // namespace

QCOMPILER_DEFINE_KERNEL(Avx2, Avx2)

}  // namespace matmul_nbits
}  // namespace qcompiler
