// What ONNX Runtime is told of an operator, from its kernel's class. No exception crosses into ONNX Runtime.
//
// A class K has
//   static constexpr char kName[];
//   static constexpr Argument kInputs[], kOutputs[];   an optional one may stand before required ones
//   OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
//   OrtStatus* Compute(OrtKernelContext* context);     from several threads at once
//   const OrtApi* api() const;
//   static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context);   types and shapes of outputs
#ifndef QCOMPILER_RUNTIME_OPS_OPS_CUSTOM_OP_H_
#define QCOMPILER_RUNTIME_OPS_OPS_CUSTOM_OP_H_

#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "ops/tensor.h"
#include "ort_api.h"

namespace qcompiler {

struct Argument {
  ONNXTensorElementDataType type;  // UNDEFINED: any; Create looks
  bool optional = false;

  OrtCustomOpInputOutputCharacteristic characteristic() const {
    return optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
};

// The output of number `index` is of `type` and of the shape of x, the input of number `input`, but `n`
// for its last dimension; symbolic dimensions keep their names. An x of no known rank leaves it open.
inline OrtStatus* InferProduct(const OrtApi* api, OrtShapeInferContext* context, size_t input, size_t index,
                               int64_t n,
                               ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
  OrtTensorTypeAndShapeInfo *x = nullptr, *made = nullptr;
  size_t rank = 0;
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, input, &x));
  QCOMPILER_TRY(api->GetDimensionsCount(x, &rank));
  if (rank == 0) return nullptr;
  std::vector<int64_t> dims(rank);
  std::vector<const char*> names(rank);
  QCOMPILER_TRY(api->GetDimensions(x, dims.data(), rank));
  QCOMPILER_TRY(api->GetSymbolicDimensions(x, names.data(), rank));
  dims.back() = n;
  names.back() = "";
  QCOMPILER_TRY(api->CreateTensorTypeAndShapeInfo(&made));
  const TypeAndShape y(api, made);
  QCOMPILER_TRY(api->SetTensorElementType(made, type));
  QCOMPILER_TRY(api->SetDimensions(made, dims.data(), rank));
  QCOMPILER_TRY(api->SetSymbolicDimensions(made, names.data(), rank));
  return api->ShapeInferContext_SetOutputTypeShape(context, index, made);
}

// An integer attribute while shapes are inferred.
inline OrtStatus* InferAttribute(const OrtApi* api, const OrtShapeInferContext* context, const char* name,
                                 int64_t* value) {
  const OrtOpAttr* attribute = nullptr;
  size_t needed = 0;
  QCOMPILER_TRY(api->ShapeInferContext_GetAttribute(context, name, &attribute));
  return api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, value, sizeof(*value), &needed);
}

template <class K>
class CustomOp : public OrtCustomOp {
 public:
  // Lives as long as the library. `api` is that of the process's one ONNX Runtime; without `infers_shapes`
  // it is given nothing that infers them.
  static const OrtCustomOp* Get(const OrtApi* api, bool infers_shapes) {
    static const CustomOp op(api, infers_shapes);
    return &op;
  }

 private:
  CustomOp(const OrtApi* api, bool infers_shapes) : OrtCustomOp{}, api_(api) {
    version = kOrtApiVersion;
    GetName = [](const OrtCustomOp*) { return K::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return static_cast<const char*>(nullptr); };  // CPU
    GetInputType = [](const OrtCustomOp*, size_t index) { return K::kInputs[index].type; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(K::kInputs); };
    GetOutputType = [](const OrtCustomOp*, size_t index) { return K::kOutputs[index].type; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(K::kOutputs); };
    KernelDestroy = [](void* kernel) { delete static_cast<K*>(kernel); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return K::kInputs[i].characteristic(); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) { return K::kOutputs[i].characteristic(); };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetVariadicInputMinArity = GetVariadicInputHomogeneity = One;
    GetVariadicOutputMinArity = GetVariadicOutputHomogeneity = One;
    CreateKernelV2 = Create;
    KernelComputeV2 = Compute;
    InferOutputShapeFn = infers_shapes ? Infer : nullptr;
    GetStartVersion = One;
    GetEndVersion = [](const OrtCustomOp*) { return 2147483647; };
  }

  static int One(const OrtCustomOp*) { return 1; }

  static OrtStatus* Error(const OrtApi* api, const char* what) { return api->CreateStatus(ORT_FAIL, what); }

  static OrtStatus* Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    try {
      auto created = std::make_unique<K>();
      if (OrtStatus* status = created->Create(api, info)) return status;
      *kernel = created.release();
      return nullptr;
    } catch (const std::bad_alloc&) {
      return Error(api, "ai.qcompiler: out of memory when an operator's kernel was created");
    } catch (...) {
      return Error(api, "ai.qcompiler: an operator's kernel cannot be created");
    }
  }

  static OrtStatus* Compute(void* kernel, OrtKernelContext* context) {
    auto* created = static_cast<K*>(kernel);
    try {
      return created->Compute(context);
    } catch (const std::bad_alloc&) {
      return Error(created->api(), "ai.qcompiler: out of memory in an operator");
    } catch (...) {
      return Error(created->api(), "ai.qcompiler: an operator failed");
    }
  }

  // What cannot be inferred stays open: ONNX Runtime drops a status that comes back from here, which would
  // leak, and Create and Compute refuse in words.
  static OrtStatus* Infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
    const OrtApi* api = static_cast<const CustomOp*>(op)->api_;
    try {
      if (OrtStatus* status = K::Infer(api, context)) api->ReleaseStatus(status);
    } catch (...) {
      return nullptr;
    }
    return nullptr;
  }

  const OrtApi* api_;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_CUSTOM_OP_H_
