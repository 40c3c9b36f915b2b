// The contract of gather_nbits.h, code by code.
#include <cstring>

#include "base/float16.h"
#include "kernels/gather_nbits/gather_nbits.h"

namespace qcompiler {
namespace gather_nbits {
namespace {

// Number `index` of those that `bits` bits each hold.
int At(const uint8_t* bytes, int64_t index, int bits) {
  const int64_t bit = index * bits;
  return bytes[bit / 8] >> (bit % 8) & ((1 << bits) - 1);
}

void Write(float value, float* to) { *to = value; }
void Write(float value, uint16_t* to) { *to = FloatToFloat16(value); }

float Widen(float scale) { return scale; }
float Widen(uint16_t scale) { return Float16ToFloat(scale); }

template <class Element>
void Gather(const Table& table, int64_t row, Element* y) {
  const int64_t groups = table.groups();
  for (int64_t k = 0; k < table.k; ++k) {
    const int64_t g = k / table.block;
    Element scale;
    std::memcpy(&scale, static_cast<const char*>(table.scales) + (row * groups + g) * sizeof(Element),
                sizeof(scale));
    int point = 1 << (table.bits - 1);
    if (table.zero_points != nullptr)
      point = At(table.zero_points + row * ((groups * table.bits + 7) / 8), g, table.bits);
    const int code = At(table.codes + row * groups * (table.block * table.bits / 8), k, table.bits);
    Write(static_cast<float>(code - point) * Widen(scale), y + k);
  }
}

}  // namespace

void GatherRowReference(const Table& table, int64_t row, float* y) { Gather(table, row, y); }
void GatherRowReference(const Table& table, int64_t row, uint16_t* y) { Gather(table, row, y); }

}  // namespace gather_nbits
}  // namespace qcompiler
