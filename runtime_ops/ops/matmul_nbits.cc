#include "ops/matmul_nbits.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "base/buffer_pool.h"
#include "base/float16.h"
#include "kernels/matmul_nbits/matmul_nbits.h"
#include "ops/tensor.h"

namespace qcompiler {
namespace {

using matmul_nbits::Activations;
using matmul_nbits::Kernel;
using matmul_nbits::PackedWeights;
using matmul_nbits::StoredWeights;

constexpr size_t kX = 0, kCodes = 1, kScales = 2, kZeroPoints = 3, kBias = 4, kInputs = 5;
constexpr int64_t kRowsAtOnce = 504;  // bounds the memory for activations; a multiple of every kernel's tile,
                                      // and unpacking weights is 1 % of the work from here on
constexpr int64_t kAlone =
    1 << 20;  // multiplications: some 10 us of work, not measured against waking a second thread
constexpr int64_t kMost = int64_t{1} << 31;  // of N and of K: what they multiply to stays within int64

// Of all nodes together: those of one run follow one another, so that one buffer serves them all.
struct Scratch {
  BufferPool activations, panels;

  // The one there is, as long as any kernel has it.
  static std::shared_ptr<Scratch> Shared() {
    static std::mutex mutex;
    static std::weak_ptr<Scratch> shared;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Scratch> found = shared.lock();
    if (found == nullptr) shared = found = std::make_shared<Scratch>();
    return found;
  }
};

class MatMulNBits {
 public:
  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context);

  OrtStatus* Refuse(const std::string& why) const {
    return api_->CreateStatus(ORT_INVALID_ARGUMENT, (name_ + ": " + why).c_str());
  }
  OrtStatus* Fail(const std::string& why) const {
    return api_->CreateStatus(ORT_FAIL, (name_ + ": " + why).c_str());
  }
  const OrtApi* api() const { return api_; }

 private:
  OrtStatus* Attribute(const OrtKernelInfo* info, const char* name, int64_t least, int64_t most,
                       int64_t* value) const;
  OrtStatus* IsThere(const OrtKernelInfo* info, size_t index, bool* there) const;
  // An input that has to be constant, of `count` elements.
  OrtStatus* Constant(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                      Tensor* tensor) const;
  OrtStatus* Rows(const OrtKernelContext* context, const float* x, int64_t m, const float* bias, float* y);

  const OrtApi* api_ = nullptr;
  std::string name_;
  PackedWeights weights_;
  const Kernel* kernel_ = nullptr;
  std::shared_ptr<Scratch> scratch_;
  int64_t threads_ = 1;
};

OrtStatus* MatMulNBits::Attribute(const OrtKernelInfo* info, const char* name, int64_t least, int64_t most,
                                  int64_t* value) const {
  if (OrtStatus* status = api_->KernelInfoGetAttribute_int64(info, name, value)) {
    api_->ReleaseStatus(status);
    return Refuse(std::string("attribute ") + name + " is missing");
  }
  if (*value < least || *value > most) {
    return Refuse(std::string("attribute ") + name + " is " + std::to_string(*value) + "; from " +
                  std::to_string(least) + " to " + std::to_string(most) + " is possible");
  }
  return nullptr;
}

OrtStatus* MatMulNBits::IsThere(const OrtKernelInfo* info, size_t index, bool* there) const {
  size_t inputs = 0, size = 0;
  QCOMPILER_TRY(api_->KernelInfo_GetInputCount(info, &inputs));
  *there = false;
  if (index >= inputs) return nullptr;
  QCOMPILER_TRY(api_->KernelInfo_GetInputName(info, index, nullptr, &size));
  *there = size > 1;  // more than the end of a C string
  return nullptr;
}

OrtStatus* MatMulNBits::Constant(const OrtKernelInfo* info, size_t index, const char* what, int64_t count,
                                 Tensor* tensor) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api_->KernelInfoGetConstantInput_tensor(info, index, &constant, &value));
  if (constant == 0 || value == nullptr) {
    return Refuse(std::string(what) +
                  " is not constant; it has to be, since it is laid out anew when the session is created");
  }
  QCOMPILER_TRY(tensor->Read(api_, value));
  if (tensor->count() == count) return nullptr;
  return Refuse(std::string(what) + " has " + std::to_string(tensor->count()) +
                " elements; N, K, bits and block_size make it " + std::to_string(count));
}

