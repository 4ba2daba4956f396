// Adaptive training sample selection for a batch: the CPU kernel of atss_match.
//
// Two steps, each divided among torch's threads. Per box: its candidates are the anchors with the nearest centres,
// searched for in a window around the box's own if a level's centres form a grid; those that pass its threshold are its
// anchors. Per image: an anchor of several boxes gets the one with the highest IoU, of these or of all. No memory grows
// with boxes x anchors.
#include "anchors.h"
#include "boxes.h"
#include "grid.h"
#include "labels.h"
#include "top_k.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

struct Rule {
  float margin;  // pixels by which an anchor's centre must lie within its box
  bool strict, all_boxes;
};

// A ground-truth box, its area and its centre.
struct Target {
  Box<float> box;
  float area, cx, cy;
};

struct Taken {
  int32_t anchor;  // -1: nothing
  float iou;
};

// Squared distances from a point; infinite for an anchor with a NaN, so that it comes last.
DETOPS_CLONES void distance_row(const float* x, const float* y, float cx, float cy, int64_t count, float* distance) {
  for (int64_t i = 0; i < count; ++i) {
    const float squared = (x[i] - cx) * (x[i] - cx) + (y[i] - cy) * (y[i] - cy);
    distance[i] = squared == squared ? squared : std::numeric_limits<float>::infinity();
  }
}

// Writes the anchors of a level whose centres are nearest to the box's to `found`; ties go to the lower index.
void nearest(const GridLevel& level, const Anchors& anchors, const Target& target, const std::optional<Reader>& valid,
             int64_t b, std::vector<float>& distance, TopK<>& found) {
  const float *x = anchors.cx.data() + level.start, *y = anchors.cy.data() + level.start;
  const int64_t width = level.width == 0 ? level.size : level.width, height = level.size / std::max<int64_t>(width, 1);
  for (int64_t half = level.width == 0 ? level.size : 2;; half *= 2) {
    float beyond = std::numeric_limits<float>::infinity();
    Range columns{0, width}, rows{0, height};
    if (level.width != 0) {
      columns = lines_around(x, width, 1, target.cx, half, beyond);
      rows = lines_around(y, height, width, target.cy, half, beyond);
    }
    found.clear();
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t first = row * width + columns.begin, count = columns.size();
      distance_row(x + first, y + first, target.cx, target.cy, count, distance.data());
      for (int64_t i = 0; i < count; ++i) {
        if (!found.takes(distance[i])) continue;
        if (valid && valid->at(b, level.start + first + i) == 0) continue;
        found.offer(distance[i], level.start + first + i);
      }
    }
    // No anchor outside the window is nearer than `beyond`, because rounding keeps order. One at exactly that distance
    // may have the lower index.
    const bool whole = columns.size() == width && rows.size() == height;
    if (whole || (found.full() && found.worst() < beyond)) return;
  }
}

