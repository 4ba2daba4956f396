// The highest of many float32, as keys: unique integers in the order of the result, so that it does not depend on the
// number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace detops {

// Higher for a higher number, and for a lower index of equal ones. Indices are below 2^32.
inline uint64_t key_of(float x, int64_t index) {
  x += 0.0f;  // -0 becomes 0
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

inline float number_of(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

inline int64_t index_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Keeps the `count` highest.
inline void prune(std::vector<uint64_t>& keys, size_t count) {
  if (keys.size() <= count) return;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<uint64_t>());
  keys.resize(count);
}

// The lowest number among keys.
inline float lowest(const std::vector<uint64_t>& keys) {
  return number_of(*std::min_element(keys.begin(), keys.end()));
}

// Whether any of a run of numbers is at least this high: inlined into loops that are compiled for each instruction set.
template <class T>
inline bool any_from(const T* x, int64_t count, float least) {
  int found = 0;
  for (int64_t i = 0; i < count; ++i) found |= static_cast<float>(x[i]) >= least;
  return found != 0;
}

}  // namespace detops
