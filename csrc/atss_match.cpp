// Adaptive training sample selection for a batch: the CPU kernel of atss_match.
//
// Boxes are shared out among torch's threads; each looks at the anchors' centres, where they form a grid only at those
// around its own, and leaves what it takes. Then images are shared out, and each anchor goes to the box of the highest
// IoU. Nothing grows with boxes x anchors.
#include "anchors.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr float kInside = 0.01f;  // pixels by which an anchor's centre must lie within its box

struct Box {
  float x1, y1, x2, y2, cx, cy;
};

// A level's anchors. Where their centres form a grid, row by row, `width` is its number of columns, else 0.
struct Level {
  int64_t start, size, width;

  Level(const Anchors& anchors, int64_t start, int64_t size) : start(start), size(size), width(0) {
    const float *x = anchors.cx.data() + start, *y = anchors.cy.data() + start;
    int64_t columns = 0;
    while (columns < size && y[columns] == y[0] && (columns == 0 || x[columns] > x[columns - 1])) ++columns;
    if (columns == 0 || size % columns != 0) return;
    for (int64_t row = columns; row < size; row += columns) {
      if (!(y[row] > y[row - columns])) return;
      for (int64_t i = 0; i < columns; ++i) {
        if (y[row + i] != y[row] || x[row + i] != x[i]) return;
      }
    }
    width = columns;
  }
};

struct Taken {
  int32_t anchor;  // -1: nothing
  float iou;
};

// Squared distances from a point; infinite where there is a NaN, so that such an anchor comes last.
DETOPS_CLONES void distance_row(const float* x, const float* y, float cx, float cy, int64_t count, float* distance) {
  for (int64_t i = 0; i < count; ++i) {
    const float squared = (x[i] - cx) * (x[i] - cx) + (y[i] - cy) * (y[i] - cy);
    distance[i] = squared == squared ? squared : std::numeric_limits<float>::infinity();
  }
}

float pair_iou(const Box& g, const Anchors& anchors, int64_t a) {
  const float width = std::min(anchors.x2[a], g.x2) - std::max(anchors.x1[a], g.x1);
  const float height = std::min(anchors.y2[a], g.y2) - std::max(anchors.y1[a], g.y1);
  const float inter = std::max(width, 0.0f) * std::max(height, 0.0f);
  const float area = (anchors.x2[a] - anchors.x1[a]) * (anchors.y2[a] - anchors.y1[a]);
  const float iou = inter / (area + (g.x2 - g.x1) * (g.y2 - g.y1) - inter);
  return iou >= 0 ? iou : 0;  // NaN is 0
}

// The nearest anchors so far, in order; equal ones in the order in which they were offered.
struct Nearest {
  size_t topk;
  std::vector<float> distance;
  std::vector<int32_t> anchor;

  bool full() const { return distance.size() == topk; }

  void offer(float d, int64_t a) {
    if (full()) {
      if (!(d < distance.back())) return;
      distance.pop_back();
      anchor.pop_back();
    }
    const size_t j = std::upper_bound(distance.begin(), distance.end(), d) - distance.begin();
    distance.insert(distance.begin() + j, d);
    anchor.insert(anchor.begin() + j, static_cast<int32_t>(a));
  }
};

struct Range {
  int64_t begin, end;
};

// A window of a grid's columns (step 1) or rows (step: the number of columns) around a coordinate; the squared
// distance of the nearest line outside goes to `beyond`.
Range window(const float* line, int64_t count, int64_t step, float center, int64_t half, float& beyond) {
  int64_t low = 0, high = count - 1;  // where the coordinate lies: a grid's lines are in order
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (line[middle * step] <= center ? low : high) = middle;
  }
  const Range range{std::max<int64_t>(low - half, 0), std::min(low + half + 2, count)};
  for (int64_t outside : {range.begin - 1, range.end}) {
    if (outside < 0 || outside >= count) continue;
    const float apart = line[outside * step] - center;
    beyond = std::min(beyond, apart * apart);
  }
  return range;
}

