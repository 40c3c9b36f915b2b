// The part of ONNX Runtime's C ABI that this library calls, declared by hand.
//
// No Python package ships ONNX Runtime's headers, and a build must not need a distribution's package for
// them. The ABI is stable: OrtApi is a table of function pointers to which versions only append, and ONNX
// Runtime holds the order of what has shipped with static_asserts of its own. So each function is its slot in
// that table; a slot that we do not call is only counted. Adding one: give its slot a name below, and assert
// its place.
//
// Conventions of the ABI: a function returns nullptr for success, else a status that the caller owns (or
// hands on).
#ifndef QCOMPILER_RUNTIME_OPS_ORT_API_H_
#define QCOMPILER_RUNTIME_OPS_ORT_API_H_

#include <cstddef>
#include <cstdint>

extern "C" {

// ONNX Runtime 1.17, the first with KernelContext_ParallelFor for custom ops: the oldest that our kernels can
// use.
constexpr uint32_t kOrtApiVersion = 17;

enum OrtErrorCode : int { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

// Of a tensor's elements; those that our operators know.
enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16 = 4,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

enum OrtCustomOpInputOutputCharacteristic : int { INPUT_OUTPUT_REQUIRED = 0, INPUT_OUTPUT_OPTIONAL = 1 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };
enum OrtOpAttrType : int { ORT_OP_ATTR_UNDEFINED = 0, ORT_OP_ATTR_INT = 1 };

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOp;

using OrtUnusedSlot = void (*)();

struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  OrtUnusedSlot unused_1[25];
  // The name is copied. The domain is the caller's and has to outlive every session that uses it.
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** domain);
  // Stores the pointer: the op has to outlive the domain.
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  // Stores the pointer; does not take the domain over.
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  OrtUnusedSlot unused_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
  OrtUnusedSlot unused_52[5];
  OrtStatus* (*CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** info);
  OrtStatus* (*SetTensorElementType)(OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type);
  OrtStatus* (*SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t count);
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* type);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* count);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count);
  // Symbolic names, "" where a dimension has none; they live as long as the info.
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                      size_t count);
  OrtUnusedSlot unused_64[1];
  // A new info, the caller's to release.
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** info);
  OrtUnusedSlot unused_66[19];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name, float* value);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* value);
  OrtUnusedSlot unused_87[1];
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* count);
  OrtUnusedSlot unused_89[1];
  // nullptr for an optional input that is not there.
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims,
                                        size_t count, OrtValue** value);
  OrtUnusedSlot unused_92[1];
  void (*ReleaseStatus)(OrtStatus* status);
  OrtUnusedSlot unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  OrtUnusedSlot unused_100[130];
  OrtStatus* (*KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* count);
  OrtUnusedSlot unused_231[1];
  // "" for an optional input that is not there. With `name` nullptr only the size is given, its end included.
  OrtStatus* (*KernelInfo_GetInputName)(const OrtKernelInfo* info, size_t index, char* name, size_t* size);
  OrtUnusedSlot unused_233[11];
  // With `name` nullptr only the size is given, its end included.
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* name, size_t* size);
  OrtUnusedSlot unused_245[4];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                  const OrtValue** value);
  OrtUnusedSlot unused_250[18];
  OrtStatus* (*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                    OrtTensorTypeAndShapeInfo** info);
  OrtStatus* (*ShapeInferContext_GetAttribute)(const OrtShapeInferContext* context, const char* name,
                                               const OrtOpAttr** attribute);
  OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                     const OrtTensorTypeAndShapeInfo* info);
  OrtStatus* (*SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char* names[], size_t count);
  OrtStatus* (*ReadOpAttr)(const OrtOpAttr* attribute, OrtOpAttrType type, void* data, size_t size,
                           size_t* needed);
  OrtUnusedSlot unused_273[1];
  // Calls run(data, i) for every i below total from the session's threads: each i alone, as threads are free,
  // where `batches` is 0; else in that many ranges.
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*run)(void* data, size_t i),
                                          size_t total, size_t batches, void* data);
};

// What we tell ONNX Runtime of an operator: version 17 of the struct. `version` says which; later fields do
// not exist for it.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  // These two in place of CreateKernel and KernelCompute: a status in place of an exception.
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
};

static_assert(sizeof(OrtCustomOp) == 22 * sizeof(void*), "OrtCustomOp has 22 fields at version 17");

struct OrtApiBase {
  // nullptr when this ONNX Runtime is older than the version asked for.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

}  // extern "C"

#define QCOMPILER_ASSERT_SLOT(name, slot)                                 \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(OrtUnusedSlot), \
                #name " is not in its slot of OrtApi")

QCOMPILER_ASSERT_SLOT(CreateStatus, 0);
QCOMPILER_ASSERT_SLOT(CreateCustomOpDomain, 26);
QCOMPILER_ASSERT_SLOT(CustomOpDomain_Add, 27);
QCOMPILER_ASSERT_SLOT(AddCustomOpDomain, 28);
QCOMPILER_ASSERT_SLOT(GetTensorMutableData, 51);
QCOMPILER_ASSERT_SLOT(CreateTensorTypeAndShapeInfo, 57);
QCOMPILER_ASSERT_SLOT(SetTensorElementType, 58);
QCOMPILER_ASSERT_SLOT(SetDimensions, 59);
QCOMPILER_ASSERT_SLOT(GetTensorElementType, 60);
QCOMPILER_ASSERT_SLOT(GetDimensionsCount, 61);
QCOMPILER_ASSERT_SLOT(GetDimensions, 62);
QCOMPILER_ASSERT_SLOT(GetSymbolicDimensions, 63);
QCOMPILER_ASSERT_SLOT(GetTensorTypeAndShape, 65);
QCOMPILER_ASSERT_SLOT(KernelInfoGetAttribute_float, 85);
QCOMPILER_ASSERT_SLOT(KernelInfoGetAttribute_int64, 86);
QCOMPILER_ASSERT_SLOT(KernelContext_GetInputCount, 88);
QCOMPILER_ASSERT_SLOT(KernelContext_GetInput, 90);
QCOMPILER_ASSERT_SLOT(KernelContext_GetOutput, 91);
QCOMPILER_ASSERT_SLOT(ReleaseStatus, 93);
QCOMPILER_ASSERT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
QCOMPILER_ASSERT_SLOT(KernelInfo_GetInputCount, 230);
QCOMPILER_ASSERT_SLOT(KernelInfo_GetInputName, 232);
QCOMPILER_ASSERT_SLOT(KernelInfo_GetNodeName, 244);
QCOMPILER_ASSERT_SLOT(KernelInfoGetConstantInput_tensor, 249);
QCOMPILER_ASSERT_SLOT(ShapeInferContext_GetInputTypeShape, 268);
QCOMPILER_ASSERT_SLOT(ShapeInferContext_GetAttribute, 269);
QCOMPILER_ASSERT_SLOT(ShapeInferContext_SetOutputTypeShape, 270);
QCOMPILER_ASSERT_SLOT(SetSymbolicDimensions, 271);
QCOMPILER_ASSERT_SLOT(ReadOpAttr, 272);
QCOMPILER_ASSERT_SLOT(KernelContext_ParallelFor, 274);

#undef QCOMPILER_ASSERT_SLOT

#endif  // QCOMPILER_RUNTIME_OPS_ORT_API_H_
