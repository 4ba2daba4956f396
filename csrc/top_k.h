// The best few of many candidates, found in one pass over them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace detops {

// The keys and indices of the k best candidates so far, best first; among equal keys the one offered first is better.
// No key is NaN.
template <class Better = std::less<float>>
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k), keys_(k), indices_(k) {}

  int64_t size() const { return size_; }
  bool full() const { return size_ == k_; }
  const float* keys() const { return keys_.data(); }
  const int32_t* indices() const { return indices_.data(); }
  float worst() const { return worst_; }  // the last key, if there is one

  // Whether offer() would accept this key; a loop over many candidates checks this first.
  bool takes(float key) const { return !full() || Better()(key, worst_); }

  void offer(float key, int64_t index) {
    if (!takes(key)) return;
    if (!full()) ++size_;
    int64_t i = size_ - 1;
    for (; i > 0 && Better()(key, keys_[i - 1]); --i) keys_[i] = keys_[i - 1], indices_[i] = indices_[i - 1];
    keys_[i] = key, indices_[i] = static_cast<int32_t>(index);
    worst_ = keys_[size_ - 1];
  }

  void clear() { size_ = 0; }

 private:
  int64_t k_, size_ = 0;
  std::vector<float> keys_;
  std::vector<int32_t> indices_;
  float worst_ = 0;
};

}  // namespace detops
