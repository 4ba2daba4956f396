// Boxes as distributions of distances, for positive_losses_ and positive_losses_backward: the losses of a few points,
// and their gradients. Points are processed in groups whose sides lie next to each other, so that a vector holds one
// bin of all of them, and no sum runs across a vector. Boxes are relative to their point, in units of its stride.
#pragma once

#include "common.h"
#include "iou_loss.h"

#include <algorithm>
#include <vector>

namespace detops {

constexpr int64_t kTaskPoints = 1024;  // points per task
constexpr int kGroup = 4;              // points per group
constexpr int kSides = 4 * kGroup;     // side s of point k is number s * kGroup + k

// For each of kSides columns of x, writes exp(factor * x) over its sum to `p`, and the log of the sum to `log_sum`. A
// logit that is not finite makes its whole column NaN.
#define DETOPS_SOFTMAX(C)                                                                   \
  DETOPS_CLONES inline void softmax(const C* x, C factor, int64_t bins, C* p, C* log_sum) { \
    C top[kSides], sum[kSides] = {}, poison[kSides] = {}, share[kSides];                    \
    for (int i = 0; i < kSides; ++i) top[i] = x[i] * factor;                                \
    for (int64_t j = 0; j < bins * kSides; j += kSides) {                                   \
      for (int i = 0; i < kSides; ++i) {                                                    \
        const C z = x[j + i] * factor;                                                      \
        poison[i] += z * C(0);                                                              \
        top[i] = z > top[i] ? z : top[i];                                                   \
      }                                                                                     \
    }                                                                                       \
    for (int64_t j = 0; j < bins * kSides; j += kSides) {                                   \
      for (int i = 0; i < kSides; ++i) p[j + i] = exp_negative(x[j + i] * factor - top[i]); \
      for (int i = 0; i < kSides; ++i) sum[i] += p[j + i];                                  \
    }                                                                                       \
    for (int i = 0; i < kSides; ++i) share[i] = C(1) / sum[i] + poison[i];                  \
    for (int64_t j = 0; j < bins * kSides; j += kSides) {                                   \
      for (int i = 0; i < kSides; ++i) p[j + i] *= share[i];                                \
    }                                                                                       \
    for (int i = 0; i < kSides; ++i) log_sum[i] = top[i] + log_of(sum[i]) + poison[i];      \
  }
DETOPS_SOFTMAX(float)
DETOPS_SOFTMAX(double)

// One level's map (B, C, H, W) in any layout.
class Map {
 public:
  explicit Map(const Tensor& t)
      : data_(t.const_data_ptr()), type_(t.scalar_type()), b_(t.stride(0)), c_(t.stride(1)), y_(t.stride(2)),
        x_(t.stride(3)) {}

  // Writes channel c of point k to to[place(c) + k]; `rows` number the map's points row by row.
  template <class C, class Place>
  void read(int64_t b, const int64_t* rows, int64_t width, int64_t channels, C* to, const Place& place) const {
    int64_t first[kGroup];
    for (int k = 0; k < kGroup; ++k) first[k] = b * b_ + rows[k] / width * y_ + rows[k] % width * x_;
    switch (type_) {
      case ScalarType::Float: return copy<float>(first, channels, to, place);
      case ScalarType::Double: return copy<double>(first, channels, to, place);
      case ScalarType::Half: return copy<Half>(first, channels, to, place);
      default: return copy<BFloat16>(first, channels, to, place);
    }
  }

  // The same of one channel of one point.
  double at(int64_t b, int64_t row, int64_t width, int64_t c) const {
    const int64_t n = b * b_ + c * c_ + row / width * y_ + row % width * x_;
    switch (type_) {
      case ScalarType::Float: return static_cast<const float*>(data_)[n];
      case ScalarType::Double: return static_cast<const double*>(data_)[n];
      case ScalarType::Half: return static_cast<float>(static_cast<const Half*>(data_)[n]);
      default: return static_cast<float>(static_cast<const BFloat16*>(data_)[n]);
    }
  }

