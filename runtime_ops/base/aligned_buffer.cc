#include "base/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <utility>

namespace qcompiler {

namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

bool AlignedBuffer::Allocate(size_t size) {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
  // From the start of a huge page on, but only those that are filled: memory is a promise.
  const size_t alignment = size >= kHugePage ? kHugePage : kLine;
  const size_t rounded = (size + kLine - 1) / kLine * kLine;
  if (rounded < size) return false;
  void* found = nullptr;
  if (posix_memalign(&found, alignment, rounded == 0 ? kLine : rounded) != 0) return false;
  data_ = static_cast<uint8_t*>(found);
  size_ = size;
  // Advice: a refusal changes nothing but speed.
  if (size >= kHugePage) madvise(data_, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return true;
}

}  // namespace qcompiler
