// y = x W^T for the operators whose weights have few bits: kernel, scratch, and ONNX Runtime's threads.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_
#define QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_

#include <memory>
#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "ops/node.h"

namespace qcompiler {

struct Scratch;

// What x is: float32, or 8 bits that stand for scale (code - zero_point).
struct ProductInput {
  matmul_nbits::Rounding rounding = matmul_nbits::Rounding::kByGroup;
  float scale = 0;
  int zero_point = 0;
};

// What is done with products: nothing, or one of
struct ProductOutput {
  bool gated = false;          // there are two, of as many columns, and y = second silu(first)
  size_t residual = SIZE_MAX;  // y += this input, of y's shape
  matmul_nbits::Activation activation = matmul_nbits::Activation::kNone;
  float alpha = 1;  // of it
};

class Product {
 public:
  static constexpr size_t kMostProducts = 3;
  static constexpr int64_t kMost = int64_t{1} << 31;  // of N and of K: what they multiply to stays in int64

  // Of up to kMostProducts weights with the same k, bits and group.
  OrtStatus* Create(const Node& node, std::vector<matmul_nbits::PackedWeights> weights,
                    const ProductInput& input = {}, const ProductOutput& output = {});

  static constexpr size_t kNone = SIZE_MAX;  // an input that is not there
  // A node's outputs, one for each product, from its input `x` [.., K] and biases [N], if any:
  // inputs `bias`, `bias` + `step` and so on.
  OrtStatus* Compute(const Node& node, OrtKernelContext* context, size_t x, size_t bias,
                     size_t step = 0) const;

  // y [M, N] of one product, and what is added to it: [N] to each row, or [M, N], or nullptr.
  struct Output {
    float* y;
    const float* bias;
    const float* correction;
    const float* residual;
  };

 private:
  OrtStatus* Correct(const Node& node);
  OrtStatus* Bias(const Node& node, const OrtKernelContext* context, size_t index, int64_t n,
                  const float** bias) const;
  OrtStatus* Residual(const Node& node, const OrtKernelContext* context, const std::vector<int64_t>& dims,
                      const float** residual) const;
  OrtStatus* MultiplyRows(const Node& node, const OrtKernelContext* context, const void* x, int64_t m,
                          int64_t first_row, const Output* outputs) const;

  ProductInput input_;
  ProductOutput output_;
  std::vector<float> correction_;                     // [N], for x with a zero point
  std::vector<matmul_nbits::PackedWeights> weights_;  // of each product; all with zero points, or none
  int64_t rows_ = 0;                                  // of all of them
  const matmul_nbits::Kernel* kernel_ = nullptr;
  std::shared_ptr<Scratch> scratch_;
  int64_t threads_ = 1;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_
