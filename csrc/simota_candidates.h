// SimOTA's boxes and candidates: which cells lie in a box's regions, and the IoUs, over columns of numbers.
#pragma once

#include "given_boxes.h"
#include "labels.h"

#include <vector>

namespace detops {

// Flags of a cell for a box: an own candidate, and one of the best, which it picks before all others.
constexpr uint8_t kOwn = 1, kBest = 2;

// A ground-truth box. Its area is width x height; computed from the corners it would round differently.
struct Target {
  Box<float> box;
  float cx, cy, area;
  int64_t label;
  bool present;  // valid; once candidates are known, also has own candidates
};

// The boxes of a batch, `count` per image.
inline std::vector<Target> read_targets(const GivenBoxes& boxes, const Labels& labels, int64_t batch, int64_t count,
                                        int64_t classes) {
  std::vector<Target> targets(static_cast<size_t>(batch * count));
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t n = 0; n < labels.rows(b); ++n) {
      Target& target = targets[b * count + n];
      const auto [cx, cy, w, h] = boxes.at<float>(b, n);
      const int64_t label = labels.at(b, n, classes);
      const bool finite = std::isfinite(cx) && std::isfinite(cy) && std::isfinite(w) && std::isfinite(h);
      const bool present = finite && w >= 0 && h >= 0 && label >= 0;
      target = {box_around(cx, cy, w, h), cx, cy, w * h, label, present};
    }
  }
  return targets;
}

// The candidates of an image in ascending order, as columns of one number per cell.
struct Columns {
  float *x, *y, *side;              // of the cell
  float *x1, *y1, *x2, *y2, *area;  // of the prediction
  float *objectness, *total;        // logit, and the class cost if no class is the label

  static constexpr int64_t kCount = 10;

  // `memory` holds kCount columns of `cells` numbers.
  Columns(float* memory, int64_t cells) {
    for (float** column : {&x, &y, &side, &x1, &y1, &x2, &y2, &area, &objectness, &total}) {
      *column = memory;
      memory += cells;
    }
  }

  Box<float> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

// Writes kOwn and kBest for each of `count` cells.
DETOPS_CLONES static void region_row(const Target& target, const float* x, const float* y, const float* side,
                                     float radius, bool center_only, int64_t count, uint8_t* flags) {
  const float cx = target.cx, cy = target.cy;
  const Box<float> box = target.box;
  for (int64_t i = 0; i < count; ++i) {
    const float dx = x[i] > cx ? x[i] - cx : cx - x[i], dy = y[i] > cy ? y[i] - cy : cy - y[i];
    const bool near = (dx < radius * side[i]) & (dy < radius * side[i]);
    const bool in_box = (x[i] > box.x1) & (x[i] < box.x2) & (y[i] > box.y1) & (y[i] < box.y2);
    const bool own = center_only ? near : in_box | near, best = center_only ? near : in_box & near;
    flags[i] = static_cast<uint8_t>((own ? kOwn : 0) | (best ? kBest : 0));
  }
}

DETOPS_INLINE float pair_iou(const Target& target, const Columns& c, int64_t i) {
  return iou_or_zero(intersection(target.box, c.box(i)), target.area, c.area[i]);
}

DETOPS_CLONES static void iou_row(const Target& target, const Columns& c, int64_t count, float* iou) {
  for (int64_t i = 0; i < count; ++i) iou[i] = pair_iou(target, c, i);
}

}  // namespace detops
