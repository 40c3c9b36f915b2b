// Work shared out over ONNX Runtime's threads.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_SHARING_H_
#define QCOMPILER_RUNTIME_OPS_OPS_SHARING_H_

#include <algorithm>
#include <cstdint>
#include <thread>

#include "ort_api.h"

namespace qcompiler {

// Of the machine. Asked once a kernel: it reads files.
inline int64_t Threads() { return std::max(1u, std::thread::hardware_concurrency()); }

// Most parts of one piece of work: a thread that is late leaves its last ones to others.
inline int64_t MostTasks(int64_t threads) { return 4 * threads; }

// task(i) for every i below `tasks`, on ONNX Runtime's threads; alone on this one.
template <class Task>
OrtStatus* ShareOut(const OrtApi* api, const OrtKernelContext* context, int64_t tasks, const Task& task) {
  if (tasks > 1) {
    const auto call = [](void* data, size_t i) {
      (*static_cast<const Task*>(data))(static_cast<int64_t>(i));
    };
    return api->KernelContext_ParallelFor(context, call, static_cast<size_t>(tasks), 0,
                                          const_cast<void*>(static_cast<const void*>(&task)));
  }
  if (tasks == 1) task(0);
  return nullptr;
}

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_SHARING_H_
