// SimOTA's boxes and candidates: which cells lie in a box's regions, and the IoUs, over columns of numbers.
#pragma once

#include "given_boxes.h"
#include "labels.h"
#include "runs.h"

#include <algorithm>
#include <functional>
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

// Cells as columns of one number each, in whole runs; what fills the last run is NaN, and so in no region.
struct CellColumns {
  float *x, *y, *side;  // of the cell, in pixels
  Hulls hulls;          // of the cells' centres
  float* reach;         // of each run: how far a cell may lie from a box's centre, at most

  static constexpr int64_t numbers(int64_t runs) { return (3 * kRun + Hulls::kCount + 1) * runs; }

  CellColumns(float* memory, int64_t runs)
      : x(memory), y(x + kRun * runs), side(y + kRun * runs), hulls(side + kRun * runs, runs), reach(hulls.y2 + runs) {}

  void set_hulls(float radius, int64_t runs) const {
    hulls.set(x, y, x, y, runs);
    for (int64_t r = 0; r < runs; ++r) {
      reach[r] = -std::numeric_limits<float>::infinity();
      for (int64_t i = r * kRun; i < (r + 1) * kRun; ++i) reach[r] = greater(radius * side[i], reach[r]);
    }
  }
};

// The candidates of an image in ascending order.
struct Columns {
  CellColumns cell;
  float *x1, *y1, *x2, *y2, *area;  // of the prediction
  float *objectness, *total;        // logit, and the class cost if no class is the label
  Hulls hulls;                      // of the predictions
  float* least;                     // of each run: no cost without the IoU's part is lower

  static constexpr int64_t numbers(int64_t runs) {
    return CellColumns::numbers(runs) + (7 * kRun + Hulls::kCount + 1) * runs;
  }

  Columns(float* memory, int64_t runs)
      : cell(memory, runs), x1(memory + CellColumns::numbers(runs)), y1(x1 + kRun * runs), x2(y1 + kRun * runs),
        y2(x2 + kRun * runs), area(y2 + kRun * runs), objectness(area + kRun * runs), total(objectness + kRun * runs),
        hulls(total + kRun * runs, runs), least(hulls.y2 + runs) {}

  Box<float> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }

  void set(int64_t i, float x, float y, float side, float cx, float cy, float w, float h, float logit) const {
    const Box<float> box = box_around(cx, cy, w, h);
    cell.x[i] = x, cell.y[i] = y, cell.side[i] = side;
    x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2, area[i] = w * h;
    objectness[i] = logit;
  }
};

// Which cells are own candidates of a box.
struct Region {
  float radius;  // in cells
  bool center_only;

  // The flags of one cell.
  DETOPS_INLINE int32_t operator()(const Box<float>& box, float cx, float cy, float x, float y, float side) const {
    const float dx = x > cx ? x - cx : cx - x, dy = y > cy ? y - cy : cy - y;
    const bool near = (dx < radius * side) & (dy < radius * side);
    const bool in_box = (x > box.x1) & (x < box.x2) & (y > box.y1) & (y < box.y2);
    const bool own = center_only ? near : in_box | near, best = center_only ? near : in_box & near;
    return (own ? kOwn : 0) | (best ? kBest : 0);
  }
};

// Marks the runs of which some cells may be own candidates. Differences round in the order of the numbers, so that no
// cell of a run is nearer than its hull.
DETOPS_CLONES static void mark_region(const Target target, const CellColumns c, bool center_only, int64_t runs,
                                      uint8_t* __restrict marks) {
  const Hulls hulls = c.hulls;
  const float cx = target.cx, cy = target.cy;
  const Box<float> box = target.box;
  for (int64_t r = 0; r < runs; ++r) {
    const float dx = greater(hulls.x1[r] - cx, cx - hulls.x2[r]), dy = greater(hulls.y1[r] - cy, cy - hulls.y2[r]);
    const bool near = (dx < c.reach[r]) & (dy < c.reach[r]);
    const bool in_box = (hulls.x2[r] > box.x1) & (hulls.x1[r] < box.x2) & (hulls.y2[r] > box.y1) &
                        (hulls.y1[r] < box.y2) & !center_only;
    marks[r] = near | in_box;
  }
}

// Writes kOwn and kBest for each cell of some runs.
DETOPS_CLONES static void region_runs(const Target target, const CellColumns c, const Region region,
                                      const int32_t* runs, int64_t count, uint8_t* __restrict flags) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = runs[j] * kRun;
    int32_t found[kRun];  // as wide as what it follows from, or vectors would be narrow
    for (int64_t i = 0; i < kRun; ++i) {
      const int64_t a = first + i;
      found[i] = region(target.box, target.cx, target.cy, c.x[a], c.y[a], c.side[a]);
    }
    for (int64_t i = 0; i < kRun; ++i) flags[first + i] = static_cast<uint8_t>(found[i]);
  }
}

