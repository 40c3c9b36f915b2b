#include "kernels/sparse_matmul/kernels.h"

namespace qcompiler {
namespace sparse_matmul {
namespace {

constexpr Kernel kKernels[] = {
#define QCOMPILER_KERNEL(name, suffix, condition) \
  {#name,                                         \
   [](const CpuFeatures& cpu) {                   \
     static_cast<void>(cpu);                      \
     return static_cast<bool>(condition);         \
   },                                             \
   Arrange##suffix, Multiply##suffix},
#include "kernels/sparse_matmul/kernels.inc"
#undef QCOMPILER_KERNEL
};

}  // namespace

const Kernel* ChooseKernel(const CpuFeatures& cpu) {
  const Kernel* kernel = kKernels;
  while (!kernel->runs_on(cpu)) ++kernel;  // the last rows run everywhere
  return kernel;
}

const Kernel* Kernels(int* count) {
  *count = static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0]));
  return kKernels;
}

}  // namespace sparse_matmul
}  // namespace qcompiler
