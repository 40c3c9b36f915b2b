#include "ops/sparse_matmul.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "kernels/sparse_matmul/sparse_matmul.h"
#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/scratch.h"
#include "ops/sharing.h"

namespace qcompiler {
namespace {

using sparse_matmul::Float;
using sparse_matmul::Kernel;
using sparse_matmul::Panels;
using sparse_matmul::Rows;
using sparse_matmul::StoredMatrix;

constexpr size_t kX = 0, kValues = 1, kColumns = 2, kOffsets = 3;
constexpr int64_t kColumnsAtOnce = 64;  // of x, arranged by one task; a multiple of 16
constexpr int64_t kAlone = 1 << 16;     // multiplications: some 30 us of work, not measured against
                                        // waking a second thread
constexpr int64_t kRowCost = 4;         // what storing the sum of a row costs, in numbers of S

template <ONNXTensorElementDataType kType>
class SparseMatMul {
 public:
  static constexpr const char* kName = "SparseMatMul";
  static constexpr Argument kInputs[] = {{kType},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}};
  static constexpr Argument kOutputs[] = {{kType}};
  static constexpr Float kFloat = kType == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? Float::k32 : Float::k16;

  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context) const;
  const OrtApi* api() const { return node_.api(); }
  static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context);

 private:
  OrtStatus* CheckOffsets(int64_t count) const;
  OrtStatus* CheckColumns();
  OrtStatus* Multiply(const OrtKernelContext* context, const Rows& x, const Rows& y, int64_t m,
                      int64_t k) const;
  OrtStatus* MultiplyPanels(const OrtKernelContext* context, const Rows& x, const Rows& y, const Panels& all,
                            int64_t most) const;
  OrtStatus* MultiplyTogether(const OrtKernelContext* context, const Rows& x, const Rows& y, Panels panels,
                              int64_t most) const;
  static bool IsInPlace(const Panels& panels) { return panels.width == 1 && kFloat == Float::k32; }
  // From row `first` on.
  static Rows From(const Rows& rows, int64_t first) {
    constexpr int64_t kElement = kFloat == Float::k32 ? 4 : 2;
    return {static_cast<char*>(rows.data) + first * rows.stride * kElement, rows.type, rows.stride};
  }
  // The row of S from which on part i of `parts` equal parts of the work lies.
  int64_t Part(int64_t i, int64_t parts) const;

  Node node_;
  StoredMatrix matrix_{};
  int64_t least_k_ = 0;  // past the largest column
  const Kernel* kernel_ = nullptr;
  std::shared_ptr<Scratch> scratch_;
  int64_t threads_ = 1;
};

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  Tensor values, columns, offsets;
  QCOMPILER_TRY(node_.Constant(info, kValues, "values", &values));
  QCOMPILER_TRY(node_.Constant(info, kColumns, "columns", &columns));
  QCOMPILER_TRY(node_.Constant(info, kOffsets, "offsets", &offsets));
  if (columns.count() != values.count()) {
    return node_.Refuse("columns has " + std::to_string(columns.count()) + " elements; the values make it " +
                        std::to_string(values.count()));
  }
  switch (values.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      matrix_.type = Float::k32;
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      matrix_.type = Float::k16;
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      matrix_.type = Float::kBrain16;
      break;
    default:
      return node_.Refuse("values are none of float32, float16 and bfloat16");
  }
  matrix_.wide_columns = columns.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (!matrix_.wide_columns && columns.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16)
    return node_.Refuse("columns are neither uint16 nor int32");
  if (offsets.count() < 1) return node_.Refuse("offsets has no elements; N + 1 are needed");
  // Constants stay where they are as long as the session lives.
  matrix_.values = values.data;
  matrix_.columns = columns.data;
  matrix_.offsets = static_cast<const int32_t*>(offsets.data);
  matrix_.n = offsets.count() - 1;
  QCOMPILER_TRY(CheckOffsets(values.count()));
  QCOMPILER_TRY(CheckColumns());
  kernel_ = sparse_matmul::ChooseKernel(DetectCpu());
  scratch_ = Scratch::Shared();
  threads_ = Threads();
  return nullptr;
}

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::CheckOffsets(int64_t count) const {
  const int32_t* offsets = matrix_.offsets;
  if (offsets[0] != 0 || offsets[matrix_.n] != count) {
    return node_.Refuse("offsets go from " + std::to_string(offsets[0]) + " to " +
                        std::to_string(offsets[matrix_.n]) +
                        "; they have to from 0 to the number of values, " + std::to_string(count));
  }
  const int32_t* falls = std::adjacent_find(offsets, offsets + matrix_.n + 1, std::greater<>());
  if (falls == offsets + matrix_.n + 1) return nullptr;
  return node_.Refuse("offsets fall after row " + std::to_string(falls - offsets));
}

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::CheckColumns() {
  const auto column = [&](int64_t e) -> int64_t {
    if (matrix_.wide_columns) return static_cast<const int32_t*>(matrix_.columns)[e];
    return static_cast<const uint16_t*>(matrix_.columns)[e];
  };
  for (int64_t n = 0; n < matrix_.n; ++n) {
    int64_t last = -1;
    for (int64_t e = matrix_.offsets[n]; e < matrix_.offsets[n + 1]; ++e) {
      if (column(e) <= last) {
        return node_.Refuse("columns of row " + std::to_string(n) + " do not rise from 0 on: " +
                            std::to_string(column(e)) + " follows " + std::to_string(last));
      }
      last = column(e);
    }
    least_k_ = std::max(least_k_, last + 1);
  }
  return nullptr;
}

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::Compute(OrtKernelContext* context) const {
  const OrtValue* value = nullptr;
  QCOMPILER_TRY(api()->KernelContext_GetInput(context, kX, &value));
  Tensor x;
  QCOMPILER_TRY(x.Read(api(), value));
  if (x.dims.empty()) return node_.Refuse("x has no dimensions; the last has to be K");
  const int64_t k = x.dims.back();
  if (k < least_k_) {
    return node_.Refuse("the rows of x have " + std::to_string(k) + " numbers; columns go up to " +
                        std::to_string(least_k_ - 1));
  }
  x.dims.back() = 1;
  const int64_t m = x.count();
  x.dims.back() = matrix_.n;
  OrtValue* output = nullptr;
  void* y = nullptr;
  QCOMPILER_TRY(api()->KernelContext_GetOutput(context, 0, x.dims.data(), x.dims.size(), &output));
  QCOMPILER_TRY(api()->GetTensorMutableData(output, &y));
  if (m == 0 || matrix_.n == 0) return nullptr;
  return Multiply(context, {const_cast<void*>(x.data), kFloat, k}, {y, kFloat, matrix_.n}, m, k);
}

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::Multiply(const OrtKernelContext* context, const Rows& x, const Rows& y,
                                         int64_t m, int64_t k) const {
  const int width = sparse_matmul::PanelWidth(m);
  const int64_t panels = (m + width - 1) / width;
  const int64_t work = matrix_.offsets[matrix_.n] + kRowCost * matrix_.n;
  const bool alone = threads_ == 1 || m * work < kAlone;
  const int64_t most = alone ? 1 : MostTasks(threads_);
  return alone || panels >= 2 * threads_ ? MultiplyPanels(context, x, y, {m, k, width, nullptr}, most)
                                         : MultiplyTogether(context, x, y, {m, k, width, nullptr}, most);
}

