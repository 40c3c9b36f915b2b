// The kernel, written for vectors of any width: each translation unit that includes this gives kLanes,
// compiles it for an instruction set of its own, and keeps it to itself (nothing here has external linkage).
#ifndef QCOMPILER_SPARSE_MATMUL_LANES
#error "define QCOMPILER_SPARSE_MATMUL_LANES: float32 numbers of a register"
#endif

#include <algorithm>
#include <cstring>

#include "base/float16.h"
#include "kernels/sparse_matmul/kernels.h"

namespace qcompiler {
namespace sparse_matmul {
namespace {

constexpr int kLanes = QCOMPILER_SPARSE_MATMUL_LANES;
constexpr int kLine = 16;      // numbers that are 64 bytes in float32
constexpr int kTile = 32;      // rows of S whose sums are kept until they fill lines of y
constexpr int kWindow = 2048;  // numbers of S that are converted at a time: 16 KB; a multiple of kPartialSums

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t FourInts __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Register __attribute__((vector_size(4 * kLanes), may_alias));

#define QCOMPILER_INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define QCOMPILER_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define QCOMPILER_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourInts{__VA_ARGS__})
#endif

inline void Write(float value, float* to) { *to = value; }
inline void Write(float value, uint16_t* to) { *to = FloatToFloat16(value); }
inline float Read(const float* from) { return *from; }
inline float Read(const uint16_t* from) { return Float16ToFloat(*from); }

QCOMPILER_INLINE void Transpose(Four (&rows)[4]) {
  const Four a = QCOMPILER_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5);
  const Four b = QCOMPILER_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7);
  const Four c = QCOMPILER_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5);
  const Four d = QCOMPILER_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = QCOMPILER_SHUFFLE(a, c, 0, 1, 4, 5);
  rows[1] = QCOMPILER_SHUFFLE(a, c, 2, 3, 6, 7);
  rows[2] = QCOMPILER_SHUFFLE(b, d, 0, 1, 4, 5);
  rows[3] = QCOMPILER_SHUFFLE(b, d, 2, 3, 6, 7);
}

// Numbers of S, as floats, and which columns they multiply.
struct Window {
  // Converts numbers [begin, end), at most kWindow.
  void Fill(const StoredMatrix& s, int64_t begin, int64_t end) {
    first = begin;
    if (begin == end) return;  // a matrix without numbers may have no memory to copy from
    const size_t count = static_cast<size_t>(end - begin);
    if (count == 0) return;  // an empty S may be nowhere, which memcpy must not be told
    const char *from = static_cast<const char*>(s.values),
               *from_columns = static_cast<const char*>(s.columns);
    switch (s.type) {
      case Float::k32:
        std::memcpy(values, from + begin * 4, count * 4);
        break;
      case Float::k16:
        Widen(from + begin * 2, count, values, Float16ToFloat);
        break;
      case Float::kBrain16:
        Widen(from + begin * 2, count, values, BrainFloat16ToFloat);
        break;
    }
    if (s.wide_columns) {
      std::memcpy(columns, from_columns + begin * 4, count * 4);
    } else {
      Widen(from_columns + begin * 2, count, columns, [](uint16_t column) { return uint32_t{column}; });
    }
  }

  template <class To, class Convert>
  static void Widen(const char* from, size_t count, To* to, Convert convert) {
    for (size_t i = 0; i < count; ++i) {
      uint16_t half;
      std::memcpy(&half, from + i * 2, sizeof(half));
      to[i] = convert(half);
    }
  }

  int64_t first;
  alignas(64) float values[kWindow + kPartialSums];
  alignas(64) uint32_t columns[kWindow];
};

// Of one row of S with rows of a panel: V holds numbers of several rows.
template <class V, int kVectors>
struct Sums {
  V parts[kPartialSums][kVectors] = {};

  QCOMPILER_INLINE void Add(const Window& window, int64_t begin, int64_t end, const float* panel,
                            int64_t width) {
    const float* values = window.values + (begin - window.first);
    const uint32_t* columns = window.columns + (begin - window.first);
    int64_t left = end - begin;
    for (; left >= kPartialSums; left -= kPartialSums, values += kPartialSums, columns += kPartialSums) {
      for (int part = 0; part < kPartialSums; ++part)
        AddTo(part, values[part], panel + columns[part] * width);
    }
    for (int part = 0; part < kPartialSums - 1 && part < left; ++part) {
      AddTo(part, values[part], panel + columns[part] * width);
    }
  }

  QCOMPILER_INLINE void AddTo(int part, float value, const float* x) {
    for (int v = 0; v < kVectors; ++v) parts[part][v] += value * reinterpret_cast<const V*>(x)[v];
  }

  QCOMPILER_INLINE void Store(float* out) const {
    for (int v = 0; v < kVectors; ++v) {
      reinterpret_cast<V*>(out)[v] = (parts[0][v] + parts[1][v]) + (parts[2][v] + parts[3][v]);
    }
  }
};

