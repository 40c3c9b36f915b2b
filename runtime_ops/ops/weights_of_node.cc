#include "ops/weights_of_node.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "ops/product.h"

namespace qcompiler {

OrtStatus* ReadWeightSizes(const Node& node, const OrtKernelInfo* info, const char* columns,
                           matmul_nbits::StoredWeights* sizes, Layout* layout) {
  int64_t bits = 0, lies = 0;
  QCOMPILER_TRY(node.Attribute(info, columns, 1, Product::kMost, &sizes->n));
  QCOMPILER_TRY(node.Attribute(info, "K", 1, Product::kMost, &sizes->k));
  QCOMPILER_TRY(node.Attribute(info, "bits", 2, 8, &bits));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    return node.Refuse("bits are " + std::to_string(bits) + "; 2, 3, 4 and 8 are possible");
  QCOMPILER_TRY(node.Attribute(info, "block_size", 16, Product::kMost, &sizes->group));
  if (sizes->group % 16 != 0)
    return node.Refuse("block_size is " + std::to_string(sizes->group) + "; a multiple of 16 is needed");
  sizes->bits = static_cast<int>(bits);
  QCOMPILER_TRY(node.Choice(info, "layout", 0, 1, &lies));
  *layout = static_cast<Layout>(lies);
  return nullptr;
}

namespace {

// Where bytes are, or a copy of them where that is no multiple of 64.
OrtStatus* Align(const Node& node, const Tensor& tensor, size_t bytes, AlignedBuffer* copy, const void** at) {
  *at = tensor.data;
  if (reinterpret_cast<uintptr_t>(tensor.data) % matmul_nbits::kLine == 0) return nullptr;
  if (!copy->Allocate(bytes)) return node.Fail("no memory for its weights");
  std::memcpy(copy->data(), tensor.data, bytes);
  *at = copy->data();
  return nullptr;
}

}  // namespace

OrtStatus* WeightsOfNode::Read(const Node& node, const OrtKernelInfo* info, const char* columns,
                               size_t first) {
  QCOMPILER_TRY(ReadWeightSizes(node, info, columns, &stored_, &layout_));
  return layout_ == Layout::kLines ? ReadLines(node, info, first) : ReadRows(node, info, first);
}

OrtStatus* WeightsOfNode::ReadRows(const Node& node, const OrtKernelInfo* info, size_t first) {
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

OrtStatus* WeightsOfNode::ReadLines(const Node& node, const OrtKernelInfo* info, size_t first) {
  matmul_nbits::SetSizes(stored_, &lines_);
  const int64_t code_bytes = lines_.cells() * lines_.group_bytes(),
                numbers = lines_.cells() * matmul_nbits::kRows;
  const size_t count = static_cast<size_t>(numbers);
  Tensor codes, scales, zero_points;
  const void* at = nullptr;
  QCOMPILER_TRY(node.Constant(info, first, "codes", code_bytes, &codes));
  QCOMPILER_TRY(Align(node, codes, static_cast<size_t>(code_bytes), &lines_.own.codes, &at));
  lines_.codes = static_cast<const uint8_t*>(at);
  QCOMPILER_TRY(node.Constant(info, first + 1, "scales", numbers, &scales));
  if (scales.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    return node.Refuse("scales are not float32; of layout 1 they have to be");
  QCOMPILER_TRY(Align(node, scales, count * sizeof(float), &lines_.own.scales, &at));
  lines_.scales = static_cast<const float*>(at);
  bool has_zero_points = false;
  QCOMPILER_TRY(node.IsThere(info, first + 2, &has_zero_points));
  if (has_zero_points) {
    QCOMPILER_TRY(node.Constant(info, first + 2, "zero_points", numbers, &zero_points));
    QCOMPILER_TRY(Align(node, zero_points, count, &lines_.own.zero_points, &at));
    lines_.zero_points = static_cast<const uint8_t*>(at);
  }
  lines_.one_scale = matmul_nbits::HasOneScale(lines_);
  return nullptr;
}

OrtStatus* WeightsOfNode::Pack(const Node& node, matmul_nbits::PackedWeights* packed) {
  if (layout_ == Layout::kLines) {
    *packed = std::move(lines_);
    return nullptr;
  }
  return matmul_nbits::Pack(stored_, packed) ? nullptr : node.Fail("no memory for its weights");
}

}  // namespace qcompiler
