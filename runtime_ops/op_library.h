// The one entry point of libqcompiler_ops.so.
#ifndef QCOMPILER_RUNTIME_OPS_OP_LIBRARY_H_
#define QCOMPILER_RUNTIME_OPS_OP_LIBRARY_H_

#include "ort_api.h"

// Adds the domain ai.qcompiler, with every op of this library, to a session's options; ONNX Runtime calls it
// by this name. Returns nullptr, or a status that says why not; the options are unchanged then. Once for each
// OrtSessionOptions: ONNX Runtime refuses a domain that is registered twice when the session is created.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base);

#endif  // QCOMPILER_RUNTIME_OPS_OP_LIBRARY_H_
