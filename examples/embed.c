// A language model that qcompiler compiled, in an application of its own: plain C, ONNX Runtime's C
// interface, and our library of operators. Runs once on the tokens given and prints the most likely next one.
//
//   cc -std=c11 -I ORT/include embed.c -L ORT/lib -lonnxruntime -o embed
//   ./embed ./libqcompiler_ops.so model.onnx 84 104 101
//
// ORT: a release of ONNX Runtime, 1.19 or newer. qcompiler.library_path() tells where the library is. A model
// from a text to logits, without a cache: inputs int64 [1, tokens], output float32 [1, tokens, vocabulary].
#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMostInputs = 3 };

static const OrtApi* ort;

// All that has to be released; NULL until it is made, which ONNX Runtime's Release functions take too.
typedef struct {
  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  OrtMemoryInfo* memory;
  size_t inputs;
  char* names[kMostInputs];
  int64_t* data[kMostInputs];
  OrtValue* values[kMostInputs];
  OrtValue* logits;
  OrtTensorTypeAndShapeInfo* shape;
} App;

// Whether a call succeeded; says why not. A status belongs to who got it.
static int Ok(OrtStatus* status) {
  if (status == NULL) return 1;
  fprintf(stderr, "embed: %s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return 0;
}

static int Load(App* app, const char* library, const char* model) {
  return Ok(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "embed", &app->env)) &&
         Ok(ort->CreateSessionOptions(&app->options)) &&
         // Once for each options object. ONNX Runtime keeps the library open as long as a session needs it.
         Ok(ort->RegisterCustomOpsLibrary_V2(app->options, library)) &&
         Ok(ort->CreateSession(app->env, model, app->options, &app->session)) &&
         Ok(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &app->memory)) &&
         Ok(ort->SessionGetInputCount(app->session, &app->inputs));
}

// What input number `index` is given: the tokens, a mask of ones, or places from 0 on.
static int MakeInput(App* app, size_t index, const int64_t* tokens, size_t count) {
  OrtAllocator* allocator = NULL;  // ONNX Runtime's own, not ours to release
  if (!Ok(ort->GetAllocatorWithDefaultOptions(&allocator)) ||
      !Ok(ort->SessionGetInputName(app->session, index, allocator, &app->names[index]))) {
    return 0;
  }
  const char* name = app->names[index];
  int64_t* data = app->data[index] = malloc(count * sizeof *data);
  if (data == NULL) {
    fprintf(stderr, "embed: out of memory\n");
    return 0;
  }
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(name, "input_ids") == 0) {
      data[i] = tokens[i];
    } else if (strcmp(name, "attention_mask") == 0) {
      data[i] = 1;
    } else if (strcmp(name, "position_ids") == 0) {
      data[i] = (int64_t)i;
    } else {
      fprintf(stderr, "embed: the model has an input %s, which this example does not know\n", name);
      return 0;
    }
  }
  const int64_t dims[2] = {1, (int64_t)count};
  // The tensor borrows the data, which has to outlive it.
  return Ok(ort->CreateTensorWithDataAsOrtValue(app->memory, data, count * sizeof *data, dims, 2,
                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &app->values[index]));
}

static int Run(App* app, const int64_t* tokens, size_t count) {
  if (app->inputs > kMostInputs) {
    fprintf(stderr, "embed: the model has %zu inputs; give one without a cache\n", app->inputs);
    return 0;
  }
  for (size_t i = 0; i < app->inputs; ++i) {
    if (!MakeInput(app, i, tokens, count)) return 0;
  }
  const char* outputs[1] = {"logits"};
  // From as many threads at once as you like.
  return Ok(ort->Run(app->session, NULL, (const char* const*)app->names, (const OrtValue* const*)app->values,
                     app->inputs, outputs, 1, &app->logits));
}

static int Print(App* app) {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t dims[3] = {0};  // batch, tokens, vocabulary
  size_t rank = 0;
  void* data = NULL;
  if (!Ok(ort->GetTensorTypeAndShape(app->logits, &app->shape)) ||
      !Ok(ort->GetTensorElementType(app->shape, &type)) || !Ok(ort->GetDimensionsCount(app->shape, &rank))) {
    return 0;
  }
  if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || rank != 3) {
    fprintf(stderr, "embed: the logits are not float32 of three dimensions\n");
    return 0;
  }
  if (!Ok(ort->GetDimensions(app->shape, dims, 3)) || !Ok(ort->GetTensorMutableData(app->logits, &data))) {
    return 0;
  }
  const float* last = (const float*)data + (dims[1] - 1) * dims[2];
  int64_t best = 0;
  for (int64_t i = 1; i < dims[2]; ++i) {
    if (last[i] > last[best]) best = i;
  }
  printf("%lld %.6g\n", (long long)best, (double)last[best]);
  return 1;
}

static void Release(App* app) {
  ort->ReleaseTensorTypeAndShapeInfo(app->shape);
  ort->ReleaseValue(app->logits);
  for (size_t i = 0; i < kMostInputs; ++i) {
    ort->ReleaseValue(app->values[i]);
    free(app->data[i]);
    OrtAllocator* allocator = NULL;
    if (app->names[i] != NULL && Ok(ort->GetAllocatorWithDefaultOptions(&allocator))) {
      Ok(ort->AllocatorFree(allocator, app->names[i]));
    }
  }
  ort->ReleaseMemoryInfo(app->memory);
  ort->ReleaseSession(app->session);  // before its options and the environment
  ort->ReleaseSessionOptions(app->options);
  ort->ReleaseEnv(app->env);
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: embed LIBRARY MODEL TOKEN...\n");
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "embed: ONNX Runtime %s is older than the header that this was compiled with\n",
            OrtGetApiBase()->GetVersionString());
    return 1;
  }
  const size_t count = (size_t)argc - 3;
  int64_t* tokens = malloc(count * sizeof *tokens);
  if (tokens == NULL) return 1;
  for (size_t i = 0; i < count; ++i) tokens[i] = strtoll(argv[3 + i], NULL, 10);
  App app = {0};
  const int done = Load(&app, argv[1], argv[2]) && Run(&app, tokens, count) && Print(&app);
  Release(&app);
  free(tokens);
  return done ? 0 : 1;
}
