// From the layout of com.microsoft::MatMulNBits to lines of 16 rows (see matmul_nbits.h).
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/matmul_nbits/matmul_nbits.h"

namespace qcompiler {
namespace matmul_nbits {

namespace {

// The kernels' group for a stored one: itself, or what divides it and is short enough. A single group for all
// of K may end in a short part.
int64_t KernelGroup(int64_t group, int64_t k) {
  const int64_t whole = (k + 15) / 16 * 16;
  if (group >= whole) return std::min<int64_t>(whole, kMaxGroup);
  for (int64_t size = std::min<int64_t>(group, kMaxGroup); size > 16; size -= 16) {
    if (group % size == 0) return size;
  }
  return 16;
}

// Of 2, 4 or 8 bits.
uint32_t ReadBits(const uint8_t* stream, int64_t index, int bits) {
  const int64_t bit = index * bits;
  return static_cast<uint32_t>(stream[bit / 8]) >> (bit % 8) & ((1u << bits) - 1);
}

uint32_t ZeroPoint(const StoredWeights& stored, int64_t n, int64_t group) {
  if (stored.zero_points == nullptr) return 1u << (stored.bits - 1);
  const int64_t groups = (stored.k + stored.group - 1) / stored.group, bits = stored.point_bits();
  const uint8_t* row = stored.zero_points + n * ((groups * bits + 7) / 8);
  const uint32_t point = ReadBits(row, group, static_cast<int>(bits));
  return stored.bits == 3 ? point / 2 : point;
}

// Stored groups of 3 bits to a byte for each code.
void SpreadThreeBits(const uint8_t* row, int64_t groups, int64_t group, uint8_t* codes) {
  const int64_t quarter = group / 8;
  for (; groups > 0; --groups, row += 3 * quarter, codes += group) {
    for (int64_t i = 0; i < 3 * quarter; ++i) {
      codes[2 * i] = row[i] >> 1 & 7;
      codes[2 * i + 1] = row[i] >> 5;
    }
    for (int64_t i = 0; i < quarter; ++i) {
      const int pair = (row[i] & 0x11) | (row[quarter + i] & 0x11) << 1 | (row[2 * quarter + i] & 0x11) << 2;
      codes[6 * quarter + 2 * i] = static_cast<uint8_t>(pair & 7);
      codes[6 * quarter + 2 * i + 1] = static_cast<uint8_t>(pair >> 4);
    }
  }
}

// Codes of 3 bits of one row, a byte each, into the lines of a group, which they fill.
void PackThreeBits(const uint8_t* codes, int64_t group, uint8_t* out) {
  // Of each 32 k: two lines of low bits, or one for the last 16 of a group, then the line of high bits.
  for (int64_t k = 0; k < group; k += 32) {
    const int64_t low_lines = group - k > 16 ? 2 : 1;
    uint32_t low[2] = {0, 0}, high = 0;
    for (int quad = 0; quad < 4 * low_lines; ++quad) {
      uint32_t four;
      std::memcpy(&four, codes + k + 4 * quad, sizeof(four));
      low[quad / 4] |= (four & 0x03030303) << (quad % 4 * 2);
      high |= (four >> 2 & 0x01010101) << quad;
    }
    for (int64_t line = 0; line < low_lines; ++line, out += kLine) std::memcpy(out, &low[line], sizeof(high));
    std::memcpy(out, &high, sizeof(high));
    out += kLine;
  }
}

// Four bytes of each of a block's rows: a line.
using Words = uint32_t __attribute__((vector_size(kLine)));

// Eight codes of 4 bits, as stored, to bytes of k j (low) and 4 + j (high); of one row, or of 16.
template <class Word>
void InterleaveNibbles(Word* codes) {
  Word low = *codes & 0xffff, high = *codes >> 16;
  low = (low | low << 8) & 0x00ff00ff;
  low = (low | low << 4) & 0x0f0f0f0f;
  high = (high | high << 8) & 0x00ff00ff;
  high = (high | high << 4) & 0x0f0f0f0f;
  *codes = low | high << 4;
}

// Codes [begin, end) of one row into the lines of a group, of which `out` points at the row's 4 bytes in the
// first. Of 3 bits see PackThreeBits.
void PackRow(const uint8_t* row, int64_t begin, int64_t end, int bits, uint8_t* out) {
  int64_t k = begin;
  if (bits == 4) {
    for (; k + 8 <= end; k += 8) {
      uint32_t stored;
      std::memcpy(&stored, row + k / 2, sizeof(stored));
      InterleaveNibbles(&stored);
      std::memcpy(out + (k - begin) / 8 * kLine, &stored, sizeof(stored));
    }
  } else if (bits == 8) {
    for (; k + 4 <= end; k += 4) std::memcpy(out + (k - begin) / 4 * kLine, row + k, 4);
  }
  for (; k < end; ++k) {
    const int64_t at = k - begin, quad = at / 4, j = at % 4;
    const uint32_t code = ReadBits(row, k, bits);
    const int64_t per_byte = 8 / bits;
    out[quad / per_byte * kLine + j] |= static_cast<uint8_t>(code << (quad % per_byte * bits));
  }
}

// Whether a matrix's groups are lines without rest.
bool IsWhole(const StoredWeights& stored) {
  return (stored.bits == 4 || stored.bits == 8) && stored.k % stored.group == 0;
}

// Codes [begin, end) of all rows of a block, which are `row_bytes` apart, a line at a time; `end` - `begin`
// is a multiple of 8, and there are 4 or 8 bits.
void PackBlock(const uint8_t* rows, int64_t row_bytes, int64_t begin, int64_t end, int bits, uint8_t* out) {
  const int64_t codes = 32 / bits;
  for (int64_t k = begin; k < end; k += codes) {
    uint32_t stored[kRows];
    for (int row = 0; row < kRows; ++row) {
      std::memcpy(&stored[row], rows + row * row_bytes + k * bits / 8, sizeof(stored[row]));
    }
    Words line;
    std::memcpy(&line, stored, sizeof(line));
    if (bits == 4) InterleaveNibbles(&line);
    std::memcpy(out + (k - begin) / codes * kLine, &line, sizeof(line));
  }
}

void PackRows(const StoredWeights& stored, PackedWeights* packed) {
  const int64_t stored_groups = (stored.k + stored.group - 1) / stored.group;
  const int64_t row_bytes = stored_groups * (stored.group * stored.bits / 8);
  // A row in bytes; what lies behind it is 0.
  std::vector<uint8_t> spread(
      stored.bits != 3
          ? 0
          : static_cast<size_t>(std::max(stored_groups * stored.group, packed->groups * packed->group)));
  float* scales = reinterpret_cast<float*>(packed->own.scales.data());
  for (int64_t n = 0; n < stored.n; ++n) {
    const int64_t block = n / kRows, lane = n % kRows;
    const uint8_t* row = stored.codes + n * row_bytes;
    if (stored.bits == 3) {
      SpreadThreeBits(row, stored_groups, stored.group, spread.data());
      std::fill(spread.begin() + stored.k, spread.end(), uint8_t{0});
    }
    const bool whole = IsWhole(stored) && n - lane + kRows <= stored.n;  // the block's rows are all there
    for (int64_t group = 0; group < packed->groups; ++group) {
      const int64_t begin = group * packed->group, end = std::min(begin + packed->group, stored.k);
      const int64_t cell = block * packed->groups + group, source = begin / stored.group;
      uint8_t* lines = packed->own.codes.data() + cell * packed->group_bytes();
      if (stored.bits == 3) {
        PackThreeBits(spread.data() + begin, packed->group, lines + lane * 4);
      } else if (!whole) {
        PackRow(row, begin, end, stored.bits, lines + lane * 4);
      } else if (lane == 0) {
        PackBlock(row, row_bytes, begin, end, stored.bits, lines);
      }
      scales[cell * kRows + lane] = stored.scales[n * stored_groups + source];
      if (packed->symmetric()) continue;
      packed->own.zero_points.data()[cell * kRows + lane] =
          static_cast<uint8_t>(ZeroPoint(stored, n, source));
    }
  }
}

}  // namespace

void SetSizes(const StoredWeights& stored, PackedWeights* packed) {
  packed->rows = stored.n;
  packed->k = stored.k;
  packed->bits = stored.bits;
  packed->group = KernelGroup(stored.group, stored.k);
  packed->groups = (stored.k + packed->group - 1) / packed->group;
  packed->blocks = (stored.n + kRows - 1) / kRows;
  packed->has_table = stored.table != nullptr;
  if (packed->has_table) std::memcpy(packed->table, stored.table, sizeof(packed->table));
}

bool HasOneScale(const PackedWeights& packed) {
  if (!packed.symmetric()) return false;
  for (int64_t cell = 0; cell < packed.cells(); ++cell) {
    const int64_t first = cell / packed.groups * packed.groups;
    if (std::memcmp(packed.scales + cell * kRows, packed.scales + first * kRows, kRows * sizeof(float)) != 0)
      return false;
  }
  return true;
}

bool AddMiddle(PackedWeights* packed) {
  if (!packed->own.zero_points.Allocate(static_cast<size_t>(packed->cells() * kRows))) return false;
  std::memset(packed->own.zero_points.data(), packed->middle(), packed->own.zero_points.size());
  packed->zero_points = packed->own.zero_points.data();
  packed->one_scale = false;
  return true;
}

bool Pack(const StoredWeights& stored, PackedWeights* packed) {
  SetSizes(stored, packed);
  const size_t cells = static_cast<size_t>(packed->cells());
  auto& own = packed->own;
  if (!own.codes.Allocate(cells * static_cast<size_t>(packed->group_bytes()))) return false;
  if (!own.scales.Allocate(cells * kRows * sizeof(float))) return false;
  packed->codes = own.codes.data();
  packed->scales = reinterpret_cast<const float*>(own.scales.data());
  if (stored.zero_points != nullptr) {
    if (!own.zero_points.Allocate(cells * kRows)) return false;
    packed->zero_points = own.zero_points.data();
    std::memset(own.zero_points.data(), 0, own.zero_points.size());
  }
  // What fills up: bits that PackRow adds to, and rows and codes that are not there.
  if (!IsWhole(stored) || stored.n % kRows != 0) std::memset(own.codes.data(), 0, own.codes.size());
  std::memset(own.scales.data(), 0, own.scales.size());
  PackRows(stored, packed);
  packed->one_scale = HasOneScale(*packed);
  return true;
}

int TileHeight(int64_t m, const Kernel& kernel) {
  const int64_t tiles = (m + kernel.max_tile - 1) / kernel.max_tile;
  return static_cast<int>((m + tiles - 1) / tiles);
}

ActivationSizes SizesFor(int64_t m, const PackedWeights& weights, Rounding rounding) {
  const auto lines = [](int64_t bytes) { return static_cast<size_t>((bytes + kLine - 1) / kLine * kLine); };
  if (rounding == Rounding::kNone)
    return {lines(m * weights.groups * weights.group * static_cast<int64_t>(sizeof(float))), 0, 0};
  return {lines(m * weights.groups * weights.group),
          lines(m * weights.groups * static_cast<int64_t>(sizeof(float))),
          lines(m * weights.groups * static_cast<int64_t>(sizeof(int32_t)))};
}

}  // namespace matmul_nbits
}  // namespace qcompiler
