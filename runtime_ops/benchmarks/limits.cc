// What this machine can do at most: bytes read from memory, multiplications and additions of 8-bit integers
// and of float32.
//
//   limits THREADS      {"threads": 1, "dram_gb_s": 12.3, "int8_gops": 345.6, "float32_gops": 86.4}, the best
//   of
//                       many runs
//
// A product of matrices cannot take less than its bytes over the first, or its operations (2 for each
// multiplication) over the second. Each instruction set's loop has the instructions of its kernel and nothing
// else.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSums = 12;  // independent ones: more than the latency of any of these instructions
constexpr int64_t kRounds = 200000;
constexpr int kRuns = 40;

// Each loop returns the operations that it did.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) double Avx512Vnni() {
  __m512i sums[kSums] = {}, codes = _mm512_set1_epi8(3), a = _mm512_set1_epi8(2);
  for (__m512i& sum : sums) asm volatile("" : "+v"(sum));  // or alike sums would be one
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, codes, a);
    asm volatile("" : "+v"(codes));
  }
  for (const __m512i& sum : sums) asm volatile("" ::"v"(sum));
  return 2.0 * 64 * kSums * static_cast<double>(kRounds);
}

__attribute__((target("avx2,avxvnni"))) double AvxVnni() {
  __m256i sums[kSums] = {}, codes = _mm256_set1_epi8(3), a = _mm256_set1_epi8(2);
  for (__m256i& sum : sums) asm volatile("" : "+x"(sum));
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, codes, a);
    asm volatile("" : "+x"(codes));
  }
  for (const __m256i& sum : sums) asm volatile("" ::"x"(sum));
  return 2.0 * 32 * kSums * static_cast<double>(kRounds);
}

__attribute__((target("avx2"))) double Avx2() {
  __m256i sums[kSums] = {}, codes = _mm256_set1_epi8(3), a = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) {
      __m256i pairs = _mm256_maddubs_epi16(codes, a);
      asm volatile("" : "+x"(pairs));  // or it would be computed once
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    asm volatile("" : "+x"(codes));
  }
  for (const __m256i& sum : sums) asm volatile("" ::"x"(sum));
  return 2.0 * 32 * kSums * static_cast<double>(kRounds);
}

// The compiler's vectors, in the largest registers of the kernels for the instruction set.
#define QCOMPILER_FLOAT_LOOP(name, isa, add, bytes, constraint)                \
  __attribute__((target(isa))) double name() {                                 \
    typedef float Floats __attribute__((vector_size(bytes)));                  \
    Floats sums[kSums] = {}, a = Floats{} + 2.0f, b = Floats{} + 3.0f;         \
    for (Floats& sum : sums) asm volatile("" : "+" constraint(sum));           \
    for (int64_t i = 0; i < kRounds; ++i) {                                    \
      _Pragma("GCC unroll 12") for (Floats& sum : sums) sum = add(a, b, sum);  \
      asm volatile("" : "+" constraint(a));                                    \
    }                                                                          \
    for (const Floats& sum : sums) asm volatile("" ::constraint(sum));         \
    return 2.0 * bytes / sizeof(float) * kSums * static_cast<double>(kRounds); \
  }
QCOMPILER_FLOAT_LOOP(Avx512Floats, "avx512f", _mm512_fmadd_ps, 64, "v")
QCOMPILER_FLOAT_LOOP(Avx2Floats, "avx2,fma", _mm256_fmadd_ps, 32, "x")
#elif defined(__aarch64__)
double NeonFloats() {
  float32x4_t sums[kSums] = {}, a = vdupq_n_f32(3), b = vdupq_n_f32(2);
  for (float32x4_t& sum : sums) asm volatile("" : "+w"(sum));
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (float32x4_t& sum : sums) sum = vfmaq_f32(sum, a, b);
    asm volatile("" : "+w"(a));
  }
  for (const float32x4_t& sum : sums) asm volatile("" ::"w"(sum));
  return 2.0 * 4 * kSums * static_cast<double>(kRounds);
}

