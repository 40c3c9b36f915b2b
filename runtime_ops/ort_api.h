// The part of ONNX Runtime's C ABI that this library calls, declared by hand.
//
// No Python package ships ONNX Runtime's headers, and a build must not need a distribution's package for
// them. The ABI is stable: OrtApi is a table of function pointers to which versions only append, and ONNX
// Runtime holds the order of what has shipped with static_asserts of its own. So each function is its slot in
// that table; a slot that we do not call is only counted. Adding one: give its slot a name below, and assert
// its place.
//
// Conventions of the ABI: a function returns nullptr for success, else a status that the caller owns (or
// hands on).
#ifndef QCOMPILER_RUNTIME_OPS_ORT_API_H_
#define QCOMPILER_RUNTIME_OPS_ORT_API_H_

#include <cstddef>
#include <cstdint>

extern "C" {

// ONNX Runtime 1.17, the first with KernelContext_ParallelFor for custom ops: the oldest that our kernels can
// use.
constexpr uint32_t kOrtApiVersion = 17;

enum OrtErrorCode : int { ORT_OK = 0, ORT_FAIL = 1 };

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;

using OrtUnusedSlot = void (*)();

struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  OrtUnusedSlot unused_1[25];
  // The name is copied. The domain is the caller's and has to outlive every session that uses it.
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** domain);
  OrtUnusedSlot unused_27[1];
  // Stores the pointer; does not take the domain over.
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
};

struct OrtApiBase {
  // nullptr when this ONNX Runtime is older than the version asked for.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

}  // extern "C"

#define QCOMPILER_ASSERT_SLOT(name, slot)                                 \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(OrtUnusedSlot), \
                #name " is not in its slot of OrtApi")

QCOMPILER_ASSERT_SLOT(CreateStatus, 0);
QCOMPILER_ASSERT_SLOT(CreateCustomOpDomain, 26);
QCOMPILER_ASSERT_SLOT(AddCustomOpDomain, 28);

#undef QCOMPILER_ASSERT_SLOT

#endif  // QCOMPILER_RUNTIME_OPS_ORT_API_H_