// The nearest anchors of a level, appended to `chosen`.
void nearest(const Level& level, const Anchors& anchors, const Box& g, const Reader* valid, int64_t b,
             std::vector<float>& distance, Nearest& found, std::vector<int32_t>& chosen) {
  const float *x = anchors.cx.data() + level.start, *y = anchors.cy.data() + level.start;
  const int64_t width = level.width == 0 ? level.size : level.width, height = level.size / std::max<int64_t>(width, 1);
  for (int64_t half = level.width == 0 ? level.size : 2;; half *= 2) {
    float beyond = std::numeric_limits<float>::infinity();
    Range columns{0, width}, rows{0, height};
    if (level.width != 0) {
      columns = window(x, width, 1, g.cx, half, beyond);
      rows = window(y, height, width, g.cy, half, beyond);
    }
    found.distance.clear(), found.anchor.clear();
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t first = row * width + columns.begin, count = columns.end - columns.begin;
      distance_row(x + first, y + first, g.cx, g.cy, count, distance.data());
      for (int64_t i = 0; i < count; ++i) {
        if (found.full() && !(distance[i] < found.distance.back())) continue;
        if (valid != nullptr && valid->at(b, level.start + first + i) == 0) continue;
        found.offer(distance[i], level.start + first + i);
      }
    }
    // What lies outside is at least so far away: rounding keeps order. At equality its index may be the lower one.
    const bool whole = columns.end - columns.begin == width && rows.end - rows.begin == height;
    if (whole || (found.full() && found.distance.back() < beyond)) break;
  }
  chosen.insert(chosen.end(), found.anchor.begin(), found.anchor.end());
}

// What a box takes, at most one entry a candidate; returns its threshold.
float take(const Box& g, const Anchors& anchors, const std::vector<int32_t>& chosen, Taken* taken) {
  std::vector<float> iou(chosen.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < chosen.size(); ++i) sum += iou[i] = pair_iou(g, anchors, chosen[i]);
  const double mean = sum / static_cast<double>(std::max<size_t>(chosen.size(), 1));
  for (float value : iou) squares += (value - mean) * (value - mean);
  const double threshold = mean + std::sqrt(squares / static_cast<double>(std::max<size_t>(chosen.size(), 2) - 1));
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int32_t a = chosen[i];
    const float margin = std::min(std::min(anchors.cx[a] - g.x1, g.x2 - anchors.cx[a]),
                                  std::min(anchors.cy[a] - g.y1, g.y2 - anchors.cy[a]));
    taken[i] = {iou[i] >= static_cast<float>(threshold) && margin > kInside ? a : -1, iou[i]};
  }
  return static_cast<float>(threshold);
}

