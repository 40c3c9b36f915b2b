// Bytes at a multiple of 64, freed with their owner.
#ifndef QCOMPILER_RUNTIME_OPS_BASE_ALIGNED_BUFFER_H_
#define QCOMPILER_RUNTIME_OPS_BASE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>

namespace qcompiler {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  // At least `size` bytes of unspecified content, in huge pages where the system gives them and they would be
  // filled. False where there is no memory: the buffer is then empty.
  bool Allocate(size_t size);

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_BASE_ALIGNED_BUFFER_H_
