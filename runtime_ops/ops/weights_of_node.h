// The quantized weight of a node, as its attributes and constant inputs say it.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_
#define QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_

#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "ops/node.h"

namespace qcompiler {

// Attributes K, bits (2, 3, 4, 8), block_size (a multiple of 16), and one of name `columns`: n, k, bits and
// group.
OrtStatus* ReadWeightSizes(const Node& node, const OrtKernelInfo* info, const char* columns,
                           matmul_nbits::StoredWeights* sizes);

class WeightsOfNode {
 public:
  // Attributes as above. Inputs: codes uint8 [N, G, block_size bits / 8] at `first`, scales float32 or
  // float16 [N, G] behind it, then zero_points uint8 [N, ceil(G bits / 8)], optional (2^(bits - 1)); of any
  // rank, as many elements. Of 3 bits see StoredWeights: zero_points have 4.
  OrtStatus* Read(const Node& node, const OrtKernelInfo* info, const char* columns, size_t first);

  // In the order of the kernels.
  OrtStatus* Pack(const Node& node, matmul_nbits::PackedWeights* packed) const;

  const matmul_nbits::StoredWeights& stored() const { return stored_; }

 private:
  matmul_nbits::StoredWeights stored_{};  // points into the node's constants, and at `widened_`
  std::vector<float> widened_;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_
