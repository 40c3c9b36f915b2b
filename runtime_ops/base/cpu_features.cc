#include "base/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qcompiler {

CpuFeatures DetectCpu() {
  CpuFeatures found;
#if defined(__x86_64__)
  // The builtins ask the operating system too whether it saves the registers.
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  found.avx512vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vnni");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (found.avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    found.avxvnni = (eax >> 4 & 1) != 0;  // leaf 7, subleaf 1; g++ 12 has no name for it here
  }
#elif defined(__aarch64__)
  found.neon_dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  return found;
}

}  // namespace qcompiler
