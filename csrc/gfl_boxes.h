// Boxes as distributions of distances: the losses of one anchor and their gradients, which gfl_positives_ and
// gfl_box_gradient share. Boxes are in units of the anchor's stride, from its centre.
#pragma once

#include "common.h"
#include "iou_loss.h"

#include <algorithm>
#include <vector>

namespace detops {

constexpr double kTargetMargin = 0.1;  // by which targets stay below the last bin
constexpr int64_t kAnchors = 1024;     // of a task

// exp(factor * x) over its sum goes to `p`; returns the log of the sum. A logit that is not finite makes all NaN.
#define DETOPS_SOFTMAX(C)                                                         \
  DETOPS_CLONES inline C softmax(const C* x, C factor, int64_t count, C* p) {    \
    C top = x[0] * factor, poison = 0, sum = 0;                                   \
    for (int64_t i = 0; i < count; ++i) {                                         \
      const C z = x[i] * factor;                                                  \
      poison += z * C(0);                                                         \
      top = z > top ? z : top;                                                    \
    }                                                                             \
    for (int64_t i = 0; i < count; ++i) p[i] = exp_negative(x[i] * factor - top); \
    for (int64_t i = 0; i < count; ++i) sum += p[i];                              \
    const C share = C(1) / sum + poison;                                          \
    for (int64_t i = 0; i < count; ++i) p[i] *= share;                            \
    return top + std::log(sum) + poison;                                          \
  }
DETOPS_SOFTMAX(float)
DETOPS_SOFTMAX(double)

// One level's map (B, C, H, W) in any layout.
class Map {
 public:
  explicit Map(const Tensor& t)
      : data_(t.const_data_ptr()), type_(t.scalar_type()), b_(t.stride(0)), c_(t.stride(1)), y_(t.stride(2)),
        x_(t.stride(3)) {}

  // The channels of a cell.
  template <class C>
  void column(int64_t b, int64_t y, int64_t x, int64_t channels, C* to) const {
    const int64_t first = b * b_ + y * y_ + x * x_;
    switch (type_) {
      case ScalarType::Float: return copy<float>(first, channels, to);
      case ScalarType::Double: return copy<double>(first, channels, to);
      case ScalarType::Half: return copy<Half>(first, channels, to);
      default: return copy<BFloat16>(first, channels, to);
    }
  }

  static bool holds(ScalarType type) {
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
           type == ScalarType::BFloat16;
  }

 private:
  template <class T, class C>
  void copy(int64_t first, int64_t channels, C* to) const {
    const T* from = static_cast<const T*>(data_) + first;
    for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<C>(from[c * c_]);
  }

  const void* data_;
  ScalarType type_;
  int64_t b_, c_, y_, x_;
};

// What the two ops read, level by level.
struct GflInputs {
  std::vector<Map> preds, soft;  // `soft` is empty without a teacher
  std::vector<int64_t> heights, widths, starts;
  Reader cells, boxes;
  const int64_t* index;
  const float* region;  // null without one
  int64_t batch, anchors, num_boxes, bins;
  double temperature;

  GflInputs(const std::vector<Tensor>& bbox_preds, const std::vector<Tensor>& soft_targets, const Tensor& cells,
            const Tensor& gt_boxes, const Tensor& index, const std::optional<Tensor>& region, double temperature)
      : cells(cells), boxes(gt_boxes), index(nullptr), region(nullptr), batch(0), anchors(0), num_boxes(0), bins(0),
        temperature(temperature) {
    STD_TORCH_CHECK(!bbox_preds.empty() && bbox_preds[0].dim() == 4, "bbox_preds: expected levels (B, 4 * bins, H, W)");
    STD_TORCH_CHECK(soft_targets.empty() || soft_targets.size() == bbox_preds.size(),
                    "soft_targets: expected as many levels as bbox_preds has, or none");
    const int64_t channels = bbox_preds[0].size(1);
    batch = bbox_preds[0].size(0), bins = channels / 4;
    STD_TORCH_CHECK(channels % 4 == 0 && bins >= 2, "bbox_preds: expected 4 * bins channels, at least 8");
    for (size_t i = 0; i < bbox_preds.size(); ++i) {
      const Tensor& level = bbox_preds[i];
      STD_TORCH_CHECK(level.dim() == 4 && level.size(0) == batch && level.size(1) == channels &&
                          level.scalar_type() == bbox_preds[0].scalar_type() && Map::holds(level.scalar_type()),
                      "bbox_preds: expected levels (B, 4 * bins, H, W) of one dtype");
      preds.emplace_back(level);
      heights.push_back(level.size(2)), widths.push_back(level.size(3)), starts.push_back(anchors);
      anchors += level.size(2) * level.size(3);
      if (soft_targets.empty()) continue;
      const Tensor& other = soft_targets[i];
      bool same = other.dim() == 4 && Map::holds(other.scalar_type());
      for (int64_t d = 0; same && d < 4; ++d) same = other.size(d) == level.size(d);
      STD_TORCH_CHECK(same, "soft_targets: expected the shapes of bbox_preds");
      soft.emplace_back(other);
    }
    STD_TORCH_CHECK(cells.dim() == 2 && cells.size(0) == anchors && cells.size(1) == 3 &&
                        Reader::reads(cells.scalar_type()),
                    "cells: expected shape (A, 3)");
    STD_TORCH_CHECK(gt_boxes.dim() == 3 && gt_boxes.size(0) == batch && gt_boxes.size(2) == 4 &&
                        Reader::reads(gt_boxes.scalar_type()),
                    "gt_boxes: expected shape (B, N, 4)");
    num_boxes = gt_boxes.size(1);
    check_anchors(index, ScalarType::Long, "index: expected a contiguous int64 tensor (B, A)");
    this->index = static_cast<const int64_t*>(index.const_data_ptr());
    if (!region) return;
    check_anchors(*region, ScalarType::Float, "region: expected a contiguous float32 tensor (B, A)");
    this->region = static_cast<const float*>(region->const_data_ptr());
  }

