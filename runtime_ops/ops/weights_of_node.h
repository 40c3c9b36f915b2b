// The quantized weight of a node, as its attributes and constant inputs say it.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_
#define QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_

#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"
#include "ops/node.h"

namespace qcompiler {

// How a node's weights lie in the model, by its attribute `layout`.
enum class Layout {
  kRows = 0,   // as StoredWeights has them; where there is no attribute
  kLines = 1,  // as PackedWeights has them, so that they are used where they are: in the mapped file
};

// Attributes K, bits (2, 3, 4, 8), block_size (a multiple of 16), layout (0, 1), and one of name `columns`:
// n, k, bits and group.
OrtStatus* ReadWeightSizes(const Node& node, const OrtKernelInfo* info, const char* columns,
                           matmul_nbits::StoredWeights* sizes, Layout* layout);

class WeightsOfNode {
 public:
  // Attributes as above. Inputs: codes uint8 [N, G, block_size bits / 8] at `first`, scales float32 or
  // float16 [N, G] behind it, then zero_points uint8 [N, ceil(G bits / 8)], optional (2^(bits - 1)); of any
  // rank, as many elements. Of 3 bits see StoredWeights: zero_points have 4.
  // Of Layout::kLines: codes uint8 [blocks, groups, lines, 64], scales float32 [blocks, groups, 16],
  // zero_points uint8 [blocks, groups, 16] (2^(bits - 1)), of PackedWeights' sizes and any rank.
  OrtStatus* Read(const Node& node, const OrtKernelInfo* info, const char* columns, size_t first);

  // In the order of the kernels, once: what lies so already is pointed at, unless it is at no multiple of 64
  // bytes.
  OrtStatus* Pack(const Node& node, matmul_nbits::PackedWeights* packed);

  const matmul_nbits::StoredWeights& stored() const { return stored_; }

 private:
  OrtStatus* ReadRows(const Node& node, const OrtKernelInfo* info, size_t first);
  OrtStatus* ReadLines(const Node& node, const OrtKernelInfo* info, size_t first);

  Layout layout_ = Layout::kRows;
  matmul_nbits::StoredWeights
      stored_{};  // points into the node's constants, and at `widened_`; or sizes alone
  matmul_nbits::PackedWeights lines_;
  std::vector<float> widened_;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_WEIGHTS_OF_NODE_H_
