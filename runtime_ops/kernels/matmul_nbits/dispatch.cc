#include "kernels/matmul_nbits/kernels.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

constexpr Kernel kKernels[] = {
#define QCOMPILER_KERNEL(name, suffix, tile, condition) \
  {#name, tile,                                         \
   [](const CpuFeatures& cpu) {                         \
     static_cast<void>(cpu);                            \
     return static_cast<bool>(condition);               \
   },                                                   \
   Quantize##suffix, Multiply##suffix},
#include "kernels/matmul_nbits/kernels.inc"
#undef QCOMPILER_KERNEL
};

}  // namespace

const Kernel* ChooseKernel(const CpuFeatures& cpu) {
  const Kernel* kernel = kKernels;
  while (!kernel->runs_on(cpu)) ++kernel;  // the last row runs everywhere
  return kernel;
}

const Kernel* Kernels(int* count) {
  *count = static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0]));
  return kKernels;
}

}  // namespace matmul_nbits
}  // namespace qcompiler