// Rows [begin, end) of S in the order of how many numbers they have, so that the processor foresees where
// each ends. At most kTile.
struct ByLength {
  static constexpr int kLengths = 32;  // more are alike: there a mistake costs little beside the row

  ByLength(const int32_t* offsets, int64_t begin, int64_t end) {
    uint8_t places[kLengths + 1] = {}, lengths[kTile];
    const int count = static_cast<int>(end - begin);
    for (int row = 0; row < count; ++row) {
      const int32_t length = offsets[begin + row + 1] - offsets[begin + row];
      lengths[row] = static_cast<uint8_t>(std::min(length, kLengths - 1));
      ++places[lengths[row] + 1];
    }
    for (int length = 0; length < kLengths; ++length) places[length + 1] += places[length];
    for (int row = 0; row < count; ++row) rows[places[lengths[row]]++] = static_cast<uint8_t>(row);
  }

  uint8_t rows[kTile];
};

// Sums of rows [begin, end) of S with a panel: out [end - begin][kWidth].
template <class V, int kVectors, int kWidth>
void MultiplyTile(const float* panel, const StoredMatrix& s, int64_t begin, int64_t end, float* out) {
  constexpr int kAtOnce = static_cast<int>(sizeof(V) / sizeof(float)) * kVectors;
  static_assert(kWidth % kAtOnce == 0, "a panel is whole vectors");
  Window window;
  const int64_t first = s.offsets[begin], stop = s.offsets[end];
  if (stop - first <= kWindow) {
    window.Fill(s, first, stop);
    const ByLength order(s.offsets, begin, end);
    for (int64_t i = 0; i < end - begin; ++i) {
      const int64_t row = order.rows[i];
      for (int lane = 0; lane < kWidth; lane += kAtOnce) {
        Sums<V, kVectors> sums;
        sums.Add(window, s.offsets[begin + row], s.offsets[begin + row + 1], panel + lane, kWidth);
        sums.Store(out + row * kWidth + lane);
      }
    }
    return;
  }
  for (int64_t n = begin; n < end; ++n, out += kWidth) {
    for (int lane = 0; lane < kWidth; lane += kAtOnce) {
      Sums<V, kVectors> sums;
      for (int64_t e = s.offsets[n], next; e < s.offsets[n + 1]; e = next) {
        next = std::min<int64_t>(e + kWindow, s.offsets[n + 1]);
        window.Fill(s, e, next);
        sums.Add(window, e, next, panel + lane, kWidth);
      }
      sums.Store(out + lane);
    }
  }
}

