#include "ops/matmul_nbits.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/product.h"
#include "ops/weights_of_node.h"

namespace qcompiler {
namespace {

using matmul_nbits::Activation;
using matmul_nbits::Rounding;

constexpr size_t kX = 0;
// Inputs of product p: kInputsOfEach p + ...
constexpr size_t kCodes = 1, kScales = 2, kZeroPoints = 3, kBias = 4, kInputsOfEach = 4;

// What an operator of this file is.
struct Form {
  const char* name;
  size_t products = 1;
  Rounding rounding = Rounding::kByGroup;
  bool gated = false;  // the two products make one output
  bool adds = false;   // there is a residual, behind the first product's bias
  bool three = false;  // of 3 bits, under a name of its own, since what makes 4 of them is in the body
  Activation activation = Activation::kNone;
};

// The attribute accuracy_level of com.microsoft::MatMulNBits, which bodies hand through: activations in 8
// bits, or in float32 as they are.
constexpr char kLevel[] = "accuracy_level";
constexpr int64_t kInt8 = 4, kFloat32 = 1;

constexpr Form kAlone = {"MatMulNBits"}, kPair = {"MatMulNBitsPair", 2}, kTriple = {"MatMulNBitsTriple", 3},
               kByRow = {"DynamicQuantMatMul", 1, Rounding::kByRow},
               kAdd = {"MatMulNBitsAdd", 1, Rounding::kByGroup, false, true},
               kSwiGlu = {"MatMulNBitsSwiGlu", 2, Rounding::kByGroup, true},
               kThree = {"MatMul3Bits", 1, Rounding::kByGroup, false, false, true},
               kThreePair = {"MatMul3BitsPair", 2, Rounding::kByGroup, false, false, true},
               kThreeTriple = {"MatMul3BitsTriple", 3, Rounding::kByGroup, false, false, true},
               kThreeAdd = {"MatMul3BitsAdd", 1, Rounding::kByGroup, false, true, true},
               kThreeSwiGlu = {"MatMul3BitsSwiGlu", 2, Rounding::kByGroup, true, false, true};

constexpr Form Activated(const char* name, Activation activation, bool three = false) {
  return {name, 1, Rounding::kByGroup, false, false, three, activation};
}
constexpr Form kRelu = Activated("MatMulNBitsRelu", Activation::kRelu),
               kGelu = Activated("MatMulNBitsGelu", Activation::kGelu),
               kFastGelu = Activated("MatMulNBitsFastGelu", Activation::kFastGelu),
               kQuickGelu = Activated("MatMulNBitsQuickGelu", Activation::kQuickGelu),
               kThreeRelu = Activated("MatMul3BitsRelu", Activation::kRelu, true),
               kThreeGelu = Activated("MatMul3BitsGelu", Activation::kGelu, true),
               kThreeFastGelu = Activated("MatMul3BitsFastGelu", Activation::kFastGelu, true),
               kThreeQuickGelu = Activated("MatMul3BitsQuickGelu", Activation::kQuickGelu, true);

template <const Form& kForm>
class MatMulNBits {
 public:
  static constexpr const char* kName = kForm.name;
  // The attribute for the number of columns of each product.
  static constexpr const char* kColumns[] = {kForm.products == 1 ? "N" : "N_0", "N_1", "N_2"};
  static constexpr size_t kResidual = 1 + kInputsOfEach * kForm.products;
  static constexpr auto kInputs = [] {
    std::array<Argument, kResidual + (kForm.adds ? 1 : 0)> inputs{};
    inputs[kX] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, false};
    for (size_t first = 0; first < kInputsOfEach * kForm.products; first += kInputsOfEach) {
      inputs[first + kCodes] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, false};
      inputs[first + kScales] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, false};
      inputs[first + kZeroPoints] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, true};
      inputs[first + kBias] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, true};
    }
    if (kForm.adds) inputs.back() = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, false};
    return inputs;
  }();
  static constexpr auto kOutputs = [] {
    std::array<Argument, kForm.gated ? 1 : kForm.products> outputs{};
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

template <const Form& kForm>
OrtStatus* MatMulNBits<kForm>::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  std::vector<matmul_nbits::PackedWeights> parts(kForm.products);
  for (size_t p = 0; p < kForm.products; ++p) {
    WeightsOfNode weights;
    QCOMPILER_TRY(weights.Read(node_, info, kColumns[p], p * kInputsOfEach + kCodes));
    if (kForm.three && weights.stored().bits != 3)
      return node_.Refuse("bits are " + std::to_string(weights.stored().bits) + "; 3 are possible");
    QCOMPILER_TRY(weights.Pack(node_, &parts[p]));
  }
  if (kForm.gated && parts.front().rows != parts.back().rows) {
    return node_.Refuse("N_0 is " + std::to_string(parts.front().rows) + ", but N_1 " +
                        std::to_string(parts.back().rows) + "; they have to be the same");
  }
  ProductOutput output{kForm.gated, kForm.adds ? kResidual : Product::kNone, kForm.activation};
  if (kForm.activation == Activation::kQuickGelu)
    QCOMPILER_TRY(node_.Attribute(info, "alpha", &output.alpha));
  int64_t level = kInt8;
  if (kForm.rounding == Rounding::kByGroup)
    QCOMPILER_TRY(node_.Choice(info, kLevel, kInt8, kFloat32, &level));
  const Rounding rounding = level == kFloat32 ? Rounding::kNone : kForm.rounding;
  return product_.Create(node_, std::move(parts), {rounding, 0, 0}, output);
}

template <const Form& kForm>
OrtStatus* MatMulNBits<kForm>::Infer(const OrtApi* api, OrtShapeInferContext* context) {
  for (size_t p = 0; p < kOutputs.size(); ++p) {
    int64_t n = 0;
    QCOMPILER_TRY(InferAttribute(api, context, kColumns[p], &n));
    QCOMPILER_TRY(InferProduct(api, context, kX, p, n));
  }
  return nullptr;
}

}  // namespace

const OrtCustomOp* MatMulNBitsOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kAlone>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsPairOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kPair>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsTripleOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kTriple>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsAddOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kAdd>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsSwiGluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kSwiGlu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThree>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsAddOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeAdd>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsPairOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreePair>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsSwiGluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeSwiGlu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsTripleOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeTriple>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsReluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kRelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsFastGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kFastGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMulNBitsQuickGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kQuickGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsReluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeRelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsFastGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeFastGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* MatMul3BitsQuickGeluOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kThreeQuickGelu>>::Get(api, infers_shapes);
}
const OrtCustomOp* DynamicQuantMatMulOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulNBits<kByRow>>::Get(api, infers_shapes);
}

}  // namespace qcompiler
