// The metric of task-aligned assignment: p^alpha * u^beta of a box and a point.
#pragma once

#include "boxes.h"

#include <algorithm>
#include <limits>

namespace detops {

constexpr float kCiouEps = 1e-7f;

// A box, with what its overlaps need: its area, and for the complete IoU the angle of its diagonal.
struct AlignedBox {
  Box<float> box;
  float area, angle;

  AlignedBox() = default;
  AlignedBox(const Box<float>& box, bool ciou)
      : box(box), area(detops::area(box)),
        angle(ciou ? std::atan((box.x2 - box.x1) / (box.y2 - box.y1 + kCiouEps)) : 0.0f) {}
};

// Boxes as columns.
struct AlignedColumns {
  float *x1, *y1, *x2, *y2, *area, *angle;
  static constexpr int64_t kCount = 6;

  // In memory for kCount columns of `count` numbers.
  AlignedColumns(float* memory, int64_t count) {
    for (float** column : {&x1, &y1, &x2, &y2, &area, &angle}) *column = memory, memory += count;
  }

  void set(int64_t i, const AlignedBox& of) const {
    x1[i] = of.box.x1, y1[i] = of.box.y1, x2[i] = of.box.x2, y2[i] = of.box.y2, area[i] = of.area, angle[i] = of.angle;
  }
  DETOPS_INLINE Box<float> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  AlignedBox at(int64_t i) const {
    AlignedBox found;
    found.box = box(i), found.area = area[i], found.angle = angle[i];
    return found;
  }
};

// The IoUs of a box with columns first .. first + count - 1, 0 where there is none. No complete IoU is higher.
DETOPS_CLONES static void iou_row(const AlignedBox& of, const AlignedColumns& c, int64_t first, int64_t count,
                                  float* iou) {
  const Box<float> box = of.box;
  for (int64_t i = 0; i < count; ++i) {
    iou[i] = iou_or_zero(intersection(box, c.box(first + i)), of.area, c.area[first + i]);
  }
}

struct Metric {
  float alpha, beta;
  bool ciou;

  // The overlap of two boxes. What is compared comes from here alone, so that all of it is rounded alike.
  float overlap(const AlignedBox& a, const AlignedBox& b) const {
    const float u = iou_or_zero(intersection(a.box, b.box), a.area, b.area);
    if (!ciou || u == 0) return u;
    const float dx = (a.box.x1 + a.box.x2 - b.box.x1 - b.box.x2) / 2;
    const float dy = (a.box.y1 + a.box.y2 - b.box.y1 - b.box.y2) / 2;
    const float w = std::max(a.box.x2, b.box.x2) - std::min(a.box.x1, b.box.x1);
    const float h = std::max(a.box.y2, b.box.y2) - std::min(a.box.y1, b.box.y1);
    const float distance = (dx * dx + dy * dy) / (w * w + h * h + kCiouEps);
    const float turn = a.angle - b.angle, aspect = static_cast<float>(4 / (M_PI * M_PI)) * turn * turn;
    const float value = u - distance - aspect / (aspect - u + 1 + kCiouEps) * aspect;
    return value > 0 ? std::min(value, 1.0f) : 0.0f;
  }

  // From a logit and an overlap; 0 where it is not a number or below what float32 holds in full.
  float operator()(float logit, float u) const {
    const float p = 1 / (1 + std::exp(-logit));
    const float square = u * u;
    const float of_p = alpha == 1 ? p : alpha == 0.5f ? std::sqrt(p) : std::pow(p, alpha);
    const float value = of_p * (beta == 6 ? square * square * square : std::pow(u, beta));
    return value >= std::numeric_limits<float>::min() ? value : 0.0f;
  }

  // An overlap below which no metric reaches `value`, since no p is above 1; a little lower, as it is rounded.
  float least_overlap(float value) const { return beta > 0 ? (1 - 1e-4f) * std::pow(value, 1 / beta) : 0.0f; }
};

}  // namespace detops
