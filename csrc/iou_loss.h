// IoU losses of two boxes with their gradients, written out. They do not use boxes.h, because a gradient needs the
// overlap along each axis separately, and a NaN must reach the loss.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace detops {

constexpr double kEps = 1e-16;  // added to the union, and the lower bound of other divisors
enum Kind : int64_t { kSquared, kPlain, kGiou, kDiou, kCiou };

// The length of an overlap or a hull along one axis, and its derivatives by the prediction's centre and size.
template <class C>
struct Side {
  C length, by_center, by_size;
};

template <class C>
inline C share(C high, C low) {
  return high > low ? C(1) : high == low ? C(0.5) : C(0);
}

template <class C>
inline Side<C> overlap(C center, C size, C other_center, C other_size) {
  const C low = center - size / 2, high = center + size / 2;
  const C other_low = other_center - other_size / 2, other_high = other_center + other_size / 2;
  const C length = std::min(high, other_high) - std::max(low, other_low);
  if (!(length >= 0)) return {length < 0 ? C(0) : length, C(0), C(0)};  // NaN stays
  const C upper = share(other_high, high), lower = share(low, other_low);
  return {length, upper - lower, (upper + lower) / 2};
}

template <class C>
inline Side<C> hull(C center, C size, C other_center, C other_size) {
  const C low = center - size / 2, high = center + size / 2;
  const C other_low = other_center - other_size / 2, other_high = other_center + other_size / 2;
  const C upper = share(high, other_high), lower = share(other_low, low);
  return {std::max(high, other_high) - std::min(low, other_low), upper - lower, (upper + lower) / 2};
}

// Returns the IoU loss of two cxcywh boxes, and writes its gradient by the first to `gradient`.
template <class C>
C iou_loss(const C* p, const C* t, int64_t kind, C* gradient) {
  const Side<C> x = overlap(p[0], p[2], t[0], t[2]), y = overlap(p[1], p[3], t[1], t[3]);
  const C inter = x.length * y.length;
  const C by[4] = {y.length * x.by_center, x.length * y.by_center, y.length * x.by_size, x.length * y.by_size};
  const C union_ = p[2] * p[3] + t[2] * t[3] - inter, divisor = union_ + C(kEps);
  const C union_by[4] = {-by[0], -by[1], p[3] - by[2], p[2] - by[3]};
  const C iou = inter / divisor;
  C iou_by[4];
  for (int i = 0; i < 4; ++i) iou_by[i] = (by[i] - iou * union_by[i]) / divisor;
  if (kind == kSquared || kind == kPlain) {
    for (int i = 0; i < 4; ++i) gradient[i] = kind == kSquared ? -2 * iou * iou_by[i] : -iou_by[i];
    return kind == kSquared ? 1 - iou * iou : 1 - iou;
  }
  const Side<C> w = hull(p[0], p[2], t[0], t[2]), h = hull(p[1], p[3], t[1], t[3]);
  if (kind == kGiou) {
    const C area = w.length * h.length, least = std::max(area, C(kEps));
    const C area_by[4] = {h.length * w.by_center, w.length * h.by_center, h.length * w.by_size, w.length * h.by_size};
    const C empty = (area - union_) / least, giou = iou - empty;
    const C moving = area >= C(kEps) ? empty : C(0), open = giou < -1 || giou > 1 ? C(0) : C(1);
    for (int i = 0; i < 4; ++i) {
      gradient[i] = -open * (iou_by[i] - (area_by[i] - union_by[i] - moving * area_by[i]) / least);
    }
    return 1 - (giou < -1 ? C(-1) : giou > 1 ? C(1) : giou);
  }
  const C dx = p[0] - t[0], dy = p[1] - t[1];
  const C diagonal = w.length * w.length + h.length * h.length + C(kEps);
  const C distance = (dx * dx + dy * dy) / diagonal;
  gradient[0] = -iou_by[0] + 2 * (dx - distance * w.length * w.by_center) / diagonal;
  gradient[1] = -iou_by[1] + 2 * (dy - distance * h.length * h.by_center) / diagonal;
  gradient[2] = -iou_by[2] - 2 * distance * w.length * w.by_size / diagonal;
  gradient[3] = -iou_by[3] - 2 * distance * h.length * h.by_size / diagonal;
  const C loss = 1 - iou + distance;
  if (kind == kDiou) return loss;
  const C height = p[3] + C(kEps), factor = C(4 / (M_PI * M_PI));
  const C turn = std::atan(t[2] / (t[3] + C(kEps))) - std::atan(p[2] / height);
  const C aspect = factor * turn * turn, alpha = aspect / (1 - iou + aspect + C(kEps));
  const C slope = -2 * factor * turn / (height * height + p[2] * p[2]) * alpha;
  gradient[2] += slope * height;
  gradient[3] -= slope * p[2];
  return loss + alpha * aspect;
}

}  // namespace detops
