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
    for (const Tensor& level : levels) levels_.emplace_back(level);
  }

  // Point `a` counts through all levels.
  float at(int64_t b, int64_t a, int64_t label) const {
    const Level& level = locate(a);
    if (const float* row = level.row(b, a)) return row[label * level.step];
    return static_cast<float>(level.reader.at(b, a, label));
  }

  // All classes of a point.
  void read(int64_t b, int64_t a, float* logits) const {
    const Level& level = locate(a);
    const float* row = level.row(b, a);
    if (row != nullptr && level.step == 1) {
      std::copy(row, row + classes, logits);
      return;
    }
    for (int64_t c = 0; c < classes; ++c) logits[c] = static_cast<float>(level.reader.at(b, a, c));
  }

 private:
  struct Level {
    Reader reader;
    const float* data;  // null if they are not float32
    int64_t count, image, point, step;

    explicit Level(const Tensor& t)
        : reader(t),
          data(t.scalar_type() == ScalarType::Float ? static_cast<const float*>(t.const_data_ptr()) : nullptr),
          count(t.size(1)), image(t.stride(0)), point(t.stride(1)), step(t.stride(2)) {}

    const float* row(int64_t b, int64_t a) const { return data == nullptr ? nullptr : data + b * image + a * point; }
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