  void check_anchors(const Tensor& t, ScalarType type, const char* message) const {
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == batch && t.size(1) == anchors && t.scalar_type() == type &&
                        t.is_contiguous(),
                    message);
  }

  // The box of an anchor, or -1.
  int64_t box_of(int64_t b, int64_t a) const {
    const int64_t n = index[b * anchors + a];
    return n >= 0 && n < num_boxes ? n : -1;
  }

  double region_of(int64_t b, int64_t a) const { return region == nullptr ? 0 : region[b * anchors + a]; }
};

// A run of anchors of one image and level.
struct GflTask {
  int64_t level, b, begin, end;
};

inline std::vector<GflTask> gfl_tasks(const GflInputs& in) {
  std::vector<GflTask> tasks;
  for (int64_t b = 0; b < in.batch; ++b) {
    for (size_t level = 0; level < in.starts.size(); ++level) {
      const int64_t size = in.heights[level] * in.widths[level];
      for (int64_t begin = 0; begin < size; begin += kAnchors) {
        tasks.push_back({static_cast<int64_t>(level), b, begin, std::min(size, begin + kAnchors)});
      }
    }
  }
  return tasks;
}

// One anchor at a time: its distributions, and what they say of its box.
template <class C>
struct GflAnchor {
  int64_t bins;
  std::vector<C> raw, p, soft, student, teacher;  // (4, bins) each
  C log_sum[4], distance[4], exact[4], by[4];
  C iou, giou, dfl;

  explicit GflAnchor(int64_t bins)
      : bins(bins), raw(4 * bins), p(4 * bins), soft(4 * bins), student(4 * bins), teacher(4 * bins) {}

  static void read(const Map& map, int64_t b, int64_t y, int64_t x, std::vector<C>& to) {
    map.column(b, y, x, static_cast<int64_t>(to.size()), to.data());
  }

  // IoU, losses, and how the GIoU loss grows with the distances.
  void box_losses(const GflInputs& in, int64_t b, int64_t a, int64_t n) {
    const double stride = in.cells.at(a, 2);
    C box[4];
    for (int i = 0; i < 4; ++i) box[i] = static_cast<C>((in.boxes.at(b, n, i) - in.cells.at(a, i % 2)) / stride);
    dfl = 0;
    for (int s = 0; s < 4; ++s) {
      C* row = &p[s * bins];
      log_sum[s] = softmax(&raw[s * bins], C(1), bins, row);
      distance[s] = 0;
      for (int64_t j = 0; j < bins; ++j) distance[s] += static_cast<C>(j) * row[j];
      exact[s] = std::clamp(s < 2 ? -box[s] : box[s], C(0), static_cast<C>(bins - 1) - static_cast<C>(kTargetMargin));
      const int64_t low = static_cast<int64_t>(exact[s]);
      const C upper = exact[s] - static_cast<C>(low);
      dfl += log_sum[s] - (C(1) - upper) * raw[s * bins + low] - upper * raw[s * bins + low + 1];
    }
    const C* d = distance;
    const C pred[4] = {(d[2] - d[0]) / 2, (d[3] - d[1]) / 2, d[0] + d[2], d[1] + d[3]};
    const C target[4] = {(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]};
    C g[4];
    iou = 1 - iou_loss(pred, target, kPlain, g);
    giou = iou_loss(pred, target, kGiou, g);
    by[0] = g[2] - g[0] / 2, by[1] = g[3] - g[1] / 2, by[2] = g[2] + g[0] / 2, by[3] = g[3] + g[1] / 2;
  }

  // The distillation loss; both softened distributions stay.
  C distillation(double temperature) {
    const C t = static_cast<C>(temperature);
    C sum = 0;
    for (int64_t s = 0; s < 4 * bins; s += bins) {
      const C apart = softmax(&raw[s], C(1) / t, bins, &student[s]) - softmax(&soft[s], C(1) / t, bins, &teacher[s]);
      for (int64_t j = s; j < s + bins; ++j) sum += teacher[j] * ((soft[j] - raw[j]) / t + apart);
    }
    return t * t * sum / static_cast<C>(bins);
  }
};

}  // namespace detops
