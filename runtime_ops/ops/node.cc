#include "ops/node.h"

#include <algorithm>
#include <cmath>

#include "base/float16.h"

namespace qcompiler {

OrtStatus* Node::Open(const OrtApi* api, const OrtKernelInfo* info, const char* op) {
  api_ = api;
  size_t size = 0;
  QCOMPILER_TRY(api->KernelInfo_GetNodeName(info, nullptr, &size));
  name_.resize(size);
  QCOMPILER_TRY(api->KernelInfo_GetNodeName(info, &name_[0], &size));
  if (!name_.empty()) name_.pop_back();  // the end of a C string
  if (name_.empty()) name_ = std::string("ai.qcompiler::") + op;
  return nullptr;
}

OrtStatus* Node::Attribute(const OrtKernelInfo* info, const char* name, int64_t least, int64_t most,
                           int64_t* value) const {
  if (OrtStatus* status = api_->KernelInfoGetAttribute_int64(info, name, value)) {
    api_->ReleaseStatus(status);
    return Refuse(std::string("attribute ") + name + " is missing");
  }
  if (*value >= least && *value <= most) return nullptr;
  return Refuse(std::string("attribute ") + name + " is " + std::to_string(*value) + "; from " +
                std::to_string(least) + " to " + std::to_string(most) + " is possible");
}

OrtStatus* Node::Attribute(const OrtKernelInfo* info, const char* name, float* value) const {
  if (OrtStatus* status = api_->KernelInfoGetAttribute_float(info, name, value)) {
    api_->ReleaseStatus(status);
    return Refuse(std::string("attribute ") + name + " is missing or not a float");
  }
  if (std::isfinite(*value)) return nullptr;
  return Refuse(std::string("attribute ") + name + " is not finite");
}

OrtStatus* Node::Choice(const OrtKernelInfo* info, const char* name, int64_t missing, int64_t other,
                        int64_t* value) const {
  if (OrtStatus* status = api_->KernelInfoGetAttribute_int64(info, name, value)) {
    api_->ReleaseStatus(status);
    *value = missing;
  }
  if (*value == missing || *value == other) return nullptr;
  return Refuse(std::string("attribute ") + name + " is " + std::to_string(*value) + "; " +
                std::to_string(other) + " and " + std::to_string(missing) + " are possible");
}

OrtStatus* Node::IsThere(const OrtKernelInfo* info, size_t index, bool* there) const {
  size_t inputs = 0, size = 0;
  QCOMPILER_TRY(api_->KernelInfo_GetInputCount(info, &inputs));
  *there = false;
  if (index >= inputs) return nullptr;
  QCOMPILER_TRY(api_->KernelInfo_GetInputName(info, index, nullptr, &size));
  *there = size > 1;  // more than the end of a C string
  return nullptr;
}

OrtStatus* Node::Constant(const OrtKernelInfo* info, size_t index, const char* what, Tensor* tensor) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api_->KernelInfoGetConstantInput_tensor(info, index, &constant, &value));
  if (constant == 0 || value == nullptr) {
    return Refuse(std::string(what) +
                  " is not constant; it has to be, since it is read when the session is created, or to be "
                  "computed from "
                  "constants with the session's graph optimizations on. One that a branch or loop shares "
                  "with the graph "
                  "around it is for ONNX Runtime 1.29 and newer");
  }
  return tensor->Read(api_, value);
}

OrtStatus* Node::Constant(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                          Tensor* tensor) const {
  QCOMPILER_TRY(Constant(info, index, what, tensor));
  if (tensor->count() == count) return nullptr;
  return Refuse(std::string(what) + " has " + std::to_string(tensor->count()) +
                " elements; the attributes make it " + std::to_string(count));
}

OrtStatus* Node::ConstantFloats(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                                std::vector<float>* widened, const float** values) const {
  Tensor tensor;
  QCOMPILER_TRY(Constant(info, index, what, count, &tensor));
  if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    *values = static_cast<const float*>(tensor.data);
    return nullptr;
  }
  if (tensor.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
    return Refuse(std::string(what) + " are neither float32 nor float16");
  }
  const uint16_t* halves = static_cast<const uint16_t*>(tensor.data);
  widened->resize(static_cast<size_t>(count));
  std::transform(halves, halves + count, widened->begin(), Float16ToFloat);
  *values = widened->data();
  return nullptr;
}

}  // namespace qcompiler
