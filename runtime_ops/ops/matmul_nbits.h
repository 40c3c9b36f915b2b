// ai.qcompiler::MatMulNBits: y = x W^T, W of 2, 3, 4 or 8 bits with a scale for each group.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_
#define QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operator; lives as long as the library. `api` is the one ONNX Runtime of
// the process.
//
// Inputs: x float32 [.., K]; codes uint8 [N, G, block_size bits / 8] and scales float32 or float16 [N, G]
// (any rank, as many elements), both constant; zero_points uint8 [N, ceil(G bits / 8)], constant, optional
// (2^(bits - 1)); bias float32 [N], optional. Attributes: K, N, bits (2, 3, 4, 8), block_size (a multiple of
// 16). Output: y float32 [.., N].
const OrtCustomOp* MatMulNBitsOp(const OrtApi* api);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_MATMUL_NBITS_H_
