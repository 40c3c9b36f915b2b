#include "ops/scratch.h"

#include <mutex>

namespace qcompiler {

std::shared_ptr<Scratch> Scratch::Shared() {
  static std::mutex mutex;
  static std::weak_ptr<Scratch> shared;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Scratch> found = shared.lock();
  if (found == nullptr) shared = found = std::make_shared<Scratch>();
  return found;
}

}  // namespace qcompiler
