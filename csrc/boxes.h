// Boxes as corners, (x1, y1, x2, y2): their area, intersection and IoU. Inlined by force and free of branches, so that
// a loop over columns of coordinates is vectorised in every clone.
#pragma once

#include "common.h"

#include <limits>

namespace detops {

// The lesser and the greater of two numbers; `b` where either is NaN.
template <class T>
DETOPS_INLINE T lesser(T a, T b) {
  return a < b ? a : b;
}
template <class T>
DETOPS_INLINE T greater(T a, T b) {
  return a > b ? a : b;
}

template <class T>
struct Box {
  T x1, y1, x2, y2;
};

// Box n of image b of a tensor (B, N, 4).
template <class T>
inline Box<T> read_box(const Reader& boxes, int64_t b, int64_t n) {
  return {static_cast<T>(boxes.at(b, n, 0)), static_cast<T>(boxes.at(b, n, 1)), static_cast<T>(boxes.at(b, n, 2)),
          static_cast<T>(boxes.at(b, n, 3))};
}

// The corners of a box of this centre and size.
template <class T>
DETOPS_INLINE Box<T> box_around(T cx, T cy, T width, T height) {
  return {cx - T(0.5) * width, cy - T(0.5) * height, cx + T(0.5) * width, cy + T(0.5) * height};
}

template <class T>
DETOPS_INLINE T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// The area that two boxes share. A NaN in `b` makes its width or height 0. One in `a` is ignored: the caller knows that
// there is none, or a's area makes the IoU NaN.
template <class T>
DETOPS_INLINE T intersection(const Box<T>& a, const Box<T>& b) {
  const T left = greater(a.x1, b.x1), right = lesser(a.x2, b.x2);
  const T top = greater(a.y1, b.y1), bottom = lesser(a.y2, b.y2);
  return (right > left ? right - left : T(0)) * (bottom > top ? bottom - top : T(0));
}

// IoU of two boxes, from their intersection and their areas; NaN where an area is NaN, and where both are 0. All ops
// add the areas before they subtract the intersection, so that all of them round alike.
template <class T>
DETOPS_INLINE T iou(T inter, T area_a, T area_b) {
  return inter / (area_a + area_b - inter);
}

// The same, but 0 where it is NaN, infinite or negative, as it can be where areas were not computed from the corners.
template <class T>
DETOPS_INLINE T iou_or_zero(T inter, T area_a, T area_b) {
  const T value = iou(inter, area_a, area_b);
  return (value >= 0) & (value <= std::numeric_limits<T>::max()) ? value : T(0);
}

}  // namespace detops