// Writes which candidates pass the box's threshold, one entry per candidate; returns the threshold.
float take(const Target& target, const Anchors& anchors, const std::vector<int32_t>& chosen, const Rule& rule,
           Taken* taken) {
  const Box<float>& g = target.box;
  std::vector<float> iou(chosen.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const Box<float> anchor = anchors.box(chosen[i]);
    sum += iou[i] = iou_or_zero(intersection(g, anchor), area(anchor), target.area);
  }
  const double mean = sum / static_cast<double>(std::max<size_t>(chosen.size(), 1));
  for (float value : iou) squares += (value - mean) * (value - mean);
  const float threshold =
      static_cast<float>(mean + std::sqrt(squares / static_cast<double>(std::max<size_t>(chosen.size(), 2) - 1)));
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int32_t a = chosen[i];
    const float margin = std::min(std::min(anchors.cx[a] - g.x1, g.x2 - anchors.cx[a]),
                                  std::min(anchors.cy[a] - g.y1, g.y2 - anchors.cy[a]));
    const bool passes = rule.strict ? iou[i] > threshold : iou[i] >= threshold;
    taken[i] = {passes && margin > rule.margin ? a : -1, iou[i]};
  }
  return threshold;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> atss_match(const Tensor anchors, const std::vector<int64_t> level_sizes,
                                                      const Tensor gt_boxes, const Tensor gt_labels,
                                                      const std::optional<Tensor> sample_sizes,
                                                      const std::optional<Tensor> valid, int64_t num_classes,
                                                      int64_t topk, double margin, bool strict, bool all_boxes) {
  STD_TORCH_CHECK(has_numbers(anchors, {-1, 4}), "anchors: expected numbers of shape (A, 4)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {-1, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  const int64_t count = anchors.size(0), batch = gt_boxes.size(0), boxes = gt_boxes.size(1);
  check_labels(gt_labels, sample_sizes, batch, boxes, "gt_labels");
  STD_TORCH_CHECK(!valid || has_booleans(*valid, {batch, count}), "valid: expected bool of shape (B, A)");
  STD_TORCH_CHECK(topk >= 1 && topk <= 1000, "topk: expected 1 .. 1000");
  STD_TORCH_CHECK(margin >= 0, "margin: expected at least 0");
  const Rule rule{static_cast<float>(margin), strict, all_boxes};
  int64_t total = 0, most = 0, width = 0;
  for (int64_t size : level_sizes) {
    STD_TORCH_CHECK(size >= 0, "level_sizes: expected at least 0");
    total += size;
    most = std::max(most, size);
    width += std::min(size, topk);
  }
  STD_TORCH_CHECK(total == count, "level_sizes: expected numbers whose sum is the number of anchors");

  Tensor index = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Long);
  Tensor iou = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Float);
  Tensor memory = torch::stable::new_empty(gt_boxes, {batch * boxes, width * 2}, ScalarType::Int);
  static_assert(sizeof(Taken) == 2 * sizeof(int32_t));
  Taken* taken = static_cast<Taken*>(memory.mutable_data_ptr());
  Tensor thresholds = torch::stable::new_empty(gt_boxes, {batch, boxes}, ScalarType::Float);
  float* threshold_data = static_cast<float*>(thresholds.mutable_data_ptr());
  const Anchors columns(anchors, count);
  std::vector<GridLevel> levels;
  for (int64_t size : level_sizes) {
    const int64_t start = levels.empty() ? 0 : levels.back().start + levels.back().size;
    levels.emplace_back(columns.cx.data(), columns.cy.data(), start, size);
  }
  const Reader box_reader(gt_boxes);
  const Labels labels(gt_labels, sample_sizes, boxes);
  const std::optional<Reader> exists = reader_of(valid);
  // Reads a box; returns false if it is to be skipped.
  const auto read = [&](int64_t b, int64_t n, Target& target) {
    if (n >= labels.rows(b) || labels.at(b, n, num_classes) < 0) return false;
    const Box<float> g = read_box<float>(box_reader, b, n);
    target = {g, area(g), (g.x1 + g.x2) / 2, (g.y1 + g.y2) / 2};
    return g.x2 >= g.x1 && g.y2 >= g.y1 && std::isfinite(target.area);
  };
  torch::stable::parallel_for(0, batch * boxes, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> distance(most);
    TopK<> found(topk);
    std::vector<int32_t> chosen;
    for (int64_t i = begin; i < end; ++i) {
      std::fill(taken + i * width, taken + (i + 1) * width, Taken{-1, 0});
      threshold_data[i] = std::numeric_limits<float>::infinity();
      Target target;
      const int64_t b = i / boxes;
      if (!read(b, i % boxes, target)) continue;
      chosen.clear();
      for (const GridLevel& level : levels) {
        nearest(level, columns, target, exists, b, distance, found);
        chosen.insert(chosen.end(), found.indices(), found.indices() + found.size());
      }
      if (!chosen.empty()) threshold_data[i] = take(target, columns, chosen, rule, taken + i * width);
    }
  });
  Tensor positives = torch::stable::new_empty(gt_boxes, {batch}, ScalarType::Long);
  int64_t* positive_data = static_cast<int64_t*>(positives.mutable_data_ptr());
  int64_t* index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  float* iou_data = static_cast<float*>(iou.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> times(count);
    for (int64_t b = begin; b < end; ++b) {
      int64_t* owner = index_data + b * count;
      float* overlap = iou_data + b * count;
      std::fill(owner, owner + count, -1);
      std::fill(overlap, overlap + count, 0.0f);
      std::fill(times.begin(), times.end(), 0);
      const auto offer = [&](int64_t a, int64_t n, float value) {
        if (owner[a] < 0 || value > overlap[a]) owner[a] = n, overlap[a] = value;
      };
      int64_t number = 0;
      bool contested = false;
      for (int64_t n = 0; n < boxes; ++n) {
        const Taken* of_box = taken + (b * boxes + n) * width;
        for (int64_t i = 0; i < width; ++i) {
          const int32_t a = of_box[i].anchor;
          if (a < 0) continue;
          offer(a, n, of_box[i].iou);
          number += ++times[a] == 1;
          contested |= times[a] > 1;
        }
      }
      for (int64_t n = 0; contested && rule.all_boxes && n < boxes; ++n) {
        Target target;
        if (!read(b, n, target)) continue;
        for (int64_t a = 0; a < count; ++a) {
          if (times[a] < 2) continue;
          const Box<float> anchor = columns.box(a);
          const float value = iou_or_zero(intersection(target.box, anchor), area(anchor), target.area);
          if (value > overlap[a] || (value == overlap[a] && n < owner[a])) owner[a] = n, overlap[a] = value;
        }
      }
      positive_data[b] = number;
    }
  });
  return {index, iou, thresholds, positives};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("atss_match", TORCH_BOX(&detops::atss_match)); }
