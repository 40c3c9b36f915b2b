// Floats of 16 bits and float32, on any CPU: to float32 exactly, back to the nearest (half to even).
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

inline float BrainFloat16ToFloat(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint16_t FloatToFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (bits >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);  // 2^16 and more
  if (bits < 0x38800000) {  // subnormal: steps of 2^-24, which a float of this size added to 0.5 has too
    float size;
    std::memcpy(&size, &bits, sizeof(size));
    size += 0.5f;
    std::memcpy(&bits, &size, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);  // half to even; what passes 65504 becomes infinity
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

}  // namespace qcompiler

#endif  // QCOMPILER_RUNTIME_OPS_BASE_FLOAT16_H_