// `sums` and the products of more numbers of a row of S.
QCOMPILER_INLINE Four AddProducts(Four sums, const float* products, int64_t count) {
  static const int32_t kMask[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
  for (; count >= 4; count -= 4, products += 4) sums += *reinterpret_cast<const Four*>(products);
  const FourInts rest =
      *reinterpret_cast<const FourInts*>(products) & *reinterpret_cast<const FourInts*>(kMask + 4 - count);
  return sums + reinterpret_cast<Four>(rest);
}

// y of one row of x. The numbers of S multiply it in one go, whatever row they are of, so that nothing waits
// for where a row ends; then each row is the sum of its part.
template <class Element>
void MultiplyOne(const float* x, const StoredMatrix& s, Element* y, int64_t begin, int64_t end) {
  Window window;
  const auto multiply = [&](int64_t first, int64_t stop) {
    window.Fill(s, first, stop);
    for (int64_t i = 0; i < stop - first; ++i) window.values[i] *= x[window.columns[i]];
  };
  const auto write = [&](int64_t n, Four sums) { Write((sums[0] + sums[1]) + (sums[2] + sums[3]), y + n); };
  for (int64_t n = begin; n < end;) {
    const int64_t first = s.offsets[n];
    int64_t next = n;  // as many rows as the window holds
    while (next < end && s.offsets[next + 1] - first <= kWindow) ++next;
    if (next > n) {
      multiply(first, s.offsets[next]);
      for (; n < next; ++n)
        write(n,
              AddProducts(Four{}, window.values + (s.offsets[n] - first), s.offsets[n + 1] - s.offsets[n]));
      continue;
    }
    Four sums = {};
    for (int64_t e = first, until; e < s.offsets[n + 1]; e = until) {
      until = std::min<int64_t>(e + kWindow, s.offsets[n + 1]);
      multiply(e, until);
      sums = AddProducts(sums, window.values, until - e);
    }
    write(n++, sums);
  }
}

// y[m][n] = tile[n][m]
template <int kWidth, class Element>
void StoreTile(const float* tile, int64_t m, int64_t n, Element* y, int64_t stride) {
  int64_t first = 0;
  for (; first + 4 <= n; first += 4) {
    for (int64_t row = 0; row < m; row += 4) {
      Four four[4];
      for (int i = 0; i < 4; ++i) four[i] = *reinterpret_cast<const Four*>(tile + (first + i) * kWidth + row);
      Transpose(four);
      for (int i = 0; i < 4 && row + i < m; ++i) {
        for (int j = 0; j < 4; ++j) Write(four[i][j], y + (row + i) * stride + first + j);
      }
    }
  }
  for (; first < n; ++first) {
    for (int64_t row = 0; row < m; ++row) Write(tile[first * kWidth + row], y + row * stride + first);
  }
}

template <class V, int kVectors, int kWidth, class Element>
void MultiplyPanels(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end) {
  alignas(64) float tile[kTile * kWidth];
  for (int64_t m = 0; m < x.m; m += kWidth) {
    for (int64_t n = begin; n < end; n += kTile) {
      const int64_t stop = std::min(n + kTile, end);
      MultiplyTile<V, kVectors, kWidth>(x.data + m * x.k, s, n, stop, tile);
      StoreTile<kWidth>(tile, std::min<int64_t>(kWidth, x.m - m), stop - n,
                        static_cast<Element*>(y.data) + m * y.stride + n, y.stride);
    }
  }
}

template <class Element>
void MultiplyAll(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end) {
  // Four partial sums of as many numbers as half of 16 registers hold.
  constexpr int kVectors = kLanes == 4 ? 2 : kWide / kLanes;
  switch (x.width) {
    case 1:
      return MultiplyOne<Element>(x.data, s, static_cast<Element*>(y.data), begin, end);
    case kNarrow:
      return MultiplyPanels<Four, 1, kNarrow, Element>(x, s, y, begin, end);
    default:
      return MultiplyPanels<Register, kVectors, kWide, Element>(x, s, y, begin, end);
  }
}

template <int kWidth, class Element>
void ArrangePanels(const Element* x, int64_t stride, const Panels& panels, float* out, int64_t begin,
                   int64_t end) {
  for (int64_t m = 0; m < panels.m; m += kWidth) {
    for (int64_t k = begin; k < end; k += kLine) {  // whole lines of x, of one row after another
      for (int64_t row = 0; row < kWidth; row += 4) {
        for (int64_t column = k; column < std::min(k + kLine, end); column += 4) {
          Four four[4] = {};
          const int64_t rows = std::min<int64_t>(4, panels.m - m - row);
          const int64_t columns = std::min<int64_t>(4, end - column);
          for (int64_t i = 0; i < rows; ++i) {
            const Element* from = x + (m + row + i) * stride + column;
            if (columns == 4) {
              four[i] = Four{Read(from), Read(from + 1), Read(from + 2), Read(from + 3)};
            } else {
              for (int64_t j = 0; j < columns; ++j) four[i][j] = Read(from + j);
            }
          }
          Transpose(four);
          float* to = out + m * panels.k + column * kWidth + row;
          for (int64_t j = 0; j < columns; ++j) *reinterpret_cast<Four*>(to + j * kWidth) = four[j];
        }
      }
    }
  }
}

template <class Element>
void ArrangeRow(const Element* x, float* out, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) out[k] = Read(x + k);
}

template <class Element>
void ArrangeAll(const Element* x, int64_t stride, const Panels& panels, float* out, int64_t begin,
                int64_t end) {
  switch (panels.width) {
    case 1:
      return ArrangeRow(x, out, begin, end);
    case kNarrow:
      return ArrangePanels<kNarrow>(x, stride, panels, out, begin, end);
    default:
      return ArrangePanels<kWide>(x, stride, panels, out, begin, end);
  }
}

}  // namespace
}  // namespace sparse_matmul
}  // namespace qcompiler

#define QCOMPILER_DEFINE_KERNEL(suffix)                                                                      \
  namespace qcompiler {                                                                                      \
  namespace sparse_matmul {                                                                                  \
  void Arrange##suffix(const Rows& x, const Panels& panels, float* out, int64_t begin, int64_t end) {        \
    if (x.type == Float::k32) {                                                                              \
      ArrangeAll(static_cast<const float*>(x.data), x.stride, panels, out, begin, end);                      \
    } else {                                                                                                 \
      ArrangeAll(static_cast<const uint16_t*>(x.data), x.stride, panels, out, begin, end);                   \
    }                                                                                                        \
  }                                                                                                          \
  void Multiply##suffix(const Panels& x, const StoredMatrix& s, const Rows& y, int64_t begin, int64_t end) { \
    if (y.type == Float::k32) {                                                                              \
      MultiplyAll<float>(x, s, y, begin, end);                                                               \
    } else {                                                                                                 \
      MultiplyAll<uint16_t>(x, s, y, begin, end);                                                            \
    }                                                                                                        \
  }                                                                                                          \
  }                                                                                                          \
  }
