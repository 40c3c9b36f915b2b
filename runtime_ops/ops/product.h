// y = x W^T for the operators whose weights have few bits: kernel, scratch, and ONNX Runtime's threads.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_
#define QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_

#include <memory>
#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "ops/node.h"

namespace qcompiler {

struct Scratch;

class Product {
 public:
  static constexpr int64_t kMost = int64_t{1} << 31;  // of N and of K: what they multiply to stays in int64

  // Lays weights out for the kernel of this CPU: of several products with the same K, bits and group.
  OrtStatus* Create(const Node& node, const matmul_nbits::StoredWeights* parts, size_t count);

  // y [M, N] of one product, and its bias [N] or nullptr.
  struct Output {
    float* y;
    const float* bias;
  };
  // x [M, K]; one output for each product.
  OrtStatus* Multiply(const Node& node, const OrtKernelContext* context, const float* x, int64_t m,
                      const Output* outputs) const;

  int64_t n(size_t product) const { return n_[product]; }
  int64_t k() const { return weights_.k; }

 private:
  OrtStatus* MultiplyRows(const Node& node, const OrtKernelContext* context, const float* x, int64_t m,
                          int64_t first_row, const Output* outputs) const;

  std::vector<int64_t> n_;
  matmul_nbits::PackedWeights weights_;
  const matmul_nbits::Kernel* kernel_ = nullptr;
  std::shared_ptr<Scratch> scratch_;
  int64_t threads_ = 1;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_PRODUCT_H_
