// ai.qcompiler::MatMulNBits: y = x W^T, W of 2, 3, 4 or 8 bits with a scale for each group.
// ai.qcompiler::MatMulNBitsPair, MatMulNBitsTriple: two or three of them on one x, which is quantized once.
// ai.qcompiler::MatMulNBitsAdd, MatMulNBitsSwiGlu: with what follows them in a decoder.
// ai.qcompiler::MatMulNBitsRelu, MatMulNBitsGelu, MatMulNBitsFastGelu, MatMulNBitsQuickGelu: with an
// activation. ai.qcompiler::MatMul3Bits and so on: all of the above of 3 bits alone.
// ai.qcompiler::DynamicQuantMatMul: the same with a scale for each row of x.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_
#define QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operators; lives as long as the library. `api` is the one ONNX Runtime of
// the process, `infers_shapes` whether it may be asked to infer them.
//
// Inputs: x float32 [.., K], and for each product: codes uint8 [N, G, block_size bits / 8] and scales float32
// or float16 [N, G] (any rank, as many elements), both constant; zero_points uint8 [N, ceil(G bits / 8)],
// constant, optional (2^(bits - 1)); bias float32 [N], optional. Attributes: K, N (of several: N_0, N_1,
// N_2), bits (2, 3, 4, 8), block_size (a multiple of 16). Outputs: y float32 [.., N] of each product. Of 3
// bits see matmul_nbits::StoredWeights: zero_points are uint8 [N, ceil(G 4 / 8)]. accuracy_level, optional: 4
// (default) rounds x to 8 bits for each row and block, 1 takes it as it is.
// With the attribute layout = 1 (0 where it is left out) weights lie as the kernels read them: see
// WeightsOfNode.
const OrtCustomOp* MatMulNBitsOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMulNBitsPairOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMulNBitsTripleOp(const OrtApi* api, bool infers_shapes);
// With an input `residual` float32 of y's shape behind the bias: y += residual.
const OrtCustomOp* MatMulNBitsAddOp(const OrtApi* api, bool infers_shapes);
// Inputs as of the pair, N_0 = N_1: y = second silu(first), silu(v) = v / (1 + exp(-v)).
const OrtCustomOp* MatMulNBitsSwiGluOp(const OrtApi* api, bool infers_shapes);
// y = f(product + bias): see matmul_nbits::Activation; QuickGelu has an attribute `alpha`, a finite float.
const OrtCustomOp* MatMulNBitsReluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMulNBitsGeluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMulNBitsFastGeluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMulNBitsQuickGeluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsAddOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsPairOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsSwiGluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsTripleOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsReluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsGeluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsFastGeluOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* MatMul3BitsQuickGeluOp(const OrtApi* api, bool infers_shapes);
// With x rounded to 8 bits with one scale for each row, in place of one for each row and block.
const OrtCustomOp* DynamicQuantMatMulOp(const OrtApi* api, bool infers_shapes);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_
