#include "ops/matmul_nbits.h"

#include <array>
#include <string>
#include <vector>

#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/product.h"

namespace qcompiler {
namespace {

using matmul_nbits::StoredWeights;

constexpr size_t kX = 0;
// Inputs of product p: kInputsOfEach p + ...
constexpr size_t kCodes = 1, kScales = 2, kZeroPoints = 3, kBias = 4, kInputsOfEach = 4;

template <int kProducts>
class MatMulNBits {
 public:
  static constexpr const char* kName = kProducts == 1   ? "MatMulNBits"
                                       : kProducts == 2 ? "MatMulNBitsPair"
                                                        : "MatMulNBitsTriple";
  // The attribute for the number of columns of each product.
  static constexpr const char* kColumns[] = {kProducts == 1 ? "N" : "N_0", "N_1", "N_2"};
  static constexpr auto kInputs = [] {
    std::array<Argument, 1 + kInputsOfEach * kProducts> inputs{};
    inputs[kX] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, false};
    for (size_t first = 0; first < kInputsOfEach * kProducts; first += kInputsOfEach) {
      inputs[first + kCodes] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, false};
      inputs[first + kScales] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false};
      inputs[first + kZeroPoints] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, true};
      inputs[first + kBias] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, true};
    }
    return inputs;
  }();
  static constexpr auto kOutputs = [] {
    std::array<Argument, kProducts> outputs{};
    for (Argument& output : outputs) output = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, false};
    return outputs;
  }();

  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context) const {
    return product_.Compute(node_, context, kX, kBias, kInputsOfEach);
  }
  const OrtApi* api() const { return node_.api(); }
  static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context);

 private:
  OrtStatus* ReadSizes(const OrtKernelInfo* info, StoredWeights* parts) const;

  Node node_;
  Product product_;
};

template <int kProducts>
OrtStatus* MatMulNBits<kProducts>::ReadSizes(const OrtKernelInfo* info, StoredWeights* parts) const {
  int64_t bits = 0;
  StoredWeights sizes{};
  QCOMPILER_TRY(node_.Attribute(info, "K", 1, Product::kMost, &sizes.k));
  QCOMPILER_TRY(node_.Attribute(info, "bits", 2, 8, &bits));
  if (bits != 2 && bits != 4 && bits != 8)  // 3: the stock node that is the body does not take them
    return node_.Refuse("bits are " + std::to_string(bits) + "; 2, 4 and 8 are possible");
  QCOMPILER_TRY(node_.Attribute(info, "block_size", 16, Product::kMost, &sizes.group));
  if (sizes.group % 16 != 0)
    return node_.Refuse("block_size is " + std::to_string(sizes.group) + "; a multiple of 16 is needed");
  sizes.bits = static_cast<int>(bits);
  for (size_t p = 0; p < kProducts; ++p) {
    parts[p] = sizes;
    QCOMPILER_TRY(node_.Attribute(info, kColumns[p], 1, Product::kMost, &parts[p].n));
  }
  return nullptr;
}

template <int kProducts>
OrtStatus* MatMulNBits<kProducts>::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  StoredWeights parts[kProducts];
  QCOMPILER_TRY(ReadSizes(info, parts));
  std::vector<float> widened[kProducts];
  for (size_t p = 0; p < kProducts; ++p) {
    StoredWeights& part = parts[p];
    const size_t first = p * kInputsOfEach;
    const int64_t groups = (part.k + part.group - 1) / part.group;
    Tensor codes, zero_points;
    QCOMPILER_TRY(node_.Constant(info, first + kCodes, "codes",
                                 part.n * groups * (part.group * part.bits / 8), &codes));
    part.codes = static_cast<const uint8_t*>(codes.data);
    QCOMPILER_TRY(
        node_.ConstantFloats(info, first + kScales, "scales", part.n * groups, &widened[p], &part.scales));
    bool has_zero_points = false;
    QCOMPILER_TRY(node_.IsThere(info, first + kZeroPoints, &has_zero_points));
    if (!has_zero_points) continue;
    QCOMPILER_TRY(node_.Constant(info, first + kZeroPoints, "zero_points",
                                 part.n * ((groups * part.bits + 7) / 8), &zero_points));
    part.zero_points = static_cast<const uint8_t*>(zero_points.data);
  }
  return product_.Create(node_, parts, kProducts);
}

template <int kProducts>
OrtStatus* MatMulNBits<kProducts>::Infer(const OrtApi* api, OrtShapeInferContext* context) {
  for (size_t p = 0; p < kProducts; ++p) {
    int64_t n = 0;
    QCOMPILER_TRY(InferAttribute(api, context, kColumns[p], &n));
    QCOMPILER_TRY(InferProduct(api, context, kX, p, n));
  }
  return nullptr;
}

}  // namespace

const OrtCustomOp* MatMulNBitsOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<1>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsPairOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<2>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsTripleOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<3>>::Get(api, infers_shapes);
}

}  // namespace qcompiler
