#include "op_library.h"

#include <cstdio>

#include "ops/gather_nbits.h"
#include "ops/matmul_codebook.h"
#include "ops/matmul_nbits.h"
#include "ops/qlinear_matmul.h"
#include "ops/sparse_matmul.h"

namespace {

constexpr char kDomain[] = "ai.qcompiler";

// Every operator of the domain.
constexpr const OrtCustomOp* (*kOps[])(const OrtApi* api, bool infers_shapes) = {
    qcompiler::DynamicQuantMatMulOp,   qcompiler::GatherNBitsOp,       qcompiler::GatherNBitsHalfOp,
    qcompiler::MatMul3BitsOp,          qcompiler::MatMul3BitsAddOp,    qcompiler::MatMul3BitsFastGeluOp,
    qcompiler::MatMul3BitsGeluOp,      qcompiler::MatMul3BitsPairOp,   qcompiler::MatMul3BitsQuickGeluOp,
    qcompiler::MatMul3BitsReluOp,      qcompiler::MatMul3BitsSwiGluOp, qcompiler::MatMul3BitsTripleOp,
    qcompiler::MatMulCodebookOp,       qcompiler::MatMulNBitsOp,       qcompiler::MatMulNBitsAddOp,
    qcompiler::MatMulNBitsFastGeluOp,  qcompiler::MatMulNBitsGeluOp,   qcompiler::MatMulNBitsPairOp,
    qcompiler::MatMulNBitsQuickGeluOp, qcompiler::MatMulNBitsReluOp,   qcompiler::MatMulNBitsSwiGluOp,
    qcompiler::MatMulNBitsTripleOp,    qcompiler::QLinearMatMulOp,     qcompiler::SparseMatMulOp,
    qcompiler::SparseMatMulHalfOp,
};

// Before 1.24 ONNX Runtime crashes when it is about to ask for the shapes of a node that leaves out an
// optional input and has a later one. Not asked, it runs with shapes that are open until then.
bool InfersShapes(const char* version) {
  int major = 0, minor = 0;
  return std::sscanf(version, "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= 24);
}

// The domain outlives every session and is never released: ONNX Runtime may be unloaded before our
// destructors run.
struct SharedDomain {
  SharedDomain(const OrtApi* owner, bool infers) : api(owner) {
    status = api->CreateCustomOpDomain(kDomain, &domain);
    for (const auto op : kOps) {
      if (status == nullptr) status = api->CustomOpDomain_Add(domain, op(api, infers));
    }
  }

  const OrtApi* api;
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = nullptr;
};

}  // namespace

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "qcompiler's operators need ONNX Runtime 1.17 or newer");
  }
  static const SharedDomain shared(api, InfersShapes(base->GetVersionString()));
  if (shared.status != nullptr) {
    return api->CreateStatus(ORT_FAIL, "qcompiler could not create its operator domain ai.qcompiler");
  }
  // A domain belongs to the ONNX Runtime that made it: another copy in this process has its own idea of its
  // layout.
  if (shared.api != api) {
    return api->CreateStatus(ORT_FAIL,
                             "qcompiler's operators already serve another ONNX Runtime in this process");
  }
  return api->AddCustomOpDomain(options, shared.domain);
}