// Each task has panels of its own, one after another: one stays near while all of S passes.
template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::MultiplyPanels(const OrtKernelContext* context, const Rows& x, const Rows& y,
                                               const Panels& all, int64_t most) const {
  const int64_t count = all.count(), tasks = std::min(count, most);
  const bool in_place = IsInPlace(all);
  std::atomic<bool> failed{false};
  QCOMPILER_TRY(ShareOut(api(), context, tasks, [&](int64_t i) {
    const size_t size = in_place ? 0 : static_cast<size_t>(all.width * all.k) * sizeof(float);
    const BufferPool::Lent buffer = scratch_->panels.Lend(size);
    if (!in_place && buffer.data() == nullptr) {
      failed = true;
      return;
    }
    float* arranged = reinterpret_cast<float*>(buffer.data());
    for (int64_t panel = count * i / tasks; panel < count * (i + 1) / tasks; ++panel) {
      const int64_t first = panel * all.width;
      const Rows from = From(x, first);
      Panels one{std::min<int64_t>(all.width, all.m - first), all.k, all.width, arranged};
      if (in_place) {
        one.data = static_cast<const float*>(from.data);
      } else {
        kernel_->arrange(from, one, arranged, 0, all.k);
      }
      kernel_->multiply(one, matrix_, From(y, first), 0, matrix_.n);
    }
  }));
  return failed ? node_.Fail("no memory for a panel of activations") : nullptr;
}

