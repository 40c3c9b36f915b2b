#include "ops/matmul_codebook.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "ops/custom_op.h"
#include "ops/node.h"
#include "ops/product.h"

namespace qcompiler {
namespace {

using matmul_nbits::StoredWeights;

constexpr size_t kX = 0, kCodes = 1, kScales = 2;

// Tables by quant_type. fp4: a sign, two bits of exponent and one of mantissa, as bitsandbytes orders them.
// nf4: NormalFloat of QLoRA (Dettmers et al. 2023, appendix E).
constexpr float kTables[2][16] = {
    {0.0f, 1.0f / 192, 2.0f / 3, 1.0f, 1.0f / 3, 0.5f, 1.0f / 6, 0.25f, -0.0f, -1.0f / 192, -2.0f / 3, -1.0f,
     -1.0f / 3, -0.5f, -1.0f / 6, -0.25f},
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
     0.7229568362236023f, 1.0f}};

// The whole number of 64 .. 127 whose multiples of a table are nearest to whole numbers themselves, in
// proportion to it.
int BestMultiple(const float* table) {
  int best = 127;
  float least = INFINITY;
  for (int multiple = 64; multiple <= 127; ++multiple) {
    float error = 0;
    for (int i = 0; i < 16; ++i) {
      const float value = table[i] * static_cast<float>(multiple);
      const float off = (value - std::nearbyint(value)) / static_cast<float>(multiple);
      error += off * off;
    }
    if (error < least) least = error, best = multiple;
  }
  return best;
}

class MatMulCodebook {
 public:
  static constexpr char kName[] = "MatMulCodebook";
  static constexpr Argument kInputs[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                                         {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED}};
  static constexpr Argument kOutputs[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}};

  OrtStatus* Create(const OrtApi* api, const OrtKernelInfo* info);
  OrtStatus* Compute(OrtKernelContext* context) const {
    return product_.Compute(node_, context, kX, Product::kNone);
  }
  const OrtApi* api() const { return node_.api(); }

  static OrtStatus* Infer(const OrtApi* api, OrtShapeInferContext* context) {
    int64_t n = 0;
    QCOMPILER_TRY(InferAttribute(api, context, "N", &n));
    return InferProduct(api, context, kX, 0, n);
  }

 private:
  Node node_;
  Product product_;
};

OrtStatus* MatMulCodebook::Create(const OrtApi* api, const OrtKernelInfo* info) {
  QCOMPILER_TRY(node_.Open(api, info, kName));
  StoredWeights stored{};
  int64_t quant_type = 0;
  QCOMPILER_TRY(node_.Attribute(info, "N", 1, Product::kMost, &stored.n));
  QCOMPILER_TRY(node_.Attribute(info, "K", 1, Product::kMost, &stored.k));
  QCOMPILER_TRY(node_.Attribute(info, "block_size", 16, Product::kMost, &stored.group));
  QCOMPILER_TRY(node_.Attribute(info, "quant_type", 0, 1, &quant_type));
  if (stored.group % 16 != 0 || stored.k % stored.group != 0) {
    return node_.Refuse("block_size is " + std::to_string(stored.group) +
                        "; a multiple of 16 that divides K = " + std::to_string(stored.k) + " is needed");
  }
  stored.bits = 4;
  const float* values = kTables[quant_type];
  const int multiple = BestMultiple(values);
  uint8_t table[16];
  for (int i = 0; i < 16; ++i) {
    table[i] = static_cast<uint8_t>(
        static_cast<int>(std::nearbyint(values[i] * static_cast<float>(multiple))) + 128);
  }
  stored.table = table;

  const int64_t blocks = stored.n * (stored.k / stored.group);
  Tensor codes;
  QCOMPILER_TRY(node_.Constant(info, kCodes, "codes", stored.n * (stored.k / 2), &codes));
  const uint8_t* high_first = static_cast<const uint8_t*>(codes.data);
  std::vector<uint8_t> low_first(static_cast<size_t>(codes.count()));
  std::transform(high_first, high_first + codes.count(), low_first.begin(),
                 [](uint8_t byte) { return static_cast<uint8_t>(byte << 4 | byte >> 4); });
  stored.codes = low_first.data();

  std::vector<float> widened;
  const float* largest = nullptr;
  QCOMPILER_TRY(node_.ConstantFloats(info, kScales, "scales", blocks, &widened, &largest));
  std::vector<float> scales(static_cast<size_t>(blocks));
  std::transform(largest, largest + blocks, scales.begin(),
                 [&](float scale) { return scale / static_cast<float>(multiple); });
  stored.scales = scales.data();
  std::vector<matmul_nbits::PackedWeights> packed(1);
  if (!matmul_nbits::Pack(stored, &packed.front())) return node_.Fail("no memory for its weights");
  return product_.Create(node_, std::move(packed));
}

}  // namespace

const OrtCustomOp* MatMulCodebookOp(const OrtApi* api, bool infers_shapes) {
  return CustomOp<MatMulCodebook>::Get(api, infers_shapes);
}

}  // namespace qcompiler
