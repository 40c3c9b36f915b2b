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
  // Whole huge pages only from where rounding up to them wastes little: memory is a promise.
  const size_t unit = size >= 16 * kHugePage ? kHugePage : kLine;
  const size_t rounded = (size + unit - 1) / unit * unit;
  if (rounded < size) return false;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(unit, rounded == 0 ? unit : rounded));
  if (data_ == nullptr) return false;
  size_ = size;
  if (size >= kHugePage)
    madvise(data_, rounded, MADV_HUGEPAGE);  // advice: a refusal changes nothing but speed
  return true;
}

}  // namespace qcompiler
