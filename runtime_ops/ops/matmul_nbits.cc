#include "ops/matmul_nbits.h"

#include <array>
#include <string>

#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/product.h"
#include "ops/weights_of_node.h"

namespace qcompiler {
namespace {

using matmul_nbits::Rounding;

constexpr size_t kX = 0;
// Inputs of product p: kInputsOfEach p + ...
constexpr size_t kCodes = 1, kScales = 2, kZeroPoints = 3, kBias = 4, kInputsOfEach = 4;

// kOnlyThree: of 3 bits, under a name of its own, since what makes 4 of them is in the operator's body.
template <int kProducts, bool kOnlyThree = false, Rounding kRounding = Rounding::kByGroup>
class MatMulNBits {
 public:
  static constexpr const char* kName = kRounding == Rounding::kByRow ? "DynamicQuantMatMul"
                                       : kProducts == 1 ? (kOnlyThree ? "MatMul3Bits" : "MatMulNBits")
                                       : kProducts == 2 ? (kOnlyThree ? "MatMul3BitsPair" : "MatMulNBitsPair")
                                       : kOnlyThree     ? "MatMul3BitsTriple"
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
  Node node_;
  Product product_;
};

template <int kProducts, bool kOnlyThree, Rounding kRounding>
OrtStatus* MatMulNBits<kProducts, kOnlyThree, kRounding>::Create(const OrtApi* api,
                                                                 const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  WeightsOfNode weights[kProducts];
  matmul_nbits::StoredWeights parts[kProducts];
  for (size_t p = 0; p < kProducts; ++p) {
    QCOMPILER_TRY(weights[p].Read(node_, info, kColumns[p], p * kInputsOfEach + kCodes));
    parts[p] = weights[p].stored;
    if (kOnlyThree && parts[p].bits != 3)
      return node_.Refuse("bits are " + std::to_string(parts[p].bits) + "; 3 are possible");
  }
  return product_.Create(node_, parts, kProducts, {kRounding, 0, 0});
}

template <int kProducts, bool kOnlyThree, Rounding kRounding>
OrtStatus* MatMulNBits<kProducts, kOnlyThree, kRounding>::Infer(const OrtApi* api,
                                                                OrtShapeInferContext* context) {
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
const OrtCustomOp* MatMul3BitsOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<1, true>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsPairOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<2, true>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsTripleOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<3, true>>::Get(api, infers_shapes);
}

const OrtCustomOp* DynamicQuantMatMulOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<1, false, Rounding::kByRow>>::Get(api, infers_shapes);
}

}  // namespace qcompiler
