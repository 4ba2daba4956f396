// Class logits of all points of a batch, one tensor (B, A_l, C) per level, read in place.
#pragma once

#include "common.h"

#include <algorithm>
#include <vector>

namespace detops {

class ClassLogits {
 public:
  const int64_t classes;

  explicit ClassLogits(const std::vector<Tensor>& levels) : classes(levels[0].size(2)) {
    for (const Tensor& level : levels) levels_.push_back({level, Reader(level), level.size(1)});
  }

  // Point `a` counts through all levels.
  float at(int64_t b, int64_t a, int64_t label) const {
    const Level& level = locate(a);
    return static_cast<float>(level.reader.at(b, a, label));
  }

  // All classes of a point.
  void read(int64_t b, int64_t a, float* logits) const {
    const Level& level = locate(a);
    const Tensor& t = level.tensor;
    if (t.scalar_type() == ScalarType::Float && t.stride(2) == 1) {
      const float* from = static_cast<const float*>(t.const_data_ptr()) + b * t.stride(0) + a * t.stride(1);
      std::copy(from, from + classes, logits);
      return;
    }
    for (int64_t c = 0; c < classes; ++c) logits[c] = static_cast<float>(level.reader.at(b, a, c));
  }

 private:
  struct Level {
    Tensor tensor;
    Reader reader;
    int64_t count;
  };

  // Returns the level of a point, and turns its number into that within the level.
  const Level& locate(int64_t& a) const {
    size_t l = 0;
    while (a >= levels_[l].count) a -= levels_[l++].count;
    return levels_[l];
  }

  std::vector<Level> levels_;
};

}  // namespace detops
