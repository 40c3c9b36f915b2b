#include "ops/product.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "ops/scratch.h"
#include "ops/sharing.h"

namespace qcompiler {

using matmul_nbits::Activations;
using matmul_nbits::Columns;
using matmul_nbits::Kernel;
using matmul_nbits::PackedWeights;
using matmul_nbits::Rounding;

namespace {

constexpr int64_t kRowsAtOnce = 504;  // bounds the memory for activations; a multiple of every kernel's tile,
                                      // and unpacking weights is 1 % of the work from here on
constexpr int64_t kAlone =
    1 << 20;  // multiplications: some 10 us of work, not measured against waking a second thread

bool TakesBytes(Rounding rounding) {
  return rounding == Rounding::kSigned || rounding == Rounding::kUnsigned;
}

ONNXTensorElementDataType TypeOf(Rounding rounding) {
  if (rounding == Rounding::kSigned) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  return rounding == Rounding::kUnsigned ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                         : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

const char* NameOf(ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) return "int8";
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 ? "uint8" : "float32";
}

struct Share {
  const Kernel* kernel;
  const std::vector<PackedWeights>* weights;  // of each product
  Activations* activations;
  const void* x;
  int64_t first_row;  // of x in y
  const Product::Output* outputs;
  const ProductOutput* output;
  BufferPool* panels;
  int64_t pairs;  // that tasks share out
  int64_t tasks;
  std::atomic<bool> failed;
};

void QuantizeShare(void* data, size_t i) {
  Share& share = *static_cast<Share*>(data);
  const int64_t tiles = share.activations->tiles(), index = static_cast<int64_t>(i);
  share.kernel->quantize(share.x, share.weights->front(), share.activations, tiles * index / share.tasks,
                         tiles * (index + 1) / share.tasks);
}

void MultiplyShare(void* data, size_t i) {
  Share& share = *static_cast<Share*>(data);
  const int64_t index = static_cast<int64_t>(i);
  const int64_t begin = share.pairs * index / share.tasks, end = share.pairs * (index + 1) / share.tasks;
  const BufferPool::Lent panel = share.panels->Lend(matmul_nbits::kScratchBytes);
  if (panel.data() == nullptr) {
    share.failed = true;
    return;
  }
  int64_t before = 0;
  for (size_t product = 0; product < share.weights->size(); ++product) {
    const PackedWeights& weights = (*share.weights)[product];
    const int64_t n = weights.rows, skipped = share.first_row * n;
    const Product::Output& output = share.outputs[product];
    Columns columns{output.y + skipped, n, n};
    columns.added[0] = output.bias;
    columns.added[1] = output.correction;
    columns.residual = output.residual == nullptr ? nullptr : output.residual + skipped;
    columns.gated = share.output->gated && product == 1;
    columns.activation = share.output->activation;
    columns.alpha = share.output->alpha;
    // Pairs are counted through all products, but a gate's columns are a task's of both: the first makes
    // them.
    const int64_t first = std::max<int64_t>(begin - before, 0),
                  last = std::min(end - before, columns.pairs());
    if (!share.output->gated) before += columns.pairs();
    if (first >= last) continue;
    share.kernel->multiply(*share.activations, weights, columns, first, last, panel.data());
  }
}

}  // namespace

OrtStatus* Product::Create(const Node& node, std::vector<PackedWeights> weights, const ProductInput& input,
                           const ProductOutput& output) {
  input_ = input;
  output_ = output;
  weights_ = std::move(weights);
  const bool symmetric = std::all_of(weights_.begin(), weights_.end(),
                                     [](const PackedWeights& part) { return part.symmetric(); });
  for (PackedWeights& part : weights_) {
    // They share what activations become, which zero points have a part in.
    if (!symmetric && part.symmetric() && !matmul_nbits::AddMiddle(&part))
      return node.Fail("no memory for its weights");
    rows_ += part.rows;
  }
  kernel_ = matmul_nbits::ChooseKernel(DetectCpu());
  scratch_ = Scratch::Shared();
  threads_ = Threads();
  return Correct(node);
}

// sum over k of scale (code - zero_point) w = scale (sum over k of code w - zero_point sum over k of w): the
// last part, for codes as kernels take them, is that of a row of which every code is 1.
OrtStatus* Product::Correct(const Node& node) {
  if (!TakesBytes(input_.rounding)) return nullptr;
  const int zero_point = input_.zero_point - (input_.rounding == Rounding::kUnsigned ? 128 : 0);
  if (zero_point == 0) return nullptr;
  std::vector<float> correction(static_cast<size_t>(rows_));
  const std::vector<uint8_t> ones(static_cast<size_t>(weights_.front().k),
                                  input_.rounding == Rounding::kUnsigned ? 129 : 1);
  const Output output{correction.data(), nullptr, nullptr, nullptr};
  QCOMPILER_TRY(MultiplyRows(node, nullptr, ones.data(), 1, 0, &output));
  for (float& value : correction) value *= static_cast<float>(-zero_point);
  correction_ = std::move(correction);
  return nullptr;
}

OrtStatus* Product::Bias(const Node& node, const OrtKernelContext* context, size_t index, int64_t n,
                         const float** bias) const {
  *bias = nullptr;
  size_t inputs = 0;
  QCOMPILER_TRY(node.api()->KernelContext_GetInputCount(context, &inputs));
  if (inputs <= index) return nullptr;
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(node.api()->KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return nullptr;
  Tensor found;
  QCOMPILER_TRY(found.Read(node.api(), value));
  if (found.count() != n) return node.Refuse("bias has not N = " + std::to_string(n) + " elements");
  *bias = static_cast<const float*>(found.data);
  return nullptr;
}

OrtStatus* Product::Residual(const Node& node, const OrtKernelContext* context,
                             const std::vector<int64_t>& dims, const float** residual) const {
  if (output_.residual == kNone) return nullptr;
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(node.api()->KernelContext_GetInput(context, output_.residual, &value));
  Tensor found;
  QCOMPILER_TRY(found.Read(node.api(), value));
  if (found.dims != dims) return node.Refuse("the residual has not the shape of the product");
  *residual = static_cast<const float*>(found.data);
  return nullptr;
}

OrtStatus* Product::Compute(const Node& node, OrtKernelContext* context, size_t x_index, size_t bias,
                            size_t step) const {
  const OrtApi* api = node.api();
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api->KernelContext_GetInput(context, x_index, &value));
  Tensor x;
  QCOMPILER_TRY(x.Read(api, value));
  const int64_t k = weights_.front().k;
  if (x.dims.empty() || x.dims.back() != k) {
    return node.Refuse("the last dimension of x is not K = " + std::to_string(k));
  }
  const ONNXTensorElementDataType type = TypeOf(input_.rounding);
  if (x.type != type) return node.Refuse(std::string("x is not ") + NameOf(type));
  const size_t row_bytes = static_cast<size_t>(k) * (TakesBytes(input_.rounding) ? 1 : sizeof(float));
  const int64_t m = x.count() / k;
  Output outputs[kMostProducts] = {};
  for (size_t product = 0; product < weights_.size(); ++product) {
    Output& output = outputs[product];
    x.dims.back() = weights_[product].rows;
    QCOMPILER_TRY(Bias(node, context, bias + product * step, weights_[product].rows, &output.bias));
    output.correction = correction_.empty() ? nullptr : correction_.data();
    if (output_.gated && product == 1) {
      output.y = outputs[0].y;
      continue;
    }
    OrtValue* made = nullptr;
    void* y = nullptr;
    QCOMPILER_TRY(api->KernelContext_GetOutput(context, product, x.dims.data(), x.dims.size(), &made));
    QCOMPILER_TRY(api->GetTensorMutableData(made, &y));
    output.y = static_cast<float*>(y);
    QCOMPILER_TRY(Residual(node, context, x.dims, &output.residual));
  }
  // Rows that stay floats are worked on a few at a time anyway, and a short rest would unpack all weights.
  const int64_t parts = std::max<int64_t>((m + kRowsAtOnce - 1) / kRowsAtOnce, 1);
  const int64_t at_once = input_.rounding == Rounding::kNone ? (m + parts - 1) / parts : kRowsAtOnce;
  for (int64_t first = 0; first < m; first += at_once) {
    QCOMPILER_TRY(MultiplyRows(node, context,
                               static_cast<const uint8_t*>(x.data) + static_cast<size_t>(first) * row_bytes,
                               std::min(at_once, m - first), first, outputs));
  }
  return nullptr;
}

OrtStatus* Product::MultiplyRows(const Node& node, const OrtKernelContext* context, const void* x, int64_t m,
                                 int64_t first_row, const Output* outputs) const {
  const matmul_nbits::ActivationSizes sizes = matmul_nbits::SizesFor(m, weights_.front(), input_.rounding);
  const BufferPool::Lent buffer = scratch_->activations.Lend(sizes.codes + sizes.scales + sizes.sums);
  if (buffer.data() == nullptr) return node.Fail("no memory for its activations");
  Activations activations;
  activations.m = m;
  activations.groups = weights_.front().groups;
  activations.group = weights_.front().group;
  activations.height = matmul_nbits::TileHeight(m, *kernel_);
  activations.rounding = input_.rounding;
  activations.scale = input_.scale;
  activations.codes = reinterpret_cast<int8_t*>(buffer.data());
  activations.scales = reinterpret_cast<float*>(buffer.data() + sizes.codes);
  activations.sums = reinterpret_cast<int32_t*>(buffer.data() + sizes.codes + sizes.scales);

  int64_t pairs = 0;
  for (const PackedWeights& weights : weights_) {
    if (!output_.gated || pairs == 0) pairs += (weights.blocks + 1) / 2;
  }
  Share share{kernel_,  &weights_,         &activations, x, first_row, outputs,
              &output_, &scratch_->panels, pairs,        1, {false}};
  const bool alone = context == nullptr || m * rows_ * weights_.front().k < kAlone || threads_ == 1;
  const auto run = [&](void (*function)(void*, size_t), int64_t items) {
    share.tasks = alone ? 1 : std::min(items, MostTasks(threads_));
    return ShareOut(node.api(), context, share.tasks,
                    [&](int64_t i) { function(&share, static_cast<size_t>(i)); });
  };
  QCOMPILER_TRY(run(QuantizeShare, activations.tiles()));
  QCOMPILER_TRY(run(MultiplyShare, pairs));
  return share.failed ? node.Fail("no memory for a panel of weights") : nullptr;
}

}  // namespace qcompiler
