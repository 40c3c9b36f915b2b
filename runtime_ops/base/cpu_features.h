// What the CPU that we run on can do; asked once, when a kernel is chosen.
#ifndef QCOMPILER_RUNTIME_OPS_BASE_CPU_FEATURES_H_
#define QCOMPILER_RUNTIME_OPS_BASE_CPU_FEATURES_H_

namespace qcompiler {

struct CpuFeatures {
  bool avx2 = false;          // with FMA, and the system saves ymm
  bool avxvnni = false;       // the VEX form of VNNI, on CPUs without AVX-512
  bool avx512vnni = false;    // with AVX-512 F, BW, DQ and VL, and the system saves zmm
  bool neon_dotprod = false;  // Arm's SDOT and UDOT
};

CpuFeatures DetectCpu();

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_BASE_CPU_FEATURES_H_
