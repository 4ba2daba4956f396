// D-FINE's distributions of distances, for local_loss and local_loss_backward_: softmaxes of a query's four sides, and
// the fine-grained localization of one that has a box. The bins of a side are padded to whole vectors.
#pragma once

#include "boxes.h"
#include "set_parts.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace detops {

constexpr int kLanes = 16;
constexpr double kTemperature = 5;

inline int64_t padded_bins(int64_t bins) { return (bins + kLanes - 1) / kLanes * kLanes; }

template <class C>
DETOPS_INLINE C lane_sum(C* lanes) {
  for (int w = kLanes / 2; w > 0; w /= 2) {
    for (int i = 0; i < w; ++i) lanes[i] += lanes[i + w];
  }
  return lanes[0];
}

template <class C>
DETOPS_INLINE C lane_max(C* lanes) {
  for (int w = kLanes / 2; w > 0; w /= 2) {
    for (int i = 0; i < w; ++i) lanes[i] = lanes[i] > lanes[i + w] ? lanes[i] : lanes[i + w];
  }
  return lanes[0];
}

// Of the logits (4, bins) times a factor: themselves, their softmax, (4, width) each, and the logarithms of the sums of
// their exponentials. A logit that is not finite makes its side NaN.
#define DETOPS_SIDES(T, C)                                                                                         \
  [[maybe_unused]] DETOPS_CLONES static void soften(const T* x, C factor, int64_t bins, int64_t width, C* z, C* p, \
                                                    C* log_sum) {                                                  \
    for (int side = 0; side < 4; ++side, x += bins, z += width, p += width) {                                      \
      for (int64_t j = 0; j < bins; ++j) z[j] = static_cast<C>(x[j]) * factor;                                     \
      for (int64_t j = bins; j < width; ++j) z[j] = C(-1e30);                                                      \
      C top[kLanes], sum[kLanes] = {}, poison[kLanes] = {};                                                        \
      for (int i = 0; i < kLanes; ++i) top[i] = C(-1e30);                                                          \
      for (int64_t j = 0; j < width; j += kLanes) {                                                                \
        for (int i = 0; i < kLanes; ++i) {                                                                         \
          poison[i] += z[j + i] * C(0);                                                                            \
          top[i] = z[j + i] > top[i] ? z[j + i] : top[i];                                                          \
        }                                                                                                          \
      }                                                                                                            \
      const C most = lane_max(top), broken = lane_sum(poison);                                                     \
      for (int64_t j = 0; j < width; j += kLanes) {                                                                \
        for (int i = 0; i < kLanes; ++i) p[j + i] = exp_negative(z[j + i] - most);                                 \
        for (int i = 0; i < kLanes; ++i) sum[i] += p[j + i];                                                       \
      }                                                                                                            \
      const C total = lane_sum(sum), share = C(1) / total + broken;                                                \
      for (int64_t j = 0; j < width; ++j) p[j] *= share;                                                           \
      log_sum[side] = most + log_of(total) + broken;                                                               \
    }                                                                                                              \
  }
DETOPS_SIDES(float, float)
DETOPS_SIDES(Half, float)
DETOPS_SIDES(BFloat16, float)
DETOPS_SIDES(double, double)
#undef DETOPS_SIDES

// What both ops read.
struct LocalInput {
  int64_t layers, batch, queries, bins, boxes;
  std::vector<SetPart> parts;
  std::vector<Reader> pred;  // of each part
  std::vector<bool> distils;
  Reader references, gt, scale;
  const int64_t* index;
  std::vector<double> values, weights;
  double reach;
  int64_t width;

