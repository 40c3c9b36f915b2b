// IEEE half precision to float32, exactly, on any CPU.
#ifndef QCOMPILER_RUNTIME_OPS_BASE_FLOAT16_H_
#define QCOMPILER_RUNTIME_OPS_BASE_FLOAT16_H_

#include <cstdint>
#include <cstring>

namespace qcompiler {

inline float Float16ToFloat(uint16_t half) {
  // The exponent moves from bias 15 to 127 by a product, which also makes subnormals normal.
  uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  value *= 0x1p112f;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinity and NaN
  bits |= static_cast<uint32_t>(half & 0x8000) << 16;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_BASE_FLOAT16_H_
