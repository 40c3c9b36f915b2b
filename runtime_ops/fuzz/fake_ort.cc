#include "fuzz/fake_ort.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "op_library.h"

struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};

struct OrtSessionOptions {};

int64_t OrtTensorTypeAndShapeInfo::count() const {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

namespace qcompiler {

namespace {

constexpr int64_t kMostElements = 1 << 22;  // of an output: more fails, as where there is no memory

OrtCustomOpDomain domain;
int calls_until_failure = 0;

bool Fails() { return calls_until_failure > 0 && --calls_until_failure == 0; }

OrtStatus* Refuse(const char* why) { return new OrtStatus{why}; }

// What every function begins with that may fail.
#define MAY_FAIL() \
  if (Fails()) return Refuse("failed, as the fuzzer chose")

FakeNode* Of(const OrtKernelInfo* info) {
  return reinterpret_cast<FakeNode*>(const_cast<OrtKernelInfo*>(info));
}
FakeNode* Of(const OrtKernelContext* context) {
  return reinterpret_cast<FakeNode*>(const_cast<OrtKernelContext*>(context));
}
FakeNode* Of(const OrtShapeInferContext* context) {
  return reinterpret_cast<FakeNode*>(const_cast<OrtShapeInferContext*>(context));
}

OrtStatus* CopyText(const std::string& text, char* to, size_t* size) {
  MAY_FAIL();
  if (to != nullptr && *size < text.size() + 1) return Refuse("too small");
  *size = text.size() + 1;
  if (to != nullptr) std::memcpy(to, text.c_str(), *size);
  return nullptr;
}

OrtStatus* CreateStatus(OrtErrorCode, const char* message) { return new OrtStatus{message}; }
void ReleaseStatus(OrtStatus* status) { delete status; }

OrtStatus* CreateCustomOpDomain(const char*, OrtCustomOpDomain** made) {
  *made = &domain;
  return nullptr;
}
OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* to, const OrtCustomOp* op) {
  to->ops.push_back(op);
  return nullptr;
}
OrtStatus* AddCustomOpDomain(OrtSessionOptions*, OrtCustomOpDomain*) { return nullptr; }

OrtStatus* GetTensorMutableData(OrtValue* value, void** data) {
  MAY_FAIL();
  *data = value->data.data();
  return nullptr;
}

// Types and shapes.

OrtStatus* CreateInfo(OrtTensorTypeAndShapeInfo** info) {
  MAY_FAIL();
  *info = new OrtTensorTypeAndShapeInfo;
  return nullptr;
}
void ReleaseInfo(OrtTensorTypeAndShapeInfo* info) { delete info; }
OrtStatus* SetType(OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type) {
  MAY_FAIL();
  info->type = type;
  return nullptr;
}
OrtStatus* SetDimensions(OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t count) {
  MAY_FAIL();
  info->dims.assign(dims, dims + count);
  return nullptr;
}
OrtStatus* SetSymbolicDimensions(OrtTensorTypeAndShapeInfo* info, const char* names[], size_t count) {
  MAY_FAIL();
  if (count != info->dims.size()) return Refuse("another number of names than of dimensions");
  for (size_t i = 0; i < count; ++i) {
    if (std::strlen(names[i]) > 1) return Refuse("a name that was never given");
  }
  return nullptr;
}
OrtStatus* GetType(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* type) {
  MAY_FAIL();
  *type = info->type;
  return nullptr;
}
OrtStatus* GetRank(const OrtTensorTypeAndShapeInfo* info, size_t* count) {
  MAY_FAIL();
  *count = info->dims.size();
  return nullptr;
}
OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count) {
  MAY_FAIL();
  std::copy_n(info->dims.begin(), std::min(count, info->dims.size()), dims);
  return nullptr;
}
OrtStatus* GetSymbolicDimensions(const OrtTensorTypeAndShapeInfo* info, const char** names, size_t count) {
  MAY_FAIL();
  for (size_t i = 0; i < std::min(count, info->dims.size()); ++i) names[i] = info->dims[i] < 0 ? "M" : "";
  return nullptr;
}
OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) {
  MAY_FAIL();
  *info = new OrtTensorTypeAndShapeInfo(value->info);
  return nullptr;
}

// While a kernel is created.

OrtStatus* GetAttribute(const OrtKernelInfo* info, const char* name, int64_t* value) {
  MAY_FAIL();
  const OrtOpAttr& attribute = Of(info)->Attribute(name);
  if (!attribute.value) return Refuse("no such attribute");
  *value = *attribute.value;
  return nullptr;
}
OrtStatus* GetFloatAttribute(const OrtKernelInfo* info, const char* name, float* value) {
  MAY_FAIL();
  const OrtOpAttr& attribute = Of(info)->Attribute(name);
  if (!attribute.value) return Refuse("no such attribute");
  std::memcpy(value, &*attribute.value, sizeof(*value));  // any bits: NaN and infinity too
  return nullptr;
}
OrtStatus* GetInputCount(const OrtKernelInfo* info, size_t* count) {
  MAY_FAIL();
  *count = Of(info)->inputs.size();
  return nullptr;
}
OrtStatus* GetInputName(const OrtKernelInfo* info, size_t index, char* name, size_t* size) {
  const FakeNode* node = Of(info);
  if (index >= node->inputs.size()) return Refuse("no such input");
  return CopyText(node->inputs[index] == nullptr ? "" : "input", name, size);
}
OrtStatus* GetNodeName(const OrtKernelInfo* info, char* name, size_t* size) {
  return CopyText(Of(info)->name, name, size);
}
OrtStatus* GetConstantInput(const OrtKernelInfo* info, size_t index, int* is_constant,
                            const OrtValue** value) {
  MAY_FAIL();
  FakeNode* node = Of(info);
  node->last_constant = index;
  const OrtValue* found = index < node->inputs.size() ? node->inputs[index].get() : nullptr;
  *is_constant = found != nullptr && found->constant;
  *value = *is_constant ? found : nullptr;
  return nullptr;
}