OrtStatus* MatMulNBits::Create(const OrtApi* api, const OrtKernelInfo* info) {
  api_ = api;
  size_t size = 0;
  QCOMPILER_TRY(api->KernelInfo_GetNodeName(info, nullptr, &size));
  name_.resize(size);
  QCOMPILER_TRY(api->KernelInfo_GetNodeName(info, &name_[0], &size));
  if (!name_.empty()) name_.pop_back();  // the end of a C string
  if (name_.empty()) name_ = "ai.qcompiler::MatMulNBits";

  StoredWeights stored{};
  int64_t bits = 0;
  QCOMPILER_TRY(Attribute(info, "N", 1, kMost, &stored.n));
  QCOMPILER_TRY(Attribute(info, "K", 1, kMost, &stored.k));
  QCOMPILER_TRY(Attribute(info, "bits", 2, 8, &bits));
  if (bits != 2 && bits != 4 && bits != 8)  // 3: the stock node that is the body does not take them
    return Refuse("bits are " + std::to_string(bits) + "; 2, 4 and 8 are possible");
  QCOMPILER_TRY(Attribute(info, "block_size", 16, kMost, &stored.group));
  if (stored.group % 16 != 0)
    return Refuse("block_size is " + std::to_string(stored.group) + "; a multiple of 16 is needed");
  stored.bits = static_cast<int>(bits);

  const int64_t groups = (stored.k + stored.group - 1) / stored.group;
  Tensor codes, scales, zero_points;
  QCOMPILER_TRY(Constant(info, kCodes, "codes", stored.n * groups * (stored.group * bits / 8), &codes));
  stored.codes = static_cast<const uint8_t*>(codes.data);

  QCOMPILER_TRY(Constant(info, kScales, "scales", stored.n * groups, &scales));
  std::vector<float> widened;
  if (scales.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
    const uint16_t* halves = static_cast<const uint16_t*>(scales.data);
    widened.resize(static_cast<size_t>(scales.count()));
    std::transform(halves, halves + scales.count(), widened.begin(), Float16ToFloat);
    stored.scales = widened.data();
  } else if (scales.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    stored.scales = static_cast<const float*>(scales.data);
  } else {
    return Refuse("scales are neither float32 nor float16");
  }

  bool has_zero_points = false;
  QCOMPILER_TRY(IsThere(info, kZeroPoints, &has_zero_points));
  if (has_zero_points) {
    QCOMPILER_TRY(
        Constant(info, kZeroPoints, "zero_points", stored.n * ((groups * bits + 7) / 8), &zero_points));
    stored.zero_points = static_cast<const uint8_t*>(zero_points.data);
  }
  if (!matmul_nbits::Pack(stored, &weights_)) return Fail("no memory for its weights");
  kernel_ = matmul_nbits::ChooseKernel(DetectCpu());
  scratch_ = Scratch::Shared();
  threads_ = std::max(1u, std::thread::hardware_concurrency());  // asked once: it reads files
  return nullptr;
}

OrtStatus* MatMulNBits::Compute(OrtKernelContext* context) {
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api_->KernelContext_GetInput(context, kX, &value));
  Tensor x;
  QCOMPILER_TRY(x.Read(api_, value));
  if (x.dims.empty() || x.dims.back() != weights_.k) {
    return Refuse("the last dimension of x is not K = " + std::to_string(weights_.k));
  }
  const float* bias = nullptr;
  size_t inputs = 0;
  QCOMPILER_TRY(api_->KernelContext_GetInputCount(context, &inputs));
  if (inputs > kBias) {
    QCOMPILER_TRY(api_->KernelContext_GetInput(context, kBias, &value));
    if (value != nullptr) {
      Tensor found;
      QCOMPILER_TRY(found.Read(api_, value));
      if (found.count() != weights_.n)
        return Refuse("bias has not N = " + std::to_string(weights_.n) + " elements");
      bias = static_cast<const float*>(found.data);
    }
  }
  std::vector<int64_t> dims = x.dims;
  dims.back() = weights_.n;
  OrtValue* output = nullptr;
  QCOMPILER_TRY(api_->KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &output));
  void* y = nullptr;
  QCOMPILER_TRY(api_->GetTensorMutableData(output, &y));
  const int64_t m = x.count() / weights_.k;
  for (int64_t first = 0; first < m; first += kRowsAtOnce) {
    QCOMPILER_TRY(Rows(context, static_cast<const float*>(x.data) + first * weights_.k,
                       std::min(kRowsAtOnce, m - first), bias, static_cast<float*>(y) + first * weights_.n));
  }
  return nullptr;
}

