// A kernel on a problem of the tests.
#ifndef QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_RUN_H_
#define QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_RUN_H_

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/matmul_nbits/test_problem.h"

namespace qcompiler {
namespace matmul_nbits {
namespace {

int failures = 0;

// The columns that one kernel makes, in two calls.
void RunInto(const Kernel& kernel, const Problem& problem, const PackedWeights& weights,
             const Columns& columns) {
  const int64_t m = problem.shape.m;
  const ActivationSizes sizes = SizesFor(m, weights, problem.shape.rounding);
  AlignedBuffer codes, scales, sums, scratch;
  if (!codes.Allocate(sizes.codes) || !scales.Allocate(sizes.scales) || !sums.Allocate(sizes.sums) ||
      !scratch.Allocate(kScratchBytes)) {
    std::abort();
  }
  Activations activations;
  activations.m = m;
  activations.groups = weights.groups;
  activations.group = weights.group;
  activations.height = TileHeight(m, kernel);
  activations.codes = reinterpret_cast<int8_t*>(codes.data());
  activations.scales = reinterpret_cast<float*>(scales.data());
  activations.sums = reinterpret_cast<int32_t*>(sums.data());
  activations.rounding = problem.shape.rounding;
  activations.scale = problem.scale_of_bytes;
  const void* x =
      problem.shape.in_bytes() ? static_cast<const void*>(problem.bytes.data()) : problem.x.data();
  const int64_t tiles = activations.tiles();
  kernel.quantize(x, weights, &activations, 0, tiles / 2);
  kernel.quantize(x, weights, &activations, tiles / 2, tiles);
  const int64_t middle = columns.pairs() / 2;
  kernel.multiply(activations, weights, columns, 0, middle, scratch.data());
  kernel.multiply(activations, weights, columns, middle, columns.pairs(), scratch.data());
}

// y [M, N] of one kernel; what it must not write is watched.
std::vector<float> Run(const Kernel& kernel, const Problem& problem, const PackedWeights& weights) {
  const Case& c = problem.shape;
  std::vector<float> y(static_cast<size_t>(c.m * c.n) + kRows, -1.0f);
  RunInto(kernel, problem, weights, {y.data(), c.n, c.n});
  for (size_t i = static_cast<size_t>(c.m * c.n); i < y.size(); ++i) {
    if (y[i] != -1.0f) {
      std::printf("%s wrote past the end of y\n", kernel.name);
      ++failures;
      break;
    }
  }
  y.resize(static_cast<size_t>(c.m * c.n));
  return y;
}

}  // namespace
}  // namespace matmul_nbits
}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_KERNELS_MATMUL_NBITS_TEST_RUN_H_
