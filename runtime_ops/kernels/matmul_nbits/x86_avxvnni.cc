// matmul_nbits with AVX-VNNI: AVX2 with vpdpbusd for its registers. With QCOMPILER_EVEX that of AVX-512,
// which computes the same: few CPUs have both, and the kernel is tested on those that have either.
#include "kernels/matmul_nbits/x86_ymm.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

struct AvxVnni : Ymm {
  using With128 = AvxVnni;
  static constexpr int kMaxTile = kMaxTileAvxVnni, kSumRows = 2;
  static constexpr bool kSigned = false;
  static constexpr int Chains(int height) { return height <= 2 ? 2 : 1; }

  static QCOMPILER_INLINE Ints MultiplyPoints(Ints points, Ints sum) {
    return _mm256_madd_epi16(points, sum);
  }
  template <int>
  static QCOMPILER_INLINE Ints Dot(Ints sum, Ints codes, Ints a) {
#if defined(QCOMPILER_EVEX)
    return _mm256_dpbusd_epi32(sum, codes, a);
#else
    return _mm256_dpbusd_avx_epi32(sum, codes, a);
#endif
  }
};

}  // namespace

#if defined(QCOMPILER_EVEX)
QCOMPILER_DEFINE_KERNEL(AvxVnniEvex, AvxVnni)
#else
QCOMPILER_DEFINE_KERNEL(AvxVnni, AvxVnni)
#endif

}  // namespace matmul_nbits
}  // namespace qcompiler
