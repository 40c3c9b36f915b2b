// Memory for the time of a call, of all nodes together: those of one run follow one another, so that one
// buffer serves them all.
#ifndef QCOMPILER_RUNTIME_OPS_OPS_SCRATCH_H_
#define QCOMPILER_RUNTIME_OPS_OPS_SCRATCH_H_

#include <memory>

#include "base/buffer_pool.h"

namespace qcompiler {

struct Scratch {
  BufferPool activations, panels;

  // The one there is, as long as any kernel has it.
  static std::shared_ptr<Scratch> Shared();
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_OPS_SCRATCH_H_
