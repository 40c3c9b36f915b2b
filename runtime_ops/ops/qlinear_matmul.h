// ai.qcompiler::QLinearMatMul: y = x W^T of x in 8 bits with one scale, W of 2, 4 or 8 bits.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_QLINEAR_MATMUL_H_
#define QCOMPILER_RUNTIME_OPS_OPS_QLINEAR_MATMUL_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operator; lives as long as the library. `api` is the one ONNX Runtime of
// the process, `infers_shapes` whether it may be asked to infer them.
//
// Inputs: x int8 or uint8 [.., K]; x_scale float32 and x_zero_point of x's type, one number each and
// constant; then codes, scales, zero_points and bias as of MatMulNBits, whose attributes it has too. Output:
// y float32
// [.., N].
const OrtCustomOp* QLinearMatMulOp(const OrtApi* api, bool infers_shapes);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_QLINEAR_MATMUL_H_