struct Share {
  const Kernel* kernel;
  const PackedWeights* weights;
  Activations* activations;
  const float* x;
  const float* bias;
  float* y;
  BufferPool* panels;
  int64_t tasks;
  std::atomic<bool> failed;
};

void QuantizeShare(void* data, size_t i) {
  Share& share = *static_cast<Share*>(data);
  const int64_t tiles = share.activations->tiles(), index = static_cast<int64_t>(i);
  share.kernel->quantize(share.x, *share.weights, share.activations, tiles * index / share.tasks,
                         tiles * (index + 1) / share.tasks);
}

void MultiplyShare(void* data, size_t i) {
  Share& share = *static_cast<Share*>(data);
  const PackedWeights& weights = *share.weights;
  const int64_t pairs = (weights.blocks + 1) / 2, index = static_cast<int64_t>(i);
  const int64_t begin = pairs * index / share.tasks, end = pairs * (index + 1) / share.tasks;
  const BufferPool::Lent panel = share.panels->Lend(matmul_nbits::kScratchBytes);
  if (panel.data() == nullptr) {
    share.failed = true;
    return;
  }
  share.kernel->multiply(*share.activations, weights, share.y, begin, end, panel.data());
  if (share.bias == nullptr) return;
  const int64_t first = begin * 2 * matmul_nbits::kRows,
                last = std::min(end * 2 * matmul_nbits::kRows, weights.n);
  for (int64_t m = 0; m < share.activations->m; ++m) {
    for (int64_t n = first; n < last; ++n) share.y[m * weights.n + n] += share.bias[n];
  }
}

OrtStatus* MatMulNBits::Rows(const OrtKernelContext* context, const float* x, int64_t m, const float* bias,
                             float* y) {
  const matmul_nbits::ActivationSizes sizes = matmul_nbits::SizesFor(m, weights_);
  const BufferPool::Lent buffer = scratch_->activations.Lend(sizes.codes + sizes.scales + sizes.sums);
  if (buffer.data() == nullptr) return Fail("no memory for its activations");
  Activations activations;
  activations.m = m;
  activations.groups = weights_.groups;
  activations.group = weights_.group;
  activations.height = matmul_nbits::TileHeight(m, *kernel_);
  activations.codes = reinterpret_cast<int8_t*>(buffer.data());
  activations.scales = reinterpret_cast<float*>(buffer.data() + sizes.codes);
  activations.sums = reinterpret_cast<int32_t*>(buffer.data() + sizes.codes + sizes.scales);

  Share share{kernel_, &weights_, &activations, x, bias, y, &scratch_->panels, 1, {false}};
  const int64_t pairs = (weights_.blocks + 1) / 2;
  const bool alone = m * weights_.n * weights_.k < kAlone || threads_ == 1;
  const auto run = [&](void (*function)(void*, size_t), int64_t items) -> OrtStatus* {
    share.tasks =
        alone ? 1 : std::min(items, 4 * threads_);  // 4: a thread that is late leaves its last part to others
    if (share.tasks > 1) {
      return api_->KernelContext_ParallelFor(context, function, static_cast<size_t>(share.tasks), 0, &share);
    }
    function(&share, 0);
    return nullptr;
  };
  QCOMPILER_TRY(run(QuantizeShare, activations.tiles()));
  QCOMPILER_TRY(run(MultiplyShare, pairs));
  return share.failed ? Fail("no memory for a panel of weights") : nullptr;
}

// The interface to ONNX Runtime: no exception crosses it.

struct Op : OrtCustomOp {
  const OrtApi* api;
};

OrtStatus* CreateKernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  try {
    auto created = std::make_unique<MatMulNBits>();
    if (OrtStatus* status = created->Create(api, info)) return status;
    *kernel = created.release();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "ai.qcompiler::MatMulNBits: out of memory");
  } catch (...) {
    return api->CreateStatus(ORT_FAIL, "ai.qcompiler::MatMulNBits: cannot be created");
  }
}