  // Writes channels c .. c + channels - 1 of `count` points from the one of number `row`, as float, to rows of `to`
  // that are `apart` from each other.
  void read_row(int64_t b, int64_t c, int64_t channels, int64_t row, int64_t count, int64_t width, int64_t apart,
                float* to) const {
    const int64_t first = b * b_ + c * c_;
    switch (type_) {
      case ScalarType::Float: return copy_row<float>(first, channels, row, count, width, apart, to);
      case ScalarType::Double: return copy_row<double>(first, channels, row, count, width, apart, to);
      case ScalarType::Half: return copy_row<Half>(first, channels, row, count, width, apart, to);
      default: return copy_row<BFloat16>(first, channels, row, count, width, apart, to);
    }
  }

  static bool holds(ScalarType type) {
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
           type == ScalarType::BFloat16;
  }

 private:
  template <class T, class C, class Place>
  void copy(const int64_t* first, int64_t channels, C* to, const Place& place) const {
    const T* from = static_cast<const T*>(data_);
    for (int64_t c = 0; c < channels; ++c, from += c_) {
      C* here = to + place(c);
      for (int k = 0; k < kGroup; ++k) here[k] = static_cast<C>(from[first[k]]);
    }
  }

  template <class T>
  void copy_row(int64_t first, int64_t channels, int64_t row, int64_t count, int64_t width, int64_t apart,
                float* to) const {
    const T* from = static_cast<const T*>(data_) + first;
    if (x_ == 1 && y_ == width) {  // the points lie one after the other
      from += row;
      for (int64_t j = 0; j < channels; ++j, from += c_, to += apart) {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
      }
      return;
    }
    int64_t y = row / width, x = row % width;
    for (int64_t i = 0; i < count; ++i) {
      const T* at = from + y * y_ + x * x_;
      for (int64_t j = 0; j < channels; ++j) to[j * apart + i] = static_cast<float>(at[j * c_]);
      if (++x == width) x = 0, ++y;
    }
  }

  const void* data_;
  ScalarType type_;
  int64_t b_, c_, y_, x_;
};

// The arguments that both ops have.
struct PositiveInputs {
  std::vector<Map> preds, soft;  // one per level; `soft` is empty without a teacher
  std::vector<int64_t> heights, widths, starts;
  Reader points, boxes;
  const int64_t* index;
  const float* region;  // null without one
  int64_t batch, num_points, num_boxes, bins, box_kind;
  double temperature, margin;