// Few panels: each task has rows of S for all of them.
template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::MultiplyTogether(const OrtKernelContext* context, const Rows& x,
                                                 const Rows& y, Panels panels, int64_t most) const {
  const bool in_place = IsInPlace(panels);
  const size_t size =
      in_place ? 0 : static_cast<size_t>(panels.count() * panels.width * panels.k) * sizeof(float);
  const BufferPool::Lent buffer = scratch_->activations.Lend(size);
  if (!in_place && buffer.data() == nullptr) return node_.Fail("no memory for its activations");
  float* arranged = reinterpret_cast<float*>(buffer.data());
  panels.data = in_place ? static_cast<const float*>(x.data) : arranged;
  if (!in_place) {
    const int64_t lots = (panels.k + kColumnsAtOnce - 1) / kColumnsAtOnce, tasks = std::min(lots, most);
    QCOMPILER_TRY(ShareOut(api(), context, tasks, [&](int64_t i) {
      kernel_->arrange(x, panels, arranged, lots * i / tasks * kColumnsAtOnce,
                       std::min(lots * (i + 1) / tasks * kColumnsAtOnce, panels.k));
    }));
  }
  const int64_t tasks = std::min(matrix_.n, most);
  return ShareOut(api(), context, tasks, [&](int64_t i) {
    kernel_->multiply(panels, matrix_, y, Part(i, tasks), Part(i + 1, tasks));
  });
}

template <ONNXTensorElementDataType kType>
int64_t SparseMatMul<kType>::Part(int64_t i, int64_t parts) const {
  const auto cost = [&](int64_t row) { return matrix_.offsets[row] + kRowCost * row; };
  const int64_t wanted = cost(matrix_.n) * i / parts;
  int64_t low = 0, high = matrix_.n;  // the first row that costs as much, with those before it
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cost(middle) < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <ONNXTensorElementDataType kType>
OrtStatus* SparseMatMul<kType>::Infer(const OrtApi* api, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo *x = nullptr, *offsets = nullptr;
  // Of operators of one name ONNX Runtime asks the first, whatever the type of x.
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  int64_t count = 0;
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, kX, &x));
  QCOMPILER_TRY(api->GetTensorElementType(x, &type));
  QCOMPILER_TRY(api->ShapeInferContext_GetInputTypeShape(context, kOffsets, &offsets));
  QCOMPILER_TRY(api->GetDimensionsCount(offsets, &rank));
  if (rank != 1) return nullptr;
  QCOMPILER_TRY(api->GetDimensions(offsets, &count, 1));
  if (count < 1) return nullptr;
  return InferProduct(api, context, kX, 0, count - 1, type);
}

}  // namespace

const OrtCustomOp* SparseMatMulOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<SparseMatMul<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>>::Get(api, infers_shapes);
}
const OrtCustomOp* SparseMatMulHalfOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<SparseMatMul<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>>::Get(api, infers_shapes);
}

}  // namespace qcompiler
