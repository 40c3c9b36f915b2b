#include "ops/gather_nbits.h"

#include <algorithm>
#include <string>
#include <type_traits>

#include "kernels/gather_nbits/gather_nbits.h"
#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/sharing.h"
#include "ops/weights_of_node.h"

namespace qcompiler {
namespace {

constexpr size_t kIndices = 0, kCodes = 1, kScales = 2, kZeroPoints = 3;
constexpr int64_t kAlone =
    1 << 16;  // numbers: some 20 us of work, not measured against waking a second thread

template <ONNXTensorElementDataType kType>
class GatherNBits {
 public:
  static constexpr char kName[] = "GatherNBits";
  static constexpr Argument kInputs[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                                         {kType},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, true}};
  static constexpr Argument kOutputs[] = {{kType}};
  using Element = std::conditional_t<kType == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, float, uint16_t>;

  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context) const;
  const OrtApi* api() const { return node_.api(); }
  static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context);

 private:
  template <class Index>
  OrtStatus* Gather(const OrtKernelContext* context, const Index* indices, int64_t count, Element* y) const;

  void GatherRow(int64_t row, Element* y) const;

  Node node_;
  gather_nbits::Table table_{};        // the node's constants, where they are as long as the session lives
  matmul_nbits::PackedWeights lines_;  // or these, of Layout::kLines
  int64_t threads_ = 1;
};

template <ONNXTensorElementDataType kType>
OrtStatus* GatherNBits<kType>::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  matmul_nbits::StoredWeights sizes{};
  Layout layout = Layout::kRows;
  QCOMPILER_TRY(ReadWeightSizes(node_, info, "N", &sizes, &layout));
  if (sizes.bits == 3) return node_.Refuse("bits are 3; 2, 4 and 8 are possible");
  table_.n = sizes.n;
  table_.k = sizes.k;
  table_.bits = sizes.bits;
  table_.block = sizes.group;
  threads_ = Threads();
  if (layout == Layout::kLines) {
    WeightsOfNode weights;
    QCOMPILER_TRY(weights.Read(node_, info, "N", kCodes));
    return weights.Pack(node_, &lines_);
  }
  const int64_t groups = table_.groups();
  Tensor codes, scales, zero_points;
  QCOMPILER_TRY(
      node_.Constant(info, kCodes, "codes", table_.n * groups * (table_.block * table_.bits / 8), &codes));
  QCOMPILER_TRY(node_.Constant(info, kScales, "scales", table_.n * groups, &scales));
  table_.codes = static_cast<const uint8_t*>(codes.data);
  table_.scales = scales.data;
  bool has_zero_points = false;
  QCOMPILER_TRY(node_.IsThere(info, kZeroPoints, &has_zero_points));
  if (has_zero_points) {
    QCOMPILER_TRY(node_.Constant(info, kZeroPoints, "zero_points",
                                 table_.n * ((groups * table_.bits + 7) / 8), &zero_points));
    table_.zero_points = static_cast<const uint8_t*>(zero_points.data);
  }
  return nullptr;
}

template <ONNXTensorElementDataType kType>
void GatherNBits<kType>::GatherRow(int64_t row, Element* y) const {
  if constexpr (std::is_same_v<Element, float>) {  // the scales of lines are float32
    if (lines_.codes != nullptr) return gather_nbits::GatherRow(lines_, row, y);
  }
  gather_nbits::GatherRow(table_, row, y);
}

template <ONNXTensorElementDataType kType>
OrtStatus* GatherNBits<kType>::Compute(OrtKernelContext* context) const {
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api()->KernelContext_GetInput(context, kIndices, &value));
  Tensor indices;
  QCOMPILER_TRY(indices.Read(api(), value));
  const int64_t count = indices.count();
  indices.dims.push_back(table_.k);
  OrtValue* output = nullptr;
  void* y = nullptr;
  QCOMPILER_TRY(
      api()->KernelContext_GetOutput(context, 0, indices.dims.data(), indices.dims.size(), &output));
  QCOMPILER_TRY(api()->GetTensorMutableData(output, &y));
  if (indices.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
    return Gather(context, static_cast<const int64_t*>(indices.data), count, static_cast<Element*>(y));
  if (indices.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
    return Gather(context, static_cast<const int32_t*>(indices.data), count, static_cast<Element*>(y));
  return node_.Refuse("indices are neither int32 nor int64");
}

template <ONNXTensorElementDataType kType>
template <class Index>
OrtStatus* GatherNBits<kType>::Gather(const OrtKernelContext* context, const Index* indices, int64_t count,
                                      Element* y) const {
  const int64_t n = table_.n;
  const Index* wrong = std::find_if(indices, indices + count, [n](Index i) { return i < -n || i >= n; });
  if (wrong != indices + count) {
    return node_.Refuse("index " + std::to_string(*wrong) + " is not one of the " + std::to_string(n) +
                        " rows");
  }
  const bool alone = threads_ == 1 || count * table_.k < kAlone;
  const int64_t tasks = std::min(count, alone ? 1 : MostTasks(threads_));
  const auto task = [&](int64_t i) {
    for (int64_t m = count * i / tasks; m < count * (i + 1) / tasks; ++m) {
      const int64_t row = indices[m] < 0 ? indices[m] + n : indices[m];
      GatherRow(row, y + m * table_.k);
    }
  };
  return ShareOut(api(), context, tasks, task);
}

template <ONNXTensorElementDataType kType>
OrtStatus* GatherNBits<kType>::Infer(const OrtApi* api, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo *indices = nullptr, *scales = nullptr, *made = nullptr;
  // Of operators of one name ONNX Runtime asks the first, whatever the type of the scales.
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  int64_t k = 0;
  QCOMPILER_TRY(InferAttribute(api, context, "K", &k));
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, kScales, &scales));
  QCOMPILER_TRY(api->GetTensorElementType(scales, &type));
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, kIndices, &indices));
  QCOMPILER_TRY(api->GetDimensionsCount(indices, &rank));
  if (rank == 0) return nullptr;  // or not known
  std::vector<int64_t> dims(rank);
  std::vector<const char*> names(rank);
  QCOMPILER_TRY(api->GetDimensions(indices, dims.data(), rank));
  QCOMPILER_TRY(api->GetSymbolicDimensions(indices, names.data(), rank));
  dims.push_back(k);
  names.push_back("");
  QCOMPILER_TRY(api->CreateTensorTypeAndShapeInfo(&made));
  const TypeAndShape y(api, made);
  QCOMPILER_TRY(api->SetTensorElementType(made, type));
  QCOMPILER_TRY(api->SetDimensions(made, dims.data(), dims.size()));
  QCOMPILER_TRY(api->SetSymbolicDimensions(made, names.data(), names.size()));
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, made);
}

}  // namespace

const OrtCustomOp* GatherNBitsOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<GatherNBits<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>>::Get(api, infers_shapes);
}
const OrtCustomOp* GatherNBitsHalfOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<GatherNBits<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>>::Get(api, infers_shapes);
}

}  // namespace qcompiler