// Boxes of an image as columns; what is not present is NaN, and so has no candidates.
struct TargetColumns {
  std::vector<float> x1, y1, x2, y2, cx, cy;

  TargetColumns(const Target* targets, int64_t count) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    for (const Target* t = targets; t != targets + count; ++t) {
      const Box<float> box = t->present ? t->box : Box<float>{kNone, kNone, kNone, kNone};
      x1.push_back(box.x1), y1.push_back(box.y1), x2.push_back(box.x2), y2.push_back(box.y2);
      cx.push_back(t->present ? t->cx : kNone), cy.push_back(t->present ? t->cy : kNone);
    }
  }
};

// Marks the boxes which have a cell among their best.
DETOPS_CLONES static void mark_best(const TargetColumns& boxes, int64_t count, float x, float y, float side,
                                    const Region region, uint8_t* __restrict marks) {
  const float *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(), *y2 = boxes.y2.data();
  const float *cx = boxes.cx.data(), *cy = boxes.cy.data();
  for (int64_t n = 0; n < count; ++n) {
    marks[n] = (region({x1[n], y1[n], x2[n], y2[n]}, cx[n], cy[n], x, y, side) & kBest) / kBest;
  }
}

DETOPS_INLINE float pair_iou(const Target& target, const Columns& c, int64_t i) {
  return iou_or_zero(intersection(target.box, c.box(i)), target.area, c.area[i]);
}

// Writes the IoUs of some runs.
DETOPS_CLONES static void iou_runs(const Target target, const Columns c, const int32_t* runs, int64_t count,
                                   float* __restrict iou) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = runs[j] * kRun;
    for (int64_t i = first; i < first + kRun; ++i) iou[i] = pair_iou(target, c, i);
  }
}

// Sets those to 0 that are no own candidates.
DETOPS_CLONES static void keep_own(const uint8_t* flags, const int32_t* runs, int64_t count, float* __restrict iou) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = runs[j] * kRun;
    for (int64_t i = first; i < first + kRun; ++i) iou[i] = (flags[i] & kOwn) != 0 ? iou[i] : 0.0f;
  }
}

// The k-th highest of the highest IoUs of each lane, so that at least k IoUs are as high; 0 if there are fewer lanes.
DETOPS_CLONES static float bound_of_top(const float* iou, const int32_t* runs, int64_t count, int64_t k) {
  if (k > kRun) return 0;
  float lanes[kRun] = {};
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t i = 0; i < kRun; ++i) lanes[i] = greater(iou[runs[j] * kRun + i], lanes[i]);
  }
  std::nth_element(lanes, lanes + k - 1, lanes + kRun, std::greater<float>());
  return lanes[k - 1];
}

// Marks the runs that hold an IoU of at least this.
DETOPS_CLONES static void mark_from(const float* iou, const int32_t* runs, int64_t count, float least,
                                    uint8_t* __restrict marks) {
  for (int64_t j = 0; j < count; ++j) {
    int32_t found = 0;
    for (int64_t i = 0; i < kRun; ++i) found |= iou[runs[j] * kRun + i] >= least;
    marks[j] = static_cast<uint8_t>(found);
  }
}

inline float highest_of_run(const float* iou, int64_t run) {
  return *std::max_element(iou + run * kRun, iou + (run + 1) * kRun);
}

// What the search of one box needs. By candidate; flags and IoUs are 0 but for the listed runs.
struct Search {
  std::vector<uint8_t> flags;
  std::vector<float> iou;
  Runs near, met, top;  // where own candidates may be, an IoU may be above 0, and one of the highest may be

  // Candidates whose costs are looked at, and what these follow from.
  int64_t size = 0;
  std::vector<int32_t> place;
  std::vector<float> logits, objectness, total, overlap, cost;

  explicit Search(int64_t runs)
      : flags(runs * kRun), iou(runs * kRun), near(runs), met(runs), top(runs), place(runs * kRun + 1),
        logits(runs * kRun), objectness(runs * kRun), total(runs * kRun), overlap(runs * kRun), cost(runs * kRun) {}

  void clear() {
    for (const int32_t r : near) std::fill_n(&flags[r * kRun], kRun, uint8_t{0});
    for (const int32_t r : met) std::fill_n(&iou[r * kRun], kRun, 0.0f);
  }
};

}  // namespace detops
