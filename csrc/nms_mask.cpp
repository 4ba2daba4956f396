// Greedy non-maximum suppression of a batch: the CPU kernel of nms_mask.
//
// Images are shared out among torch's threads. Boxes are copied in the order of label, then score: a box then
// meets only later ones of its own label, which lie in one run.
#include "common.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace detops {
namespace {

template <class T>
struct Candidates {
  std::vector<T> x1, y1, x2, y2, area, inter;
  std::vector<uint8_t> alive;

  explicit Candidates(size_t count)
      : x1(count), y1(count), x2(count), y2(count), area(count), inter(count), alive(count, 1) {}
};

// Drops what lies in [i + 1, end) and overlaps candidate i too much. Two loops, with a buffer between them, so that
// no product is fused into the sum that follows: all implementations round alike.
#define DETOPS_DROP(T)                                                                                  \
  DETOPS_CLONES void intersect(const T* x1, const T* y1, const T* x2, const T* y2, T* inter, int64_t i, \
                               int64_t end) {                                                           \
    const T left = x1[i], top = y1[i], right = x2[i], bottom = y2[i];                                   \
    for (int64_t j = i + 1; j < end; ++j) {                                                             \
      const T l = left > x1[j] ? left : x1[j], r = right < x2[j] ? right : x2[j];                       \
      const T t = top > y1[j] ? top : y1[j], b = bottom < y2[j] ? bottom : y2[j];                       \
      inter[j] = (r > l ? r - l : T(0)) * (b > t ? b - t : T(0));                                       \
    }                                                                                                   \
  }                                                                                                     \
  DETOPS_CLONES void drop(const T* area, const T* inter, uint8_t* alive, int64_t i, int64_t end,        \
                          T threshold) {                                                                \
    const T own = area[i];                                                                              \
    for (int64_t j = i + 1; j < end; ++j) alive[j] &= !(inter[j] / (own + area[j] - inter[j]) > threshold); \
  }
DETOPS_DROP(float)
DETOPS_DROP(double)

struct Input {
  Reader boxes, scores;
  std::optional<Reader> labels, valid;
  int64_t count;
};

template <class T>
void suppress(const Input& in, int64_t b, T threshold, bool* keep) {
  std::vector<double> score(in.count), label(in.count, 0.0);
  std::vector<int64_t> order;
  order.reserve(in.count);
  for (int64_t n = 0; n < in.count; ++n) {
    keep[n] = false;
    if (in.valid && in.valid->at(b, n) == 0) continue;
    const double s = in.scores.at(b, n);
    score[n] = std::isnan(s) ? -HUGE_VAL : s;
    if (in.labels) label[n] = in.labels->at(b, n);
    order.push_back(n);
  }
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    if (label[i] != label[j]) return label[i] < label[j];
    return score[i] != score[j] ? score[i] > score[j] : i < j;
  });
  const int64_t count = static_cast<int64_t>(order.size());
  Candidates<T> c(order.size());
  for (int64_t k = 0; k < count; ++k) {
    c.x1[k] = static_cast<T>(in.boxes.at(b, order[k], 0));
    c.y1[k] = static_cast<T>(in.boxes.at(b, order[k], 1));
    c.x2[k] = static_cast<T>(in.boxes.at(b, order[k], 2));
    c.y2[k] = static_cast<T>(in.boxes.at(b, order[k], 3));
  }
  for (int64_t k = 0; k < count; ++k) c.area[k] = (c.x2[k] - c.x1[k]) * (c.y2[k] - c.y1[k]);
  for (int64_t k = 0, end = 0; k < count; ++k) {
    if (k == end) {
      while (end < count && label[order[end]] == label[order[k]]) ++end;
    }
    if (!c.alive[k]) continue;
    keep[order[k]] = true;
    intersect(c.x1.data(), c.y1.data(), c.x2.data(), c.y2.data(), c.inter.data(), k, end);
    drop(c.area.data(), c.inter.data(), c.alive.data(), k, end, threshold);
  }
}

Tensor nms_mask(const Tensor boxes, const Tensor scores, const std::optional<Tensor> labels,
           const std::optional<Tensor> valid, double iou_threshold) {
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4, "boxes: expected shape (B, N, 4)");
  const int64_t batch = boxes.size(0), count = boxes.size(1);
  const auto fits = [&](const Tensor& t) { return t.dim() == 2 && t.size(0) == batch && t.size(1) == count; };
  STD_TORCH_CHECK(fits(scores), "scores: expected shape (B, N)");
  STD_TORCH_CHECK(!labels || fits(*labels), "labels: expected shape (B, N)");
  STD_TORCH_CHECK(!valid || (fits(*valid) && valid->scalar_type() == ScalarType::Bool),
                  "valid: expected bool of shape (B, N)");
  STD_TORCH_CHECK(Reader::reads(boxes.scalar_type()) && Reader::reads(scores.scalar_type()) &&
                      (!labels || Reader::reads(labels->scalar_type())),
                  "boxes, scores, labels: expected integers or floats");
  Tensor keep = torch::stable::new_empty(boxes, {batch, count}, ScalarType::Bool);
  bool* out = static_cast<bool*>(keep.mutable_data_ptr());
  Input in{Reader(boxes), Reader(scores), std::nullopt, std::nullopt, count};
  if (labels) in.labels.emplace(*labels);
  if (valid) in.valid.emplace(*valid);
  const bool wide = boxes.scalar_type() == ScalarType::Double;
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (wide) {
        suppress<double>(in, b, iou_threshold, out + b * count);
      } else {
        suppress<float>(in, b, static_cast<float>(iou_threshold), out + b * count);
      }
    }
  });
  return keep;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("nms_mask", TORCH_BOX(&detops::nms_mask)); }
