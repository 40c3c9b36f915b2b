#include "ops/qlinear_matmul.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/product.h"
#include "ops/weights_of_node.h"

namespace qcompiler {
namespace {

using matmul_nbits::Rounding;

constexpr size_t kX = 0, kScaleOfX = 1, kZeroPointOfX = 2, kCodes = 3, kBias = 6;

class QLinearMatMul {
 public:
  static constexpr char kName[] = "QLinearMatMul";
  static constexpr Argument kInputs[] = {
      {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},  {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
      {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},  {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
      {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},  {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, true},
      {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, true}};
  static constexpr Argument kOutputs[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}};

  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context) const { return product_.Compute(node_, context, kX, kBias); }
  const OrtApi* api() const { return node_.api(); }

  static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context) {
    int64_t n = 0;
    QCOMPILER_TRY(InferAttribute(api, context, "N", &n));
    return InferProduct(api, context, kX, 0, n);
  }

 private:
  OrtStatus* ReadInput(const OrtKernelInfo* info, ProductInput* input) const;

  Node node_;
  Product product_;
};

OrtStatus* QLinearMatMul::ReadInput(const OrtKernelInfo* info, ProductInput* input) const {
  Tensor scale, zero_point;
  QCOMPILER_TRY(node_.Constant(info, kScaleOfX, "x_scale", 1, &scale));
  QCOMPILER_TRY(node_.Constant(info, kZeroPointOfX, "x_zero_point", 1, &zero_point));
  input->scale = *static_cast<const float*>(scale.data);
  if (!std::isfinite(input->scale)) return node_.Refuse("x_scale is not finite");
  if (zero_point.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) {
    input->rounding = Rounding::kSigned;
    input->zero_point = *static_cast<const int8_t*>(zero_point.data);
  } else if (zero_point.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
    input->rounding = Rounding::kUnsigned;
    input->zero_point = *static_cast<const uint8_t*>(zero_point.data);
  } else {
    return node_.Refuse("x_zero_point is neither int8 nor uint8");
  }
  return nullptr;
}

OrtStatus* QLinearMatMul::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  ProductInput input;
  QCOMPILER_TRY(ReadInput(info, &input));
  WeightsOfNode weights;
  QCOMPILER_TRY(weights.Read(node_, info, "N", kCodes));
  std::vector<matmul_nbits::PackedWeights> packed(1);
  QCOMPILER_TRY(weights.Pack(node_, &packed.front()));
  return product_.Create(node_, std::move(packed), input);
}

}  // namespace

const OrtCustomOp* QLinearMatMulOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<QLinearMatMul>::Get(api, infers_shapes);
}

}  // namespace qcompiler
