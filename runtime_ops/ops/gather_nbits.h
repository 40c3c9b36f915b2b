// ai.qcompiler::GatherNBits: rows of a table of 2, 4 or 8 bits, such as the embedding that shares its bytes
// with the head.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_GATHER_NBITS_H_
#define QCOMPILER_RUNTIME_OPS_OPS_GATHER_NBITS_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operator, for scales of each of its types; lives as long as the library.
// `api` is the one ONNX Runtime of the process, `infers_shapes` whether it may be asked to infer them.
//
// Inputs: codes uint8 [N, G block_size bits / 8] (any rank, as many elements), constant; indices int32 or
// int64, any shape, -N .. N - 1 (negative ones count from the end); scales float32 or float16 [N, G],
// constant; zero_points uint8 [N, ceil(G bits / 8)], constant, optional (2^(bits - 1)). Attributes: K, N,
// bits (2, 4, 8), block_size (a multiple of 16; the last block of a row may be short). Output: y [indices..,
// K], of the type of the scales.
// With the attribute layout = 1 (0 where it is left out) the table lies as products' kernels read it, with
// float32 scales: see WeightsOfNode.
const OrtCustomOp* GatherNBitsOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* GatherNBitsHalfOp(const OrtApi* api, bool infers_shapes);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_GATHER_NBITS_H_
