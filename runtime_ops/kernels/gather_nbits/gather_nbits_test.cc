// GatherRow against the reference, bit by bit: all bits, blocks and remainders.
#include "kernels/gather_nbits/gather_nbits.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "base/float16.h"

namespace qcompiler {
namespace gather_nbits {
namespace {

int failures = 0;

struct Case {
  int64_t k, block;
  int bits;
  bool symmetric;
};

template <class Element>
void Check(const Case& c) {
  constexpr int64_t kRows = 20;  // more than a block of lines
  std::mt19937 random(static_cast<unsigned>(c.k + c.block + c.bits));
  Table table{kRows, c.k, c.bits, c.block, nullptr, nullptr, nullptr};
  const int64_t groups = table.groups();
  // One byte further than they are aligned to.
  const auto bytes = [&](int64_t count) {
    std::vector<uint8_t> made(static_cast<size_t>(count + 1));
    for (uint8_t& byte : made) byte = static_cast<uint8_t>(random());
    return made;
  };
  const std::vector<uint8_t> codes = bytes(kRows * groups * (c.block * c.bits / 8));
  const std::vector<uint8_t> points = bytes(kRows * ((groups * c.bits + 7) / 8));
  std::vector<uint8_t> scales = bytes(kRows * groups * static_cast<int64_t>(sizeof(Element)));
  for (int64_t i = 0; i < kRows * groups; ++i) {
    const float value = 0.01f * static_cast<float>(1 + random() % 100);
    const uint16_t half = FloatToFloat16(value);
    std::memcpy(&scales[1 + static_cast<size_t>(i) * sizeof(Element)],
                sizeof(Element) == 4 ? static_cast<const void*>(&value) : &half, sizeof(Element));
  }
  table.codes = codes.data() + 1;
  table.scales = scales.data() + 1;
  table.zero_points = c.symmetric ? nullptr : points.data() + 1;
  matmul_nbits::PackedWeights lines;
  if constexpr (std::is_same_v<Element, float>) {
    std::vector<float> aligned(static_cast<size_t>(kRows * groups));
    std::memcpy(aligned.data(), table.scales, aligned.size() * sizeof(float));
    const matmul_nbits::StoredWeights stored{
        kRows, c.k, c.bits, c.block, table.codes, aligned.data(), table.zero_points, nullptr};
    if (!matmul_nbits::Pack(stored, &lines)) std::abort();
  }
  for (int64_t row = 0; row < kRows; ++row) {
    std::vector<Element> y(static_cast<size_t>(c.k)), expected(y.size());  // the sanitizer watches their ends
    GatherRow(table, row, y.data());
    GatherRowReference(table, row, expected.data());
    bool alike = y == expected;
    if constexpr (std::is_same_v<Element, float>) {
      GatherRow(lines, row, y.data());
      alike = alike && y == expected;
    }
    if (alike) continue;
    std::printf("K %lld block %lld bits %d %s, %zu bytes a number: row %lld is another\n",
                static_cast<long long>(c.k), static_cast<long long>(c.block), c.bits,
                c.symmetric ? "symmetric" : "zero points", sizeof(Element), static_cast<long long>(row));
    ++failures;
    return;
  }
}

int Main() {
  for (const int bits : {2, 4, 8}) {
    for (const bool symmetric : {false, true}) {
      for (const int64_t block : {16, 32, 48, 128, 256, 1008}) {
        for (const int64_t k : {1, 15, 16, 33, 100, 257, 1003}) {
          Check<float>({k, block, bits, symmetric});
          Check<uint16_t>({k, block, bits, symmetric});
        }
      }
    }
  }
  if (failures == 0) std::printf("rows are as the reference has them\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace gather_nbits
}  // namespace qcompiler

int main() { return qcompiler::gather_nbits::Main(); }
