// Every operator of the library on a node that a fuzzer made: attributes of any size or none, inputs of any
// shape, present or not, constant or not, and a runtime that fails at any call. Nothing may crash, leak, or
// hand out memory that is not its own; an operator refuses by a status.
//
// What an operator expects of its constants it says when it refuses them, by Node::Constant: mostly the
// fuzzer gives in, so that it comes to compute as well.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "fuzz/fake_ort.h"

namespace qcompiler {
namespace {

constexpr int64_t kMostElements = 1 << 16;  // of a tensor
constexpr int kMostRefusals = 24;           // that are given in to: more than inputs of any operator

class Fuzzer {
 public:
  explicit Fuzzer(FuzzedDataProvider* bytes) : bytes_(bytes), random_(bytes->ConsumeIntegral<unsigned>()) {}

  void Run();

 private:
  std::optional<int64_t> Attribute(const std::string& name);
  int64_t Dimension();
  ONNXTensorElementDataType Type(const OrtCustomOp* op, size_t index);
  std::unique_ptr<OrtValue> Tensor(ONNXTensorElementDataType type, std::vector<int64_t> dims);
  std::unique_ptr<OrtValue> Tensor(ONNXTensorElementDataType type);
  void MakeNode(const OrtCustomOp* op);
  void MakeSparse();
  void Infer(const OrtCustomOp* op);
  void* Create(const OrtCustomOp* op);
  bool GiveIn(const std::string& refusal);
  void Compute(const OrtCustomOp* op, void* kernel);