  PositiveInputs(const std::vector<Tensor>& bbox_preds, const std::vector<Tensor>& soft_targets, const Tensor& points,
                 const Tensor& boxes, const Tensor& index, const std::optional<Tensor>& region, int64_t box_kind,
                 double temperature, double margin)
      : points(points), boxes(boxes), index(nullptr), region(nullptr), batch(0), num_points(0), num_boxes(0), bins(0),
        box_kind(box_kind), temperature(temperature), margin(margin) {
    STD_TORCH_CHECK(!bbox_preds.empty() && bbox_preds[0].dim() == 4, "bbox_preds: expected levels (B, 4 * bins, H, W)");
    STD_TORCH_CHECK(soft_targets.empty() || soft_targets.size() == bbox_preds.size(),
                    "soft_targets: expected as many levels as bbox_preds has, or none");
    const int64_t channels = bbox_preds[0].size(1);
    batch = bbox_preds[0].size(0), bins = channels / 4;
    STD_TORCH_CHECK(channels % 4 == 0 && bins >= 1 && (bins > 1 || soft_targets.empty()),
                    "bbox_preds: expected 4 * bins channels, at least 4");
    for (size_t i = 0; i < bbox_preds.size(); ++i) {
      const Tensor& level = bbox_preds[i];
      STD_TORCH_CHECK(has_shape(level, {batch, channels, -1, -1}) &&
                          level.scalar_type() == bbox_preds[0].scalar_type() && Map::holds(level.scalar_type()),
                      "bbox_preds: expected levels (B, 4 * bins, H, W) of one dtype");
      preds.emplace_back(level);
      heights.push_back(level.size(2)), widths.push_back(level.size(3)), starts.push_back(num_points);
      num_points += level.size(2) * level.size(3);
      if (soft_targets.empty()) continue;
      const Tensor& other = soft_targets[i];
      STD_TORCH_CHECK(
          has_shape(other, {batch, channels, level.size(2), level.size(3)}) && Map::holds(other.scalar_type()),
          "soft_targets: expected floating-point levels of the shapes of bbox_preds");
      soft.emplace_back(other);
    }
    STD_TORCH_CHECK(has_numbers(points, {num_points, 3}), "points: expected numbers of shape (A, 3)");
    STD_TORCH_CHECK(has_numbers(boxes, {batch, -1, 4}), "boxes: expected numbers of shape (B, N, 4)");
    num_boxes = boxes.size(1);
    STD_TORCH_CHECK(box_kind >= kSquared && box_kind <= kCiou, "box_kind: expected 0 .. 4");
    STD_TORCH_CHECK(margin >= 0 && margin <= 1, "margin: expected 0 .. 1");
    check_points(index, ScalarType::Long, "index: expected a contiguous int64 tensor (B, A)");
    this->index = static_cast<const int64_t*>(index.const_data_ptr());
    if (!region) return;
    check_points(*region, ScalarType::Float, "region: expected a contiguous float32 tensor (B, A)");
    this->region = static_cast<const float*>(region->const_data_ptr());
  }

  void check_points(const Tensor& t, ScalarType type, const char* message) const {
    STD_TORCH_CHECK(has_shape(t, {batch, num_points}) && t.scalar_type() == type && t.is_contiguous(), message);
  }

  // The box of a point, or -1.
  int64_t box_of(int64_t b, int64_t a) const {
    const int64_t n = index[b * num_points + a];
    return n >= 0 && n < num_boxes ? n : -1;
  }

  double region_of(int64_t b, int64_t a) const { return region == nullptr ? 0 : region[b * num_points + a]; }
};

// A run of points of one image and level.
struct Task {
  int64_t level, b, begin, end;
};

inline std::vector<Task> tasks_of(const PositiveInputs& in) {
  std::vector<Task> tasks;
  for (int64_t b = 0; b < in.batch; ++b) {
    for (size_t level = 0; level < in.starts.size(); ++level) {
      const int64_t size = in.heights[level] * in.widths[level];
      for (int64_t begin = 0; begin < size; begin += kTaskPoints) {
        tasks.push_back({static_cast<int64_t>(level), b, begin, std::min(size, begin + kTaskPoints)});
      }
    }
  }
  return tasks;
}

// Calls visit(rows, count) for groups of up to kGroup of the points of a task that have a box or are in the region, in
// order; a group that is not full repeats its last one.
template <class Visit>
inline void for_each_group(const Task& task, const PositiveInputs& in, const Visit& visit) {
  int64_t rows[kGroup];
  int count = 0;
  for (int64_t r = task.begin; r < task.end; ++r) {
    const int64_t a = in.starts[task.level] + r;
    if (in.box_of(task.b, a) >= 0 || in.region_of(task.b, a) > 0) rows[count++] = r;
    if (count == 0 || (count < kGroup && r + 1 < task.end)) continue;
    std::fill(rows + count, rows + kGroup, rows[count - 1]);
    visit(rows, count);
    count = 0;
  }
}

// A group's distributions, and the boxes that they predict.
template <class C>
struct Group {
  int64_t bins;
  std::vector<C> raw, p, soft, student, teacher;  // (bins, kSides) each
  C log_sum[kSides], distance[kSides], exact[kSides], by[kSides];
  C iou[kGroup], box[kGroup], dfl[kGroup], ld[kGroup];