__attribute__((target("+dotprod"))) double NeonDotprod() {
  int32x4_t sums[kSums] = {};
  int8x16_t codes = vdupq_n_s8(3), a = vdupq_n_s8(2);
  for (int32x4_t& sum : sums) asm volatile("" : "+w"(sum));
  for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int32x4_t& sum : sums) sum = vdotq_s32(sum, codes, a);
    asm volatile("" : "+w"(codes));
  }
  for (const int32x4_t& sum : sums) asm volatile("" ::"w"(sum));
  return 2.0 * 16 * kSums * static_cast<double>(kRounds);
}
#endif

double Scalar() {
  int32_t sums[kSums] = {}, code = 3, a = 2;
  for (int64_t i = 0; i < kRounds; ++i) {
    for (int32_t& sum : sums) {
      sum += code * a;
      asm volatile("" : "+r"(sum));
    }
    asm volatile("" : "+r"(code));
  }
  return 2.0 * kSums * static_cast<double>(kRounds);
}

double ScalarFloats() {
  float sums[kSums] = {}, a = 3, b = 2;
  for (int64_t i = 0; i < kRounds; ++i) {
    for (float& sum : sums) {
      sum += a * b;
      asm volatile("" : "+m"(sum));
    }
    asm volatile("" : "+m"(a));
  }
  return 2.0 * kSums * static_cast<double>(kRounds);
}

using Loop = double (*)();
struct Loops {
  Loop int8, float32;
};

// Those of the kernel that the library chooses.
Loops ChooseLoops() {
  const qcompiler::CpuFeatures cpu = qcompiler::DetectCpu();
#if defined(__x86_64__)
  if (cpu.avx512vnni) return {Avx512Vnni, Avx512Floats};
  if (cpu.avxvnni) return {AvxVnni, Avx2Floats};
  if (cpu.avx2) return {Avx2, Avx2Floats};
#elif defined(__aarch64__)
  if (cpu.neon_dotprod) return {NeonDotprod, NeonFloats};
#endif
  static_cast<void>(cpu);
  return {Scalar, ScalarFloats};
}

// The least seconds of kRuns in which `threads` threads call work(thread).
template <class Work>
double Best(int threads, Work work) {
  double best = 1e9;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = Clock::now();
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back([&work, thread] { work(thread); });
    work(0);
    for (std::thread& other : others) other.join();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

// Operations a second, in 1e9.
double Gops(int threads, Loop loop) {
  double operations = 0;
  const double seconds = Best(threads, [&](int thread) {
    const double done = loop();
    if (thread == 0) operations = done;
  });
  return operations * threads / seconds / 1e9;
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: limits THREADS\n");
    return 2;
  }
  const Loops loops = ChooseLoops();
  const double int8 = Gops(threads, loops.int8), float32 = Gops(threads, loops.float32);

  constexpr size_t kWords = size_t{256} << 17;  // 256 MB: far more than any cache
  const std::vector<uint64_t> memory(kWords, 1);
  std::vector<uint64_t> found(static_cast<size_t>(threads));
  const double reading = Best(threads, [&](int thread) {
    const size_t begin = kWords * static_cast<size_t>(thread) / static_cast<size_t>(threads);
    const size_t end = kWords * static_cast<size_t>(thread + 1) / static_cast<size_t>(threads);
    uint64_t sums[8] = {};
    for (size_t i = begin; i + 8 <= end; i += 8) {
      __builtin_prefetch(memory.data() + i + 512);
      for (size_t j = 0; j < 8; ++j) sums[j] += memory[i + j];
    }
    for (const uint64_t sum : sums) found[static_cast<size_t>(thread)] += sum;
  });
  std::printf("{\"threads\": %d, \"dram_gb_s\": %.2f, \"int8_gops\": %.1f, \"float32_gops\": %.1f}\n",
              threads, static_cast<double>(kWords * sizeof(uint64_t)) / reading / 1e9, int8, float32);
  return found[0] == 0;
}
