// An ONNX Runtime of one node: what our operators ask of it, answered from values that a fuzzer chose, and a
// failure at any call if it likes. A slot of OrtApi that is not here yet is a call of nullptr.
#ifndef QCOMPILER_RUNTIME_OPS_FUZZ_FAKE_ORT_H_
#define QCOMPILER_RUNTIME_OPS_FUZZ_FAKE_ORT_H_

#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "ort_api.h"

struct OrtStatus {
  std::string message;
};

struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;

  int64_t count() const;
};

// Zeros at a multiple of 64 bytes, as in a mapped file, or 16 behind one, as anywhere else.
class FakeData {
 public:
  void Allocate(size_t size, bool aligned) {
    lead_ = aligned ? 0 : 16;
    size_ = size;
    bytes_.reset(new (std::align_val_t{64}) uint8_t[lead_ + size]());
  }
  uint8_t* data() const { return bytes_.get() + lead_; }
  size_t size() const { return size_; }

 private:
  struct Delete {
    void operator()(uint8_t* bytes) const { ::operator delete[](bytes, std::align_val_t{64}); }
  };

  std::unique_ptr<uint8_t[], Delete> bytes_;
  size_t lead_ = 0, size_ = 0;
};

// As ONNX Runtime has them: no negative dimension, and data of the type's size times their product.
struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  FakeData data;
  bool constant = false;
};

struct OrtOpAttr {
  std::optional<int64_t> value;  // none: the node lacks it
};

namespace qcompiler {

struct FakeNode {
  std::string name;
  const OrtCustomOp* op = nullptr;
  std::vector<std::unique_ptr<OrtValue>> inputs;        // nullptr: an optional one that is left out
  std::map<size_t, std::unique_ptr<OrtValue>> outputs;  // as a kernel made them
  std::map<std::string, OrtOpAttr> attributes;
  std::function<std::optional<int64_t>(const std::string& name)> choose;  // one that is asked for first
  size_t last_constant = 0;                                               // the constant input last asked for

  const OrtOpAttr& Attribute(const char* asked);
  ONNXTensorElementDataType outputs_type(size_t index) const { return op->GetOutputType(op, index); }
};

// The node in each of the roles that ONNX Runtime shows it in.
inline const OrtKernelInfo* AsInfo(FakeNode* node) { return reinterpret_cast<const OrtKernelInfo*>(node); }
inline OrtKernelContext* AsContext(FakeNode* node) { return reinterpret_cast<OrtKernelContext*>(node); }
inline OrtShapeInferContext* AsShapeContext(FakeNode* node) {
  return reinterpret_cast<OrtShapeInferContext*>(node);
}

// The call of this number from now on, counted from 1, fails if it can; 0: none does.
void FailAt(int call);

// Our operators, registered in it.
const std::vector<const OrtCustomOp*>& RegisteredOps();

const OrtApi* FakeApi();
size_t ElementSize(ONNXTensorElementDataType type);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_FUZZ_FAKE_ORT_H_
