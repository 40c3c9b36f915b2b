// A block at a time, in loops that the compiler turns into vectors.
#include "kernels/gather_nbits/gather_nbits.h"

#include <algorithm>
#include <cstring>

#include "base/float16.h"

namespace qcompiler {
namespace gather_nbits {
namespace {

// The first `count` codes of `bytes`.
template <int kBits>
void Unpack(const uint8_t* bytes, int64_t count, int point, float scale, float* y) {
  constexpr int kOfByte = 8 / kBits, kMask = (1 << kBits) - 1;
  const int64_t whole = count / kOfByte;
  for (int64_t i = 0; i < whole; ++i) {
    for (int j = 0; j < kOfByte; ++j) {
      y[i * kOfByte + j] = static_cast<float>((bytes[i] >> (j * kBits) & kMask) - point) * scale;
    }
  }
  for (int64_t k = whole * kOfByte; k < count; ++k) {
    y[k] = static_cast<float>((bytes[whole] >> (k % kOfByte * kBits) & kMask) - point) * scale;
  }
}

template <class Element>
Element Scale(const Table& table, int64_t cell) {
  Element scale;
  std::memcpy(&scale, static_cast<const char*>(table.scales) + cell * static_cast<int64_t>(sizeof(scale)),
              sizeof(scale));
  return scale;
}

template <int kBits>
int ZeroPoint(const Table& table, int64_t row, int64_t g) {
  if (table.zero_points == nullptr) return 1 << (kBits - 1);
  const uint8_t* points = table.zero_points + row * ((table.groups() * kBits + 7) / 8);
  return points[g * kBits / 8] >> (g * kBits % 8) & ((1 << kBits) - 1);
}

template <int kBits>
void Gather(const Table& table, int64_t row, float* y) {
  const int64_t groups = table.groups(), bytes = table.block * kBits / 8;
  for (int64_t g = 0; g < groups; ++g) {
    Unpack<kBits>(table.codes + (row * groups + g) * bytes, std::min(table.block, table.k - g * table.block),
                  ZeroPoint<kBits>(table, row, g), Scale<float>(table, row * groups + g),
                  y + g * table.block);
  }
}

template <int kBits>
void Gather(const Table& table, int64_t row, uint16_t* y) {
  constexpr int64_t kAtOnce = 256;  // numbers: a multiple of those in a byte
  const int64_t groups = table.groups(), bytes = table.block * kBits / 8;
  float wide[kAtOnce];
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* codes = table.codes + (row * groups + g) * bytes;
    const int point = ZeroPoint<kBits>(table, row, g);
    const float scale = Float16ToFloat(Scale<uint16_t>(table, row * groups + g));
    const int64_t first = g * table.block, last = std::min(first + table.block, table.k);
    for (int64_t k = first; k < last; k += kAtOnce) {
      const int64_t count = std::min(kAtOnce, last - k);
      Unpack<kBits>(codes + (k - first) * kBits / 8, count, point, scale, wide);
      std::transform(wide, wide + count, y + k, FloatToFloat16);
    }
  }
}

template <class Element>
void GatherAny(const Table& table, int64_t row, Element* y) {
  switch (table.bits) {
    case 2:
      return Gather<2>(table, row, y);
    case 4:
      return Gather<4>(table, row, y);
    default:
      return Gather<8>(table, row, y);
  }
}

// The first `count` codes of a row of a group, of which `line` points at its 4 bytes in the first line.
template <int kBits>
void UnpackLines(const uint8_t* line, int64_t count, int point, float scale, float* y) {
  constexpr int kOfByte = 8 / kBits, kMask = (1 << kBits) - 1, kOfLine = 4 * kOfByte;
  for (int64_t first = 0; first < count; first += kOfLine, line += matmul_nbits::kLine) {
    float wide[kOfLine];
    for (int i = 0; i < kOfLine; ++i) {
      wide[i] = static_cast<float>((line[i % 4] >> (i / 4 * kBits) & kMask) - point) * scale;
    }
    std::copy_n(wide, std::min<int64_t>(kOfLine, count - first), y + first);
  }
}

template <int kBits>
void GatherLines(const matmul_nbits::PackedWeights& table, int64_t row, float* y) {
  const int64_t block = row / matmul_nbits::kRows, lane = row % matmul_nbits::kRows;
  for (int64_t g = 0; g < table.groups; ++g) {
    const int64_t cell = block * table.groups + g, first = g * table.group;
    const int64_t number = cell * matmul_nbits::kRows + lane;
    const int point = table.symmetric() ? table.middle() : table.zero_points[number];
    UnpackLines<kBits>(table.codes + cell * table.group_bytes() + lane * 4,
                       std::min(table.group, table.k - first), point, table.scales[number], y + first);
  }
}

}  // namespace

void GatherRow(const matmul_nbits::PackedWeights& table, int64_t row, float* y) {
  switch (table.bits) {
    case 2:
      return GatherLines<2>(table, row, y);
    case 4:
      return GatherLines<4>(table, row, y);
    default:
      return GatherLines<8>(table, row, y);
  }
}

void GatherRow(const Table& table, int64_t row, float* y) { GatherAny(table, row, y); }
void GatherRow(const Table& table, int64_t row, uint16_t* y) { GatherAny(table, row, y); }

}  // namespace gather_nbits
}  // namespace qcompiler
