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

// The k highest keys so far, highest first.
class TopKeys {
 public:
  explicit TopKeys(int64_t k) : k_(static_cast<size_t>(k)) {}

  bool full() const { return keys_.size() == k_; }
  uint64_t lowest() const { return keys_.back(); }  // if there is one

  void offer(uint64_t key) {
    if (full()) {
      if (key <= keys_.back()) return;
      keys_.pop_back();
    }
    keys_.insert(std::upper_bound(keys_.begin(), keys_.end(), key, std::greater<uint64_t>()), key);
  }

  // Writes the indices; returns how many there are.
  int64_t write(int32_t* indices) const {
    for (const uint64_t key : keys_) *indices++ = static_cast<int32_t>(index_of(key));
    return static_cast<int64_t>(keys_.size());
  }

 private:
  size_t k_;
  std::vector<uint64_t> keys_;
};

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