  explicit Group(int64_t bins)
      : bins(bins), raw(bins * kSides), p(raw), soft(raw), student(raw), teacher(raw), log_sum{}, distance{}, exact{},
        by{}, iou{}, box{}, dfl{}, ld{} {}

  void read(const Map& map, int64_t b, const int64_t* rows, int64_t width, std::vector<C>& to) const {
    map.read(b, rows, width, 4 * bins, to.data(),
             [bins = bins](int64_t c) { return c % bins * kSides + c / bins * kGroup; });
  }

  // Computes the distributions, and their means, which are the distances.
  void distributions() {
    if (bins == 1) {  // a distance as it is
      std::copy(raw.begin(), raw.end(), distance);
      return;
    }
    softmax(raw.data(), C(1), bins, p.data(), log_sum);
    std::fill(distance, distance + kSides, C(0));
    for (int64_t j = 0; j < bins; ++j) {
      for (int i = 0; i < kSides; ++i) distance[i] += static_cast<C>(j) * p[j * kSides + i];
    }
  }

  // Computes the losses of point `a` at place k, whose box is n, and the derivatives of the box loss by the distances.
  template <bool WithIou>
  void box_losses(const PositiveInputs& in, int64_t b, int64_t a, int64_t n, int k) {
    const double stride = in.points.at(a, 2);
    C side[4], d[4], g[4];
    for (int i = 0; i < 4; ++i) side[i] = static_cast<C>((in.boxes.at(b, n, i) - in.points.at(a, i % 2)) / stride);
    dfl[k] = 0;
    for (int s = 0; s < 4; ++s) {
      const int i = s * kGroup + k;
      d[s] = distance[i];
      if (bins == 1) continue;
      exact[i] = std::clamp(s < 2 ? -side[s] : side[s], C(0), static_cast<C>(bins - 1) - static_cast<C>(in.margin));
      const int64_t low = exact[i] > 0 ? std::min(static_cast<int64_t>(exact[i]), bins - 2) : 0;  // 0 for NaN
      const C upper = exact[i] - static_cast<C>(low);
      const C* at_low = &raw[low * kSides + i];
      dfl[k] += log_sum[i] - (C(1) - upper) * at_low[0] - upper * at_low[kSides];
    }
    const C pred[4] = {(d[2] - d[0]) / 2, (d[3] - d[1]) / 2, d[0] + d[2], d[1] + d[3]};
    const C target[4] = {(side[0] + side[2]) / 2, (side[1] + side[3]) / 2, side[2] - side[0], side[3] - side[1]};
    if (WithIou) iou[k] = 1 - iou_loss(pred, target, kPlain, g);
    box[k] = iou_loss(pred, target, in.box_kind, g);
    C* to = by + k;
    to[0] = g[2] - g[0] / 2, to[kGroup] = g[3] - g[1] / 2;
    to[2 * kGroup] = g[2] + g[0] / 2, to[3 * kGroup] = g[3] + g[1] / 2;
  }

  // Computes the distillation losses, and keeps both softened distributions.
  void distillation(double temperature) {
    const C t = static_cast<C>(temperature);
    C of_student[kSides], of_teacher[kSides], sums[kSides] = {};
    softmax(raw.data(), C(1) / t, bins, student.data(), of_student);
    softmax(soft.data(), C(1) / t, bins, teacher.data(), of_teacher);
    for (int64_t j = 0; j < bins * kSides; j += kSides) {
      for (int i = 0; i < kSides; ++i) {
        sums[i] += teacher[j + i] * ((soft[j + i] - raw[j + i]) / t + (of_student[i] - of_teacher[i]));
      }
    }
    for (int k = 0; k < kGroup; ++k) {
      ld[k] = t * t * (sums[k] + sums[kGroup + k] + sums[2 * kGroup + k] + sums[3 * kGroup + k]) / static_cast<C>(bins);
    }
  }
};

}  // namespace detops
