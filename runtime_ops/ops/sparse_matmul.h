// ai.qcompiler::SparseMatMul: y = x S^T, S [N, K] sparse, stored row after row.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_SPARSE_MATMUL_H_
#define QCOMPILER_RUNTIME_OPS_OPS_SPARSE_MATMUL_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operator, for x of each of its types; lives as long as the library. `api`
// is the one ONNX Runtime of the process.
//
// Inputs: x float32 or float16 [.., K]; values float32, float16 or bfloat16 [E], columns uint16 or int32 [E],
// rising within a row, and offsets int32 [N + 1], from 0 to E, never falling: all three constant. Output: y
// [.., N], of the type of x; sums are float32. K has to pass the largest column.
const OrtCustomOp* SparseMatMulOp(const OrtApi* api, bool infers_shapes);
const OrtCustomOp* SparseMatMulHalfOp(const OrtApi* api, bool infers_shapes);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_SPARSE_MATMUL_H_