  FuzzedDataProvider* bytes_;
  std::minstd_rand random_;  // for what is too much to be chosen
  FakeNode node_;
};

// One that makes sense, mostly.
std::optional<int64_t> Fuzzer::Attribute(const std::string& name) {
  constexpr int64_t kHostile[] = {0,
                                  -1,
                                  1,
                                  int64_t{1} << 31,
                                  (int64_t{1} << 31) + 1,
                                  int64_t{1} << 32,
                                  int64_t{1} << 62,
                                  std::numeric_limits<int64_t>::max(),
                                  std::numeric_limits<int64_t>::min()};
  switch (bytes_->ConsumeIntegralInRange<int>(0, 15)) {
    case 0:
      return bytes_->PickValueInArray(kHostile);
    case 1:
      return bytes_->ConsumeIntegral<int64_t>();
    case 2:
      return std::nullopt;
    default:
      break;
  }
  if (name == "bits") return bytes_->ConsumeIntegralInRange<int64_t>(1, 9);
  if (name == "block_size") return 16 * bytes_->ConsumeIntegralInRange<int64_t>(1, 20);
  if (name == "alpha") return bytes_->ConsumeIntegral<int64_t>();
  if (name == "layout") return bytes_->ConsumeBool() ? std::optional<int64_t>(1) : std::nullopt;
  if (name == "accuracy_level") return bytes_->ConsumeBool() ? 1 : 4;
  if (name == "quant_type") return bytes_->ConsumeIntegralInRange<int64_t>(0, 1);
  return bytes_->ConsumeIntegralInRange<int64_t>(1, 300);
}

// Of an attribute, or any small one.
int64_t Fuzzer::Dimension() {
  if (!node_.attributes.empty() && bytes_->ConsumeIntegralInRange<int>(0, 3) != 0) {
    auto attribute = node_.attributes.begin();
    std::advance(attribute, bytes_->ConsumeIntegralInRange<size_t>(0, node_.attributes.size() - 1));
    const int64_t value = attribute->second.value.value_or(0);
    if (value >= 0 && value <= kMostElements) return value;
  }
  return bytes_->ConsumeIntegralInRange<int64_t>(0, 40);
}

ONNXTensorElementDataType Fuzzer::Type(const OrtCustomOp* op, size_t index) {
  constexpr ONNXTensorElementDataType kAny[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,     ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  const ONNXTensorElementDataType type = op->GetInputType(op, index);
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? bytes_->PickValueInArray(kAny) : type;
}

std::unique_ptr<OrtValue> Fuzzer::Tensor(ONNXTensorElementDataType type, std::vector<int64_t> dims) {
  auto value = std::make_unique<OrtValue>();
  value->info = {type, std::move(dims)};
  value->data.Allocate(static_cast<size_t>(value->info.count()) * ElementSize(type), random_() % 2 == 0);
  for (size_t i = 0; i < value->data.size(); i += sizeof(uint64_t)) {
    const uint64_t some = random_() * 0x9e3779b97f4a7c15;  // a fast one: this is most of the fuzzer's work
    std::memcpy(value->data.data() + i, &some, std::min(sizeof(some), value->data.size() - i));
  }
  return value;
}

std::unique_ptr<OrtValue> Fuzzer::Tensor(ONNXTensorElementDataType type) {
  std::vector<int64_t> dims(bytes_->ConsumeIntegralInRange<size_t>(0, 4));
  int64_t count = 1;
  for (size_t i = dims.size(); i-- > 0;) {  // the last one first: it is what operators look at
    dims[i] = std::min(Dimension(), kMostElements / std::max<int64_t>(count, 1));
    count *= dims[i];
  }
  return Tensor(type, std::move(dims));
}

// Inputs 1 to 3 of SparseMatMul that nearly fit together: values, columns and offsets.
void Fuzzer::MakeSparse() {
  const bool wide = bytes_->ConsumeBool();
  std::vector<int32_t> columns, offsets = {0};
  for (int64_t n = bytes_->ConsumeIntegralInRange<int64_t>(0, 100); n > 0; --n) {
    int32_t column = -1;
    for (unsigned i = static_cast<unsigned>(random_() % 8); i > 0; --i) {
      column += 1 + static_cast<int32_t>(random_() % 30);
      columns.push_back(column);
    }
    offsets.push_back(static_cast<int32_t>(columns.size()));
  }
  if (bytes_->ConsumeBool()) {
    std::vector<int32_t>& broken = bytes_->ConsumeBool() && !columns.empty() ? columns : offsets;
    broken[random_() % broken.size()] = bytes_->ConsumeIntegral<int32_t>();
  }
  const auto store = [&](size_t input, ONNXTensorElementDataType type, const std::vector<int32_t>& numbers) {
    node_.inputs[input] = Tensor(type, {static_cast<int64_t>(numbers.size())});
    node_.inputs[input]->constant = true;
    const size_t size = ElementSize(type);
    for (size_t i = 0; i < numbers.size(); ++i) {
      std::memcpy(node_.inputs[input]->data.data() + i * size, &numbers[i], size);  // the low bytes
    }
  };
  store(2, wide ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, columns);
  store(3, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, offsets);
  node_.inputs[1] = Tensor(node_.inputs[1]->info.type, {static_cast<int64_t>(columns.size())});
  node_.inputs[1]->constant = true;
}

void Fuzzer::MakeNode(const OrtCustomOp* op) {
  node_.op = op;
  node_.choose = [this](const std::string& name) { return Attribute(name); };
  if (bytes_->ConsumeBool()) node_.name = "node";
  const size_t most = op->GetInputTypeCount(op);
  size_t least = most;
  while (least > 0 && op->GetInputCharacteristic(op, least - 1) == INPUT_OUTPUT_OPTIONAL) --least;
  const size_t count = bytes_->ConsumeIntegralInRange<size_t>(least, most);
  for (size_t i = 0; i < count; ++i) {
    const bool optional = op->GetInputCharacteristic(op, i) == INPUT_OUTPUT_OPTIONAL;
    if (optional && bytes_->ConsumeBool()) {
      node_.inputs.push_back(nullptr);
      continue;
    }
    node_.inputs.push_back(Tensor(Type(op, i)));
    node_.inputs.back()->constant = bytes_->ConsumeIntegralInRange<int>(0, 15) != 0;
  }
  if (std::strcmp(op->GetName(op), "SparseMatMul") == 0 && bytes_->ConsumeBool()) MakeSparse();
}

void Fuzzer::Infer(const OrtCustomOp* op) {
  std::vector<OrtTensorTypeAndShapeInfo*> opened;
  for (const auto& input : node_.inputs) {
    // A dimension that is not known before it runs.
    if (input == nullptr || input->info.dims.empty() || input->constant) continue;
    opened.push_back(&input->info);
  }
  for (OrtTensorTypeAndShapeInfo* info : opened) info->dims[0] = -info->dims[0] - 1;
  if (op->InferOutputShapeFn(op, AsShapeContext(&node_)) != nullptr) std::abort();  // it would leak
  for (OrtTensorTypeAndShapeInfo* info : opened) info->dims[0] = -(info->dims[0] + 1);
}

// Makes the constant that was refused as long as it has to be; false for another refusal.
bool Fuzzer::GiveIn(const std::string& refusal) {
  constexpr char kSaid[] = "make it ";
  const size_t at = refusal.find(kSaid);
  if (at == std::string::npos || node_.last_constant >= node_.inputs.size()) return false;
  const int64_t count = std::stoll(refusal.substr(at + sizeof(kSaid) - 1));
  std::unique_ptr<OrtValue>& input = node_.inputs[node_.last_constant];
  if (input == nullptr || count < 0 || count > kMostElements) return false;
  input = Tensor(input->info.type, {count});
  input->constant = true;
  return true;
}

void* Fuzzer::Create(const OrtCustomOp* op) {
  for (int i = 0; i < kMostRefusals; ++i) {
    void* kernel = nullptr;
    const std::unique_ptr<OrtStatus> status(op->CreateKernelV2(op, FakeApi(), AsInfo(&node_), &kernel));
    if (status == nullptr) return kernel;
    if (kernel != nullptr) std::abort();  // nobody would destroy it
    if (!GiveIn(status->message)) return nullptr;
  }
  return nullptr;
}

void Fuzzer::Compute(const OrtCustomOp* op, void* kernel) {
  for (size_t i = 0; i < node_.inputs.size(); ++i) {
    if (node_.inputs[i] == nullptr || (node_.inputs[i]->constant && i != 0)) continue;
    node_.inputs[i] = Tensor(Type(op, i));  // of another shape than when shapes were inferred
  }
  node_.outputs.clear();
  const std::unique_ptr<OrtStatus> status(op->KernelComputeV2(kernel, AsContext(&node_)));
  if (status == nullptr && node_.outputs.size() != op->GetOutputTypeCount(op)) std::abort();
}

void Fuzzer::Run() {
  const std::vector<const OrtCustomOp*>& ops = RegisteredOps();
  const OrtCustomOp* op = ops[bytes_->ConsumeIntegralInRange<size_t>(0, ops.size() - 1)];
  MakeNode(op);
  FailAt(bytes_->ConsumeBool() ? bytes_->ConsumeIntegralInRange<int>(0, 80) : 0);
  Infer(op);
  if (void* kernel = Create(op)) {
    for (int i = 0; i < 3; ++i) Compute(op, kernel);
    op->KernelDestroy(kernel);
  }
}

}  // namespace
}  // namespace qcompiler

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider bytes(data, size);
  qcompiler::Fuzzer(&bytes).Run();
  return 0;
}