OrtStatus* Compute(void* kernel, OrtKernelContext* context) {
  auto* created = static_cast<MatMulNBits*>(kernel);
  try {
    return created->Compute(context);
  } catch (const std::bad_alloc&) {
    return created->api()->CreateStatus(ORT_FAIL, "ai.qcompiler::MatMulNBits: out of memory");
  } catch (...) {
    return created->api()->CreateStatus(ORT_FAIL, "ai.qcompiler::MatMulNBits: failed");
  }
}

// y has the shape of x, but N for K; symbolic dimensions keep their names.
OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context) {
  const OrtOpAttr* attribute = nullptr;
  int64_t n = 0;
  size_t needed = 0, rank = 0;
  QCOMPILER_TRY(api->ShapeInferContext_GetAttribute(context, "N", &attribute));
  QCOMPILER_TRY(api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &n, sizeof(n), &needed));
  OrtTensorTypeAndShapeInfo *x = nullptr, *made = nullptr;
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, kX, &x));
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
  QCOMPILER_TRY(api->SetTensorElementType(made, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
  QCOMPILER_TRY(api->SetDimensions(made, dims.data(), rank));
  QCOMPILER_TRY(api->SetSymbolicDimensions(made, names.data(), rank));
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, made);
}

// What cannot be inferred stays open: ONNX Runtime drops a status that comes back from here, which would
// leak, and Create and Compute refuse in words.
OrtStatus* InferShape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi* api = static_cast<const Op*>(op)->api;
  try {
    if (OrtStatus* status = Infer(api, context)) api->ReleaseStatus(status);
  } catch (...) {
    return nullptr;
  }
  return nullptr;
}

void Destroy(void* kernel) { delete static_cast<MatMulNBits*>(kernel); }

const char* Name(const OrtCustomOp*) { return "MatMulNBits"; }
const char* Provider(const OrtCustomOp*) { return nullptr; }  // the CPU
size_t InputCount(const OrtCustomOp*) { return kInputs; }
size_t OutputCount(const OrtCustomOp*) { return 1; }
ONNXTensorElementDataType InputType(const OrtCustomOp*, size_t index) {
  if (index == kScales) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // any; Create knows two
  return index == kCodes || index == kZeroPoints ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                                 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
ONNXTensorElementDataType OutputType(const OrtCustomOp*, size_t) {
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
OrtCustomOpInputOutputCharacteristic InputCharacteristic(const OrtCustomOp*, size_t index) {
  return index >= kZeroPoints ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
OrtCustomOpInputOutputCharacteristic OutputCharacteristic(const OrtCustomOp*, size_t) {
  return INPUT_OUTPUT_REQUIRED;
}
OrtMemType InputMemory(const OrtCustomOp*, size_t) { return OrtMemTypeDefault; }
int One(const OrtCustomOp*) { return 1; }

Op MakeOp(const OrtApi* api) {
  Op op{};
  op.api = api;
  op.version = kOrtApiVersion;
  op.GetName = Name;
  op.GetExecutionProviderType = Provider;
  op.GetInputType = InputType;
  op.GetInputTypeCount = InputCount;
  op.GetOutputType = OutputType;
  op.GetOutputTypeCount = OutputCount;
  op.KernelDestroy = Destroy;
  op.GetInputCharacteristic = InputCharacteristic;
  op.GetOutputCharacteristic = OutputCharacteristic;
  op.GetInputMemoryType = InputMemory;
  op.GetVariadicInputMinArity = One;
  op.GetVariadicInputHomogeneity = One;
  op.GetVariadicOutputMinArity = One;
  op.GetVariadicOutputHomogeneity = One;
  op.CreateKernelV2 = CreateKernel;
  op.KernelComputeV2 = Compute;
  op.InferOutputShapeFn = InferShape;
  op.GetStartVersion = One;
  op.GetEndVersion = [](const OrtCustomOp*) { return 2147483647; };
  return op;
}

}  // namespace

const OrtCustomOp* MatMulNBitsOp(const OrtApi* api) {
  static const Op op = MakeOp(api);
  return &op;
}

}  // namespace qcompiler
