#include "ops/weights_of_node.h"

#include <algorithm>
#include <string>

#include "ops/product.h"

namespace qcompiler {

OrtStatus* ReadWeightSizes(const Node& node, const OrtKernelInfo* info, const char* columns,
                           matmul_nbits::StoredWeights* sizes) {
  int64_t bits = 0;
  QCOMPILER_TRY(node.Attribute(info, columns, 1, Product::kMost, &sizes->n));
  QCOMPILER_TRY(node.Attribute(info, "K", 1, Product::kMost, &sizes->k));
  QCOMPILER_TRY(node.Attribute(info, "bits", 2, 8, &bits));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    return node.Refuse("bits are " + std::to_string(bits) + "; 2, 3, 4 and 8 are possible");
  QCOMPILER_TRY(node.Attribute(info, "block_size", 16, Product::kMost, &sizes->group));
  if (sizes->group % 16 != 0)
    return node.Refuse("block_size is " + std::to_string(sizes->group) + "; a multiple of 16 is needed");
  sizes->bits = static_cast<int>(bits);
  return nullptr;
}

OrtStatus* WeightsOfNode::Read(const Node& node, const OrtKernelInfo* info, const char* columns,
                               size_t first) {
  QCOMPILER_TRY(ReadWeightSizes(node, info, columns, &stored_));
  const int64_t groups = (stored_.k + stored_.group - 1) / stored_.group;
  Tensor codes, zero_points;
  QCOMPILER_TRY(
      node.Constant(info, first, "codes", stored_.n * groups * (stored_.group * stored_.bits / 8), &codes));
  stored_.codes = static_cast<const uint8_t*>(codes.data);
  QCOMPILER_TRY(
      node.ConstantFloats(info, first + 1, "scales", stored_.n * groups, &widened_, &stored_.scales));
  bool has_zero_points = false;
  QCOMPILER_TRY(node.IsThere(info, first + 2, &has_zero_points));
  if (!has_zero_points) return nullptr;
  const int64_t bytes = stored_.n * ((groups * stored_.point_bits() + 7) / 8);
  QCOMPILER_TRY(node.Constant(info, first + 2, "zero_points", bytes, &zero_points));
  stored_.zero_points = static_cast<const uint8_t*>(zero_points.data);
  const auto is_odd = [](uint8_t pair) { return (pair & 0x11) != 0; };
  if (stored_.bits == 3 && std::any_of(stored_.zero_points, stored_.zero_points + bytes, is_odd))
    return node.Refuse("zero_points are odd; those of 3 bits are stored twice as large");
  return nullptr;
}

OrtStatus* WeightsOfNode::Pack(const Node& node, matmul_nbits::PackedWeights* packed) const {
  return matmul_nbits::Pack(stored_, packed) ? nullptr : node.Fail("no memory for its weights");
}

}  // namespace qcompiler
