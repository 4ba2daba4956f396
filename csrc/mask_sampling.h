// Where the pixels of an image fall on a small mask that lies in a box. paste_masks and masks_to_rle share it, so that
// both decide every pixel by the same arithmetic.
//
// A pixel's value is interpolated in float32, along x, then along y; its position is float64.
#pragma once

#include "common.h"
#include "unfused.h"

#include <algorithm>
#include <vector>

namespace detops {

inline float between(float first, float second, float fraction) {
  const float step = (second - first) * fraction;
  return first + step;
}

// One axis of a box. Pixel p in [begin, end) lies between cells index[p - begin] and the next of the mask with a border
// of zeros, by fraction[p - begin]; all other pixels are 0.
struct Axis {
  int64_t begin = 0, end = 0;
  double low = 0, side = 0, cells = 0;
  std::vector<int32_t> index;
  std::vector<float> fraction;

  double position(int64_t pixel) const {
    const double share = (static_cast<double>(pixel) + 0.5 - low) / side * cells;
    return share - 0.5;
  }

  // Returns false if the box has no extent, or a coordinate that is not finite.
  bool place(double from, double to, int64_t mask_size, int64_t length) {
    low = from, side = to - from, cells = static_cast<double>(mask_size);
    if (!(side > 0) || !std::isfinite(side) || !std::isfinite(low)) return false;
    // A first guess by the inverse, then by position() itself, which does not decrease: rounding cannot lose a pixel.
    const double reach = side / cells / 2, limit = static_cast<double>(length);
    begin = static_cast<int64_t>(std::clamp(std::floor(low - reach), 0.0, limit));
    end = static_cast<int64_t>(std::clamp(std::ceil(low + side + reach), 0.0, limit));
    while (begin > 0 && position(begin - 1) >= -1) --begin;
    while (begin < end && position(begin) < -1) ++begin;
    while (end < length && position(end) < cells) ++end;
    while (end > begin && position(end - 1) >= cells) --end;
    return begin < end;
  }

  void sample() {
    const int64_t count = end - begin;
    index.resize(count);
    fraction.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      const double where = position(begin + i), cell = std::floor(where);
      index[i] = static_cast<int32_t>(cell) + 1;  // + 1: the border
      fraction[i] = static_cast<float>(where - cell);
    }
  }
};

// The masks (N, h, w) and their boxes (N, 4), and one of them at a time with a border of zeros.
class Masks {
 public:
  Masks(const Tensor& masks, const Tensor& boxes)
      : masks_(masks), boxes_(boxes), count(masks.size(0)), rows(masks.size(1)), columns(masks.size(2)) {}

  // Finds the pixels that mask n reaches; returns false if there are none.
  bool place(int64_t n, int64_t height, int64_t width, Axis& x, Axis& y) const {
    if (!x.place(boxes_.at(n, 0), boxes_.at(n, 2), columns, width)) return false;
    if (!y.place(boxes_.at(n, 1), boxes_.at(n, 3), rows, height)) return false;
    x.sample();
    y.sample();
    return true;
  }

  float at(int64_t n, int64_t row, int64_t column) const { return static_cast<float>(masks_.at(n, row, column)); }

 private:
  Reader masks_, boxes_;

 public:
  const int64_t count, rows, columns;
};

inline void check_masks(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width, double threshold) {
  STD_TORCH_CHECK(has_numbers(masks, {-1, -1, -1}) && masks.size(1) > 0 && masks.size(2) > 0,
                  "masks: expected numbers of shape (N, h, w)");
  STD_TORCH_CHECK(has_numbers(boxes, {masks.size(0), 4}), "boxes: expected numbers of shape (N, 4)");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX / width,
                  "height, width: expected at least 1, and less than 2^31 pixels");
  STD_TORCH_CHECK(static_cast<float>(threshold) > 0, "threshold: expected a number above 0");
}

}  // namespace detops
