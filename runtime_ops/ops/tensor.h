// A tensor of ONNX Runtime, read: its type, shape and data.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_TENSOR_H_
#define QCOMPILER_RUNTIME_OPS_OPS_TENSOR_H_

#include <cstdint>
#include <vector>

#include "ort_api.h"

// Returns the status of an expression from the function around it if it is an error.
#define QCOMPILER_TRY(expression)                        \
  do {                                                   \
    if (OrtStatus* status = (expression)) return status; \
  } while (false)

namespace qcompiler {

// A type and shape that are ours to release.
class TypeAndShape {
 public:
  TypeAndShape(const OrtApi* api, OrtTensorTypeAndShapeInfo* info) : api_(api), info_(info) {}
  TypeAndShape(const TypeAndShape&) = delete;
  TypeAndShape& operator=(const TypeAndShape&) = delete;
  ~TypeAndShape() { api_->ReleaseTensorTypeAndShapeInfo(info_); }
  OrtTensorTypeAndShapeInfo* get() const { return info_; }

 private:
  const OrtApi* api_;
  OrtTensorTypeAndShapeInfo* info_;
};

struct Tensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  const void* data = nullptr;

  int64_t count() const {
    int64_t product = 1;
    for (const int64_t dim : dims) product *= dim;
    return product;
  }

  OrtStatus* Read(const OrtApi* api, const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    QCOMPILER_TRY(api->GetTensorTypeAndShape(value, &info));
    const TypeAndShape held(api, info);
    QCOMPILER_TRY(ReadInfo(api, info));
    void* found = nullptr;
    // The API has no function for reading alone.
    QCOMPILER_TRY(api->GetTensorMutableData(const_cast<OrtValue*>(value), &found));
    data = found;
    return nullptr;
  }

 private:
  OrtStatus* ReadInfo(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info) {
    QCOMPILER_TRY(api->GetTensorElementType(info, &type));
    size_t rank = 0;
    QCOMPILER_TRY(api->GetDimensionsCount(info, &rank));
    dims.resize(rank);
    return api->GetDimensions(info, dims.data(), rank);
  }
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_TENSOR_H_
