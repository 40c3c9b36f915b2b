// The contract of sparse_matmul.h, number by number: what every other kernel is tested against.
#include <cstring>

#include "base/float16.h"
#include "kernels/sparse_matmul/kernels.h"

namespace qcompiler {
namespace sparse_matmul {
namespace {

float Read(const void* data, Float type, int64_t index) {
  if (type == Float::k32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + index * 4, sizeof(value));
    return value;
  }
  uint16_t half;
  std::memcpy(&half, static_cast<const char*>(data) + index * 2, sizeof(half));
  return type == Float::k16 ? Float16ToFloat(half) : BrainFloat16ToFloat(half);
}

int64_t Column(const StoredMatrix& s, int64_t index) {
  int32_t column = 0;
  const size_t size = s.wide_columns ? 4 : 2;  // little-endian: the rest stays 0
  std::memcpy(&column, static_cast<const char*>(s.columns) + index * static_cast<int64_t>(size), size);
  return column;
}

void Write(const Rows& y, int64_t row, int64_t column, float value) {
  const int64_t index = row * y.stride + column;
  if (y.type == Float::k32) {
    static_cast<float*>(y.data)[index] = value;
  } else {
    static_cast<uint16_t*>(y.data)[index] = FloatToFloat16(value);
  }
}

}  // namespace

void ArrangeReference(const Rows& x, const Panels& panels, float* out, int64_t begin, int64_t end) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    for (int64_t k = begin; k < end; ++k) {
      for (int lane = 0; lane < panels.width; ++lane) {
        const int64_t m = panel * panels.width + lane;
        out[(panel * panels.k + k) * panels.width + lane] =
            m < panels.m ? Read(x.data, x.type, m * x.stride + k) : 0.0f;
      }
    }
  }
}

void MultiplyReference(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end) {
  for (int64_t m = 0; m < x.m; ++m) {
    const float* panel = x.data + m / x.width * x.k * x.width + m % x.width;
    for (int64_t n = begin; n < end; ++n) {
      float sums[kPartialSums] = {};
      for (int64_t e = s.offsets[n]; e < s.offsets[n + 1]; ++e) {
        const float product = Read(s.values, s.type, e) * panel[Column(s, e) * x.width];
        sums[(e - s.offsets[n]) % kPartialSums] += product;
      }
      Write(y, m, n, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  }
}

}  // namespace sparse_matmul
}  // namespace qcompiler
