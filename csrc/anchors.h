// Anchors as columns of coordinates, for atss_match and vlr_weights.
#pragma once

#include "boxes.h"

#include <vector>

namespace detops {

struct Anchors {
  std::vector<float> x1, y1, x2, y2, cx, cy;

  explicit Anchors(const Tensor& anchors, int64_t count)
      : x1(count), y1(count), x2(count), y2(count), cx(count), cy(count) {
    if (anchors.scalar_type() == ScalarType::Float && anchors.is_contiguous()) {
      const float* data = static_cast<const float*>(anchors.const_data_ptr());
      fill([data](int64_t a, int64_t i) { return data[a * 4 + i]; });
    } else {
      const Reader reader(anchors);
      fill([&reader](int64_t a, int64_t i) { return static_cast<float>(reader.at(a, i)); });
    }
  }

  Box<float> box(int64_t a) const { return {x1[a], y1[a], x2[a], y2[a]}; }

 private:
  template <class Read>
  void fill(const Read& read) {
    for (size_t a = 0; a < x1.size(); ++a) {
      x1[a] = read(a, 0), y1[a] = read(a, 1), x2[a] = read(a, 2), y2[a] = read(a, 3);
      cx[a] = (x1[a] + x2[a]) / 2, cy[a] = (y1[a] + y2[a]) / 2;
    }
  }
};

}  // namespace detops
