// Buffers that are in use by one Run each, and kept for the next.
#ifndef QCOMPILER_RUNTIME_OPS_BASE_BUFFER_POOL_H_
#define QCOMPILER_RUNTIME_OPS_BASE_BUFFER_POOL_H_

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"

namespace qcompiler {

// Safe to share between threads. There are as many buffers as were ever lent at the same time.
class BufferPool {
 public:
  // A buffer that goes back by itself.
  class Lent {
   public:
    Lent(BufferPool* pool, AlignedBuffer buffer) : pool_(pool), buffer_(std::move(buffer)) {}
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;
    ~Lent() { pool_->TakeBack(std::move(buffer_)); }

    // nullptr where there was no memory.
    uint8_t* data() const { return buffer_.data(); }

   private:
    BufferPool* pool_;
    AlignedBuffer buffer_;
  };

  // A buffer of at least `size` bytes: the largest that is free, or a new one; none for no bytes.
  Lent Lend(size_t size) {
    AlignedBuffer buffer;
    if (size == 0) return Lent(this, std::move(buffer));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const auto largest = std::max_element(
            free_.begin(), free_.end(),
            [](const AlignedBuffer& a, const AlignedBuffer& b) { return a.size() < b.size(); });
        std::swap(*largest, free_.back());
        buffer = std::move(free_.back());
        free_.pop_back();
      } else {
        try {
          free_.reserve(lent_ + 1);  // room to take it back, which must not fail
          ++lent_;
        } catch (const std::bad_alloc&) {
          return Lent(this, std::move(buffer));
        }
      }
    }
    if (buffer.size() < size || buffer.data() == nullptr) buffer.Allocate(size);
    return Lent(this, std::move(buffer));
  }

 private:
  void TakeBack(AlignedBuffer buffer) {
    if (buffer.data() == nullptr) return;  // there was no memory
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

  std::mutex mutex_;
  std::vector<AlignedBuffer> free_;
  size_t lent_ = 0;  // most that were ever lent at the same time
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_BASE_BUFFER_POOL_H_
