// The kernel for AVX-VNNI as tests run it on CPUs with AVX-512 VNNI.
#define QCOMPILER_EVEX
#include "kernels/matmul_nbits/x86_avxvnni.cc"