// While it computes.

OrtStatus* ContextInputCount(const OrtKernelContext* context, size_t* count) {
  MAY_FAIL();
  *count = Of(context)->inputs.size();
  return nullptr;
}
OrtStatus* ContextInput(const OrtKernelContext* context, size_t index, const OrtValue** value) {
  MAY_FAIL();
  const FakeNode* node = Of(context);
  if (index >= node->inputs.size()) return Refuse("no such input");
  *value = node->inputs[index].get();
  return nullptr;
}
OrtStatus* ContextOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count,
                         OrtValue** value) {
  MAY_FAIL();
  auto made = std::make_unique<OrtValue>();
  made->info = {Of(context)->outputs_type(index), {dims, dims + count}};
  int64_t elements = 1;
  for (const int64_t dim : made->info.dims) {
    if (dim < 0) std::abort();  // no operator may ask for that
    if (dim > 0 && elements > kMostElements / dim) return Refuse("no memory for an output");
    elements *= dim;
  }
  made->data.Allocate(static_cast<size_t>(elements) * ElementSize(made->info.type), false);
  *value = made.get();
  Of(context)->outputs[index] = std::move(made);
  return nullptr;
}
OrtStatus* ParallelFor(const OrtKernelContext*, void (*run)(void*, size_t), size_t total, size_t,
                       void* data) {
  MAY_FAIL();
  while (total > 0) run(data, --total);  // in an order that nothing may count on
  return nullptr;
}

// While shapes are inferred.

OrtStatus* ShapeOfInput(const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** info) {
  MAY_FAIL();
  FakeNode* node = Of(context);
  if (index >= node->inputs.size() || node->inputs[index] == nullptr) return Refuse("no such input");
  *info = &node->inputs[index]->info;
  return nullptr;
}
OrtStatus* ShapeAttribute(const OrtShapeInferContext* context, const char* name,
                          const OrtOpAttr** attribute) {
  MAY_FAIL();
  const OrtOpAttr& found = Of(context)->Attribute(name);
  if (!found.value) return Refuse("no such attribute");
  *attribute = &found;
  return nullptr;
}
OrtStatus* SetShapeOfOutput(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*) {
  MAY_FAIL();
  return nullptr;
}
OrtStatus* ReadAttribute(const OrtOpAttr* attribute, OrtOpAttrType type, void* data, size_t size,
                         size_t* needed) {
  MAY_FAIL();
  *needed = sizeof(int64_t);
  if (type != ORT_OP_ATTR_INT || size < sizeof(int64_t)) return Refuse("another attribute");
  std::memcpy(data, &*attribute->value, sizeof(int64_t));
  return nullptr;
}

OrtApi MakeApi() {
  OrtApi api{};
  api.CreateStatus = CreateStatus;
  api.ReleaseStatus = ReleaseStatus;
  api.CreateCustomOpDomain = CreateCustomOpDomain;
  api.CustomOpDomain_Add = CustomOpDomain_Add;
  api.AddCustomOpDomain = AddCustomOpDomain;
  api.GetTensorMutableData = GetTensorMutableData;
  api.CreateTensorTypeAndShapeInfo = CreateInfo;
  api.ReleaseTensorTypeAndShapeInfo = ReleaseInfo;
  api.SetTensorElementType = SetType;
  api.SetDimensions = SetDimensions;
  api.SetSymbolicDimensions = SetSymbolicDimensions;
  api.GetTensorElementType = GetType;
  api.GetDimensionsCount = GetRank;
  api.GetDimensions = GetDimensions;
  api.GetSymbolicDimensions = GetSymbolicDimensions;
  api.GetTensorTypeAndShape = GetTensorTypeAndShape;
  api.KernelInfoGetAttribute_float = GetFloatAttribute;
  api.KernelInfoGetAttribute_int64 = GetAttribute;
  api.KernelInfo_GetInputCount = GetInputCount;
  api.KernelInfo_GetInputName = GetInputName;
  api.KernelInfo_GetNodeName = GetNodeName;
  api.KernelInfoGetConstantInput_tensor = GetConstantInput;
  api.KernelContext_GetInputCount = ContextInputCount;
  api.KernelContext_GetInput = ContextInput;
  api.KernelContext_GetOutput = ContextOutput;
  api.KernelContext_ParallelFor = ParallelFor;
  api.ShapeInferContext_GetInputTypeShape = ShapeOfInput;
  api.ShapeInferContext_GetAttribute = ShapeAttribute;
  api.ShapeInferContext_SetOutputTypeShape = SetShapeOfOutput;
  api.ReadOpAttr = ReadAttribute;
  return api;
}

}  // namespace

const OrtOpAttr& FakeNode::Attribute(const char* asked) {
  const auto found = attributes.find(asked);
  if (found != attributes.end()) return found->second;
  return attributes[asked] = {choose(asked)};
}

void FailAt(int call) { calls_until_failure = call; }

const OrtApi* FakeApi() {
  static const OrtApi api = MakeApi();
  return &api;
}

const std::vector<const OrtCustomOp*>& RegisteredOps() {
  static const OrtApiBase base{[](uint32_t) { return FakeApi(); }, [] { return "1.31.1"; }};
  static OrtSessionOptions options;
  static const OrtStatus* status = RegisterCustomOps(&options, &base);
  if (status != nullptr) std::abort();
  return domain.ops;
}

size_t ElementSize(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return 1;
    default:
      std::abort();  // a type that an operator knows and this file not yet
  }
}

}  // namespace qcompiler