  LocalInput(const Tensor& corners, const Tensor& references, const std::vector<Tensor>& pred_boxes,
             const std::vector<int64_t>& numbers, const std::vector<int64_t>& distils, const Tensor& gt_boxes,
             const Tensor& index, const Tensor& values, const Tensor& scale, double reach,
             const std::vector<double>& weights)
      : layers(0), batch(0), queries(0), bins(0), boxes(0), references(references), gt(gt_boxes), scale(scale),
        index(nullptr), weights(weights), reach(std::fabs(reach)), width(0) {
    STD_TORCH_CHECK(has_numbers(gt_boxes, {-1, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
    STD_TORCH_CHECK(has_numbers(values, {-1}) && values.size(0) >= 2, "values: expected at least 2 numbers");
    batch = gt_boxes.size(0), boxes = gt_boxes.size(1), bins = values.size(0), width = padded_bins(bins);
    STD_TORCH_CHECK(has_numbers(corners, {-1, batch, -1, 4 * bins}) && corners.stride(3) == 1,
                    "corners: expected numbers of shape (L, B, Q, 4 * bins) with contiguous rows");
    layers = corners.size(0), queries = corners.size(2);
    STD_TORCH_CHECK(has_numbers(references, {layers, batch, queries, 4}),
                    "references: expected numbers of shape (L, B, Q, 4)");
    parts = parts_of(numbers, {corners}, batch);
    STD_TORCH_CHECK(pred_boxes.size() == parts.size(), "pred_boxes: expected one for each part");
    STD_TORCH_CHECK(distils.size() == parts.size(), "distils: expected one number for each part");
    for (size_t i = 0; i < parts.size(); ++i) {
      STD_TORCH_CHECK(has_numbers(pred_boxes[i], {parts[i].sets, batch, parts[i].queries, 4}),
                      "pred_boxes: expected numbers of shape (S, B, Q, 4)");
      pred.emplace_back(pred_boxes[i]);
      this->distils.push_back(distils[i] != 0);
    }
    STD_TORCH_CHECK(
        has_shape(index, {rows_of(parts, batch)}) && index.scalar_type() == ScalarType::Long && index.is_contiguous(),
        "index: expected contiguous int64, one for each query of the parts");
    this->index = static_cast<const int64_t*>(index.const_data_ptr());
    STD_TORCH_CHECK(has_numbers(scale, {sets_of(parts)}), "scale: expected one number for each layer of the parts");
    STD_TORCH_CHECK(weights.size() == 2, "weights: expected 2 numbers");
    const Reader reader(values);
    for (int64_t j = 0; j < bins; ++j) this->values.push_back(reader.at(j));
  }

  // The box of a query of a part, or -1.
  int64_t box_of(const SetPart& part, int64_t set, int64_t b, int64_t q) const {
    const int64_t n = index[part.rows_before + (set * batch + b) * part.queries + q];
    return n >= 0 && n < boxes ? n : -1;
  }

  // The IoU of its box with the predicted one; 0 where it is not a finite number.
  double iou(size_t i, int64_t set, int64_t b, int64_t q, int64_t n) const {
    const Reader& r = pred[i];
    const Box<double> p = box_around(r.at(set, b, q, 0), r.at(set, b, q, 1), r.at(set, b, q, 2), r.at(set, b, q, 3));
    const double w = gt.at(b, n, 2), h = gt.at(b, n, 3);
    const Box<double> t = box_around(gt.at(b, n, 0), gt.at(b, n, 1), w, h);
    const double inter = intersection(t, p);
    const double found = inter / (r.at(set, b, q, 2) * r.at(set, b, q, 3) + w * h - inter);
    return std::isfinite(found) ? found : 0;
  }

  // The lower of the two bins next to each side of a box, and the share of the upper one.
  void targets(int64_t layer, int64_t b, int64_t q, int64_t n, int64_t* lower, double* share) const {
    for (int side = 0; side < 4; ++side) {
      const int64_t d = side % 2;
      const double half = gt.at(b, n, d + 2) / 2, center = references.at(layer, b, q, d);
      const double size = references.at(layer, b, q, d + 2) / reach + 1e-16;
      const double at = side < 2 ? center - (gt.at(b, n, d) - half) : gt.at(b, n, d) + half - center;
      double distance = at / size - reach / 2;
      distance = distance < values.front() ? values.front() : distance > values.back() ? values.back() : distance;
      const int64_t place = std::upper_bound(values.begin(), values.end(), distance) - values.begin() - 1;
      lower[side] = std::clamp<int64_t>(place, 0, bins - 2);
      share[side] = (distance - values[lower[side]]) / (values[lower[side] + 1] - values[lower[side]]);
    }
  }
};

// The loss of a query that has a box, without its factors, given the softmax of its logits; adds its gradient, times a
// factor, to (4, width) numbers if there are such.
template <class C>
double fine_grained(const LocalInput& in, const C* z, const C* p, const C* log_sum, const int64_t* lower,
                    const double* share, double factor, C* gradient) {
  double loss = 0;
  for (int side = 0; side < 4; ++side) {
    const C* at = z + side * in.width + lower[side];
    loss += log_sum[side] - (1 - share[side]) * at[0] - share[side] * at[1];
    if (!gradient) continue;
    C* to = gradient + side * in.width;
    const C f = static_cast<C>(factor);
    for (int64_t j = 0; j < in.width; ++j) to[j] += f * p[side * in.width + j];
    to[lower[side]] -= static_cast<C>(factor * (1 - share[side]));
    to[lower[side] + 1] -= static_cast<C>(factor * share[side]);
  }
  return loss;
}

}  // namespace detops