std::tuple<Tensor, Tensor, Tensor> atss_match(const Tensor anchors, const std::vector<int64_t> level_sizes,
                                              const Tensor gt_boxes, const Tensor gt_labels,
                                              const std::optional<Tensor> sample_sizes,
                                              const std::optional<Tensor> valid, int64_t num_classes, int64_t topk) {
  STD_TORCH_CHECK(anchors.dim() == 2 && anchors.size(1) == 4, "anchors: expected shape (A, 4)");
  STD_TORCH_CHECK(gt_boxes.dim() == 3 && gt_boxes.size(2) == 4, "gt_boxes: expected shape (B, N, 4)");
  const int64_t count = anchors.size(0), batch = gt_boxes.size(0), boxes = gt_boxes.size(1);
  STD_TORCH_CHECK(gt_labels.dim() == 2 && gt_labels.size(0) == batch && gt_labels.size(1) == boxes,
                  "gt_labels: expected shape (B, N)");
  STD_TORCH_CHECK(!sample_sizes || (sample_sizes->dim() == 1 && sample_sizes->size(0) == batch),
                  "sample_sizes: expected shape (B,)");
  STD_TORCH_CHECK(!valid || (valid->dim() == 2 && valid->size(0) == batch && valid->size(1) == count &&
                             valid->scalar_type() == ScalarType::Bool),
                  "valid: expected bool of shape (B, A)");
  STD_TORCH_CHECK(Reader::reads(anchors.scalar_type()) && Reader::reads(gt_boxes.scalar_type()) &&
                      Reader::reads(gt_labels.scalar_type()) &&
                      (!sample_sizes || Reader::reads(sample_sizes->scalar_type())),
                  "anchors, gt_boxes, gt_labels, sample_sizes: expected integers or floats");
  STD_TORCH_CHECK(topk >= 1 && topk <= 1000, "topk: expected 1 .. 1000");
  int64_t total = 0, most = 0, width = 0;
  for (int64_t size : level_sizes) {
    STD_TORCH_CHECK(size >= 0, "level_sizes: expected at least 0");
    total += size;
    most = std::max(most, size);
    width += std::min(size, topk);
  }
  STD_TORCH_CHECK(total == count, "level_sizes: expected the number of anchors as their sum");

  Tensor index = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Long);
  Tensor iou = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Float);
  Tensor memory = torch::stable::new_empty(gt_boxes, {batch * boxes, width * 2}, ScalarType::Int);
  static_assert(sizeof(Taken) == 2 * sizeof(int32_t));
  Taken* taken = static_cast<Taken*>(memory.mutable_data_ptr());
  Tensor thresholds = torch::stable::new_empty(gt_boxes, {batch, boxes}, ScalarType::Float);
  float* threshold_data = static_cast<float*>(thresholds.mutable_data_ptr());
  const Anchors columns(anchors, count);
  std::vector<Level> levels;
  for (int64_t size : level_sizes) {
    levels.emplace_back(columns, levels.empty() ? 0 : levels.back().start + levels.back().size, size);
  }
  const Reader box_reader(gt_boxes), label_reader(gt_labels);
  std::optional<Reader> size_reader, valid_reader;
  if (sample_sizes) size_reader.emplace(*sample_sizes);
  if (valid) valid_reader.emplace(*valid);
  const auto exists = [&](int64_t b, int64_t n, Box& g) {
    if (size_reader && static_cast<double>(n) >= size_reader->at(b)) return false;
    const double label = label_reader.at(b, n);
    g.x1 = static_cast<float>(box_reader.at(b, n, 0)), g.y1 = static_cast<float>(box_reader.at(b, n, 1));
    g.x2 = static_cast<float>(box_reader.at(b, n, 2)), g.y2 = static_cast<float>(box_reader.at(b, n, 3));
    g.cx = (g.x1 + g.x2) / 2, g.cy = (g.y1 + g.y2) / 2;
    return label >= 0 && label < static_cast<double>(num_classes) && g.x2 >= g.x1 && g.y2 >= g.y1 &&
           std::isfinite((g.x2 - g.x1) * (g.y2 - g.y1));
  };
  torch::stable::parallel_for(0, batch * boxes, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> distance(most);
    Nearest found{static_cast<size_t>(topk), {}, {}};
    std::vector<int32_t> chosen;
    for (int64_t i = begin; i < end; ++i) {
      std::fill(taken + i * width, taken + (i + 1) * width, Taken{-1, 0});
      threshold_data[i] = std::numeric_limits<float>::infinity();
      Box g;
      const int64_t b = i / boxes;
      if (!exists(b, i % boxes, g)) continue;
      chosen.clear();
      for (const Level& level : levels) {
        nearest(level, columns, g, valid_reader ? &*valid_reader : nullptr, b, distance, found, chosen);
      }
      if (!chosen.empty()) threshold_data[i] = take(g, columns, chosen, taken + i * width);
    }
  });
  int64_t* index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  float* iou_data = static_cast<float*>(iou.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t* owner = index_data + b * count;
      float* overlap = iou_data + b * count;
      std::fill(owner, owner + count, -1);
      std::fill(overlap, overlap + count, 0.0f);
      for (int64_t n = 0; n < boxes; ++n) {
        const Taken* of_box = taken + (b * boxes + n) * width;
        for (int64_t i = 0; i < width; ++i) {
          const int32_t a = of_box[i].anchor;
          if (a < 0 || (owner[a] >= 0 && !(of_box[i].iou > overlap[a]))) continue;
          owner[a] = n, overlap[a] = of_box[i].iou;
        }
      }
    }
  });
  return {index, iou, thresholds};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("atss_match", TORCH_BOX(&detops::atss_match)); }
