// RegisterCustomOps against an ONNX Runtime of our own making: the right slots are called, and every failure
// comes back as a status. Run under the sanitizers by scripts/check; that the real one loads the library is
// tested in Python.
#include "op_library.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(condition)                                                 \
  if (!(condition)) {                                                    \
    std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    std::abort();                                                        \
  }

struct OrtStatus {
  std::string message;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};

struct OrtSessionOptions {
  const OrtCustomOpDomain* domain = nullptr;
};

namespace {

int domains_created = 0;
OrtStatus refused{"refused"};

OrtStatus* CreateStatus(OrtErrorCode, const char* message) { return new OrtStatus{message}; }

OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** domain) {
  static OrtCustomOpDomain only;
  only.name = name;
  *domain = &only;
  ++domains_created;
  return nullptr;
}

OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  domain->ops.push_back(op);
  return nullptr;
}

OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  if (options->domain != nullptr) return &refused;
  options->domain = domain;
  return nullptr;
}

OrtApi MakeApi() {
  OrtApi api{};  // a call of any other slot is a call of nullptr
  api.CreateStatus = CreateStatus;
  api.CreateCustomOpDomain = CreateCustomOpDomain;
  api.CustomOpDomain_Add = CustomOpDomain_Add;
  api.AddCustomOpDomain = AddCustomOpDomain;
  return api;
}

const OrtApi first_runtime = MakeApi();
const OrtApi second_runtime = MakeApi();

const char* Version() { return "1.23.2"; }

const OrtApi* OldApi(uint32_t version) { return version < kOrtApiVersion ? &first_runtime : nullptr; }
const OrtApi* FirstApi(uint32_t) { return &first_runtime; }
const OrtApi* SecondApi(uint32_t) { return &second_runtime; }

bool Says(OrtStatus* status, const char* text) {
  const bool said = status != nullptr && status->message.find(text) != std::string::npos;
  delete status;
  return said;
}

void RefusesAnOldRuntime() {
  const OrtApiBase base{OldApi, Version};
  OrtSessionOptions options;
  CHECK(Says(RegisterCustomOps(&options, &base), "1.17"));
  CHECK(options.domain == nullptr);
}

void SharesOneDomainBetweenSessions() {
  const OrtApiBase base{FirstApi, Version};
  OrtSessionOptions a, b;
  CHECK(RegisterCustomOps(&a, &base) == nullptr);
  CHECK(RegisterCustomOps(&b, &base) == nullptr);
  CHECK(a.domain != nullptr && a.domain == b.domain);
  CHECK(a.domain->name == "ai.qcompiler");
  CHECK(domains_created == 1);
  std::string names;
  for (const OrtCustomOp* op : a.domain->ops) names += std::string(op->GetName(op)) + " ";
  CHECK(names ==
        "DynamicQuantMatMul GatherNBits GatherNBits MatMul3Bits MatMul3BitsAdd MatMul3BitsFastGelu "
        "MatMul3BitsGelu MatMul3BitsPair MatMul3BitsQuickGelu MatMul3BitsRelu MatMul3BitsSwiGlu "
        "MatMul3BitsTriple MatMulCodebook MatMulNBits MatMulNBitsAdd MatMulNBitsFastGelu "
        "MatMulNBitsGelu MatMulNBitsPair MatMulNBitsQuickGelu MatMulNBitsRelu MatMulNBitsSwiGlu "
        "MatMulNBitsTriple QLinearMatMul SparseMatMul SparseMatMul ");
  for (const OrtCustomOp* op : a.domain->ops) CHECK(op->InferOutputShapeFn == nullptr);  // from 1.24 on
}

void HandsOnTheRuntimesRefusal() {
  const OrtApiBase base{FirstApi, Version};
  OrtSessionOptions options;
  CHECK(RegisterCustomOps(&options, &base) == nullptr);
  CHECK(RegisterCustomOps(&options, &base) == &refused);
}

void RefusesASecondRuntimeInOneProcess() {
  const OrtApiBase base{SecondApi, Version};
  OrtSessionOptions options;
  CHECK(Says(RegisterCustomOps(&options, &base), "another ONNX Runtime"));
  CHECK(options.domain == nullptr);
}

}  // namespace

int main() {
  RefusesAnOldRuntime();
  SharesOneDomainBetweenSessions();
  HandsOnTheRuntimesRefusal();
  RefusesASecondRuntimeInOneProcess();
  return 0;
}
