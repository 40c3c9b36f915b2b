// A node whose kernel is created: its attributes and constant inputs, and errors that name it.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_NODE_H_
#define QCOMPILER_RUNTIME_OPS_OPS_NODE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/tensor.h"
#include "ort_api.h"

namespace qcompiler {

class Node {
 public:
  // `op` names it in errors where it has no name of its own.
  OrtStatus* Open(const OrtApi* api, const OrtKernelInfo* info, const char* op);

  OrtStatus* Refuse(const std::string& why) const {
    return api_->CreateStatus(ORT_INVALID_ARGUMENT, (name_ + ": " + why).c_str());
  }
  OrtStatus* Fail(const std::string& why) const {
    return api_->CreateStatus(ORT_FAIL, (name_ + ": " + why).c_str());
  }
  const OrtApi* api() const { return api_; }

  // What follows is asked while the kernel is created only: `info` lives no longer.

  // An attribute that has to be there.
  OrtStatus* Attribute(const OrtKernelInfo* info, const char* name, int64_t least, int64_t most,
                       int64_t* value) const;
  // The same of a number that has to be finite.
  OrtStatus* Attribute(const OrtKernelInfo* info, const char* name, float* value) const;
  // One that need not be there: then it is `missing`. `value` is one of the two.
  OrtStatus* Choice(const OrtKernelInfo* info, const char* name, int64_t missing, int64_t other,
                    int64_t* value) const;
  // Whether an optional input is there.
  OrtStatus* IsThere(const OrtKernelInfo* info, size_t index, bool* there) const;
  // An input that has to be constant.
  OrtStatus* Constant(const OrtKernelInfo* info, size_t index, const char* what, Tensor* tensor) const;
  // The same of `count` elements.
  OrtStatus* Constant(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                      Tensor* tensor) const;
  // The same of float32 or float16, as float32: `widened` holds what had to be converted.
  OrtStatus* ConstantFloats(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                            std::vector<float>* widened, const float** values) const;

 private:
  const OrtApi* api_ = nullptr;
  std::string name_;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_NODE_H_
