// ai.qcompiler::MatMulCodebook: y = x W^T, W of 4-bit codes that stand for the numbers of a table.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_MATMUL_CODEBOOK_H_
#define QCOMPILER_RUNTIME_OPS_OPS_MATMUL_CODEBOOK_H_

#include "ort_api.h"

namespace qcompiler {

// What ONNX Runtime is told of the operator; lives as long as the library. `api` is the one ONNX Runtime of
// the process.
//
// Inputs and attributes are those of com.microsoft::MatMulBnb4: x float32 [.., K]; codes uint8
// [N K / 2], the first of two in the higher bits, and scales float32 or float16 [N K / block_size], both
// constant (or computed of constants, which ONNX Runtime folds). Attributes: K,
// N, block_size (a multiple of 16 that divides K), quant_type (0: fp4, 1: nf4). Output: y float32 [.., N].
// The numbers of the table are taken as 8-bit integers, of which the largest is as near 127 as rounds them
// best.
const OrtCustomOp* MatMulCodebookOp(const OrtApi* api, bool infers_shapes);

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_MATMUL_CODEBOOK_H_
