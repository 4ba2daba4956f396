// YOLOX's losses and their gradient in one pass over the outputs: the CPU kernel of yolox_loss.
//
// Cells are divided among torch's threads in blocks of fixed size. Each block writes its part of the gradient and one
// sum per loss; these are added in order, so the result does not depend on the number of threads.
#include "focal.h"
#include "given_boxes.h"
#include "iou_loss.h"
#include "outputs.h"

#include <tuple>

namespace detops {
namespace {

constexpr int64_t kBlock = 512;    // cells
constexpr double kLongest = 1e18;  // side of a predicted box, in pixels
constexpr double kIgnored = -2;    // index of an ignored cell

struct Options {
  int64_t kind;
  bool use_l1;
  double iou_weight, obj_weight, cls_weight;
  double scale, obj_scale;  // factor of the losses of positives, and of the objectness loss
};

struct Sums {
  double iou = 0, obj = 0, cls = 0, l1 = 0;
};

// Returns log(1 + e^x), and writes the sigmoid of x to `sigmoid`.
template <class C>
inline C softplus(C x, C& sigmoid) {
  const C e = exp_negative(x < 0 ? x : -x), r = C(1) / (C(1) + e);
  sigmoid = (x < 0 ? e * r : r) + x * C(0);  // a logit that is not finite makes it NaN
  return (x < 0 ? C(0) : x) + log1p_of(e) + x * C(0);
}

// class_row: the binary cross-entropy of a row of logits, with `target` for one class and 0 for the others, and its
// gradient. objectness_row: the sum of softplus of a row of logits, and their sigmoids.
#define DETOPS_ROW(C)                                                                                              \
  DETOPS_CLONES C class_row(const C* logits, const C* pos_weight, int64_t count, int64_t label, C target, C scale, \
                            C* gradient) {                                                                         \
    C lanes[16] = {};                                                                                              \
    int64_t c = 0;                                                                                                 \
    for (; c + 16 <= count; c += 16) {                                                                             \
      for (int i = 0; i < 16; ++i) {                                                                               \
        C p;                                                                                                       \
        lanes[i] += softplus(logits[c + i], p);                                                                    \
        gradient[c + i] = scale * p;                                                                               \
      }                                                                                                            \
    }                                                                                                              \
    for (; c < count; ++c) {                                                                                       \
      C p;                                                                                                         \
      lanes[c % 16] += softplus(logits[c], p);                                                                     \
      gradient[c] = scale * p;                                                                                     \
    }                                                                                                              \
    C sum = 0;                                                                                                     \
    for (C lane : lanes) sum += lane;                                                                              \
    C p;                                                                                                           \
    const C down = softplus(logits[label], p), up = down - logits[label];                                          \
    const C weight = pos_weight == nullptr ? C(1) : pos_weight[label];                                             \
    gradient[label] = scale * ((1 - target) * p - weight * target * (1 - p));                                      \
    return sum - down + weight * target * up + (1 - target) * down;                                                \
  }                                                                                                                \
  DETOPS_CLONES C objectness_row(const C* logits, int64_t count, C* sigmoid) {                                     \
    C lanes[16] = {};                                                                                              \
    int64_t c = 0;                                                                                                 \
    for (; c + 16 <= count; c += 16) {                                                                             \
      for (int i = 0; i < 16; ++i) lanes[i] += softplus(logits[c + i], sigmoid[c + i]);                            \
    }                                                                                                              \
    for (; c < count; ++c) lanes[c % 16] += softplus(logits[c], sigmoid[c]);                                       \
    C sum = 0;                                                                                                     \
    for (C lane : lanes) sum += lane;                                                                              \
    return sum;                                                                                                    \
  }
DETOPS_ROW(float)
DETOPS_ROW(double)

struct Targets {
  Reader cells;
  GivenBoxes boxes;
  Reader labels, index, iou;
  std::vector<double> pos_weight;
  int64_t num_boxes, classes;
};

// One level's outputs (B, rows, 5 + C), and their gradient.
template <class T, class C>
struct Level {
  const T* data;
  int64_t stride_b, stride_r, stride_c;
  T* gradient;  // contiguous, or null
  int64_t rows, start;

  const T* row(int64_t b, int64_t r) const { return data + b * stride_b + r * stride_r; }
  C at(int64_t b, int64_t r, int64_t c) const { return static_cast<C>(row(b, r)[c * stride_c]); }
};

template <class T, class C>
void positive_cell(const Level<T, C>& level, const Targets& targets, const Options& o, const C* pos_weight, int64_t b,
                   int64_t r, int64_t n, C* logits, C* gradient, Sums& sums) {
  const int64_t a = level.start + r, classes = targets.classes;
  const C side = static_cast<C>(targets.cells.at(a, 2));
  // Relative to the centre of the cell, so that a small box far from the origin keeps its digits.
  const auto [cx, cy, width, height] = targets.boxes.at<C>(b, n);
  const C target[4] = {static_cast<C>(cx - targets.cells.at(a, 0)), static_cast<C>(cy - targets.cells.at(a, 1)), width,
                       height};
  C t[4], pred[4], exact[4], by[4], slope[4];
  for (int i = 0; i < 4; ++i) t[i] = level.at(b, r, i);
  for (int i = 0; i < 2; ++i) {
    pred[i] = (t[i] - C(0.5)) * side;
    const C long_ = std::exp(t[2 + i]) * side;
    const bool capped = long_ > C(kLongest);                         // products of sides stay finite
    pred[2 + i] = (capped ? C(kLongest) : long_) + C(0) * t[2 + i];  // an infinite logit shows as NaN
    slope[i] = side, slope[2 + i] = capped ? C(0) : pred[2 + i];
    exact[i] = target[i] / side + C(0.5);
    exact[2 + i] = std::log(target[2 + i] / side + C(1e-8));
  }
  sums.iou += iou_loss(pred, target, o.kind, by);
  for (int i = 0; i < 4; ++i) {
    by[i] *= C(o.iou_weight) * slope[i];
    if (o.use_l1) {
      const C away = t[i] - exact[i];
      sums.l1 += away < 0 ? -away : away;
      by[i] += away > 0 ? C(1) : away < 0 ? C(-1) : C(0);
    }
  }
  for (int64_t c = 0; c < classes; ++c) logits[c] = level.at(b, r, 5 + c);
  const C matched = static_cast<C>(targets.iou.at(b, a));
  const int64_t label = static_cast<int64_t>(targets.labels.at(b, n));
  sums.cls += class_row(logits, pos_weight, classes, label, matched, C(o.cls_weight * o.scale), gradient);
  if (level.gradient == nullptr) return;
  T* out = level.gradient + (b * level.rows + r) * (5 + classes);
  for (int i = 0; i < 4; ++i) out[i] = static_cast<T>(by[i] * C(o.scale));
  for (int64_t c = 0; c < classes; ++c) out[5 + c] = static_cast<T>(gradient[c]);
}

template <class T, class C>
Sums block(const Level<T, C>& level, const Targets& targets, const Options& o, const C* pos_weight, int64_t b,
           int64_t begin, int64_t end) {
  C logits[kBlock], sigmoid[kBlock];
  double chosen_box[kBlock];
  std::vector<C> row(targets.classes), row_gradient(targets.classes);
  Sums sums;
  const int64_t width = 5 + targets.classes;
  for (int64_t r = begin; r < end; ++r) {
    const double chosen = chosen_box[r - begin] = targets.index.at(b, level.start + r);
    logits[r - begin] = chosen == kIgnored ? C(-1e4) : level.at(b, r, 4);  // the loss of such a logit is 0
  }
  sums.obj = objectness_row(logits, end - begin, sigmoid);
  if (level.gradient != nullptr) {
    T* out = level.gradient + (b * level.rows + begin) * width;
    std::fill(out, out + (end - begin) * width, static_cast<T>(0.0f));
  }
  for (int64_t r = begin; r < end; ++r) {
    const double chosen = chosen_box[r - begin];
    const bool positive = chosen >= 0 && chosen < static_cast<double>(targets.num_boxes);
    const int64_t n = positive ? static_cast<int64_t>(chosen) : 0;
    if (level.gradient != nullptr) {
      const C slope = chosen == kIgnored ? C(0) : sigmoid[r - begin] - (positive ? C(1) : C(0));
      level.gradient[(b * level.rows + r) * width + 4] = static_cast<T>(C(o.obj_weight * o.obj_scale) * slope);
    }
    if (!positive) continue;
    sums.obj -= logits[r - begin];
    const double label = targets.labels.at(b, n);
    if (!(label >= 0 && label < static_cast<double>(targets.classes))) continue;  // the label is no class
    positive_cell(level, targets, o, pos_weight, b, r, n, row.data(), row_gradient.data(), sums);
  }
  return sums;
}

template <class T, class C>
Sums one_level(const Tensor& output, Tensor* gradient, const Targets& targets, const Options& o, int64_t start) {
  const std::vector<C> pos_weight(targets.pos_weight.begin(), targets.pos_weight.end());
  Level<T, C> level{static_cast<const T*>(output.const_data_ptr()),
                    output.stride(0),
                    output.stride(1),
                    output.stride(2),
                    gradient ? static_cast<T*>(gradient->mutable_data_ptr()) : nullptr,
                    output.size(1),
                    start};
  const int64_t batch = output.size(0), per_image = (level.rows + kBlock - 1) / kBlock;
  std::vector<Sums> parts(batch * per_image);
  torch::stable::parallel_for(0, batch * per_image, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % per_image * kBlock;
      parts[i] = block(level, targets, o, pos_weight.empty() ? nullptr : pos_weight.data(), i / per_image, begin,
                       std::min(level.rows, begin + kBlock));
    }
  });
  Sums sums;
  for (const Sums& part : parts) {
    sums.iou += part.iou, sums.obj += part.obj, sums.cls += part.cls, sums.l1 += part.l1;
  }
  return sums;
}

// Writes the losses, and with their weights those of the boxes, of objectness and of the classes.
template <class C>
void write_losses(const Sums& sums, const Options& o, Tensor& weighted, Tensor& parts) {
  C* part = static_cast<C*>(parts.mutable_data_ptr());
  part[0] = static_cast<C>(sums.iou * o.scale), part[1] = static_cast<C>(sums.obj * o.obj_scale);
  part[2] = static_cast<C>(sums.cls * o.scale), part[3] = static_cast<C>(sums.l1 * o.scale);
  C* loss = static_cast<C*>(weighted.mutable_data_ptr());
  loss[0] = static_cast<C>(o.iou_weight) * part[0] + part[3];
  loss[1] = static_cast<C>(o.obj_weight) * part[1];
  loss[2] = static_cast<C>(o.cls_weight) * part[2];
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> yolox_loss(const std::vector<Tensor> outputs, const Tensor cells,
                                                           const Tensor gt_boxes, const Tensor gt_labels,
                                                           const Tensor index, const Tensor iou, const Tensor scale,
                                                           const std::optional<Tensor> class_pos_weight, int64_t kind,
                                                           bool use_l1, double iou_weight, double obj_weight,
                                                           double cls_weight, bool with_gradient, bool cxcywh) {
  STD_TORCH_CHECK(!outputs.empty() && outputs[0].dim() == 3 && outputs[0].size(2) >= 5,
                  "outputs: expected levels of shape (B, A_l, 5 + C)");
  const int64_t batch = outputs[0].size(0), width = outputs[0].size(2);
  int64_t count = 0;
  for (const Tensor& output : outputs) {
    STD_TORCH_CHECK(output.dim() == 3 && output.size(0) == batch && output.size(2) == width &&
                        output.scalar_type() == outputs[0].scalar_type(),
                    "outputs: expected levels of shape (B, A_l, 5 + C) and of one dtype");
    count += output.size(1);
  }
  STD_TORCH_CHECK(has_numbers(cells, {count, 3}), "cells: expected numbers of shape (A, 3)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {batch, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  const int64_t boxes = gt_boxes.size(1);
  STD_TORCH_CHECK(has_numbers(gt_labels, {batch, boxes}), "gt_labels: expected numbers of shape (B, N)");
  STD_TORCH_CHECK(has_numbers(index, {batch, count}), "index: expected numbers of shape (B, A)");
  STD_TORCH_CHECK(has_numbers(iou, {batch, count}), "iou: expected numbers of shape (B, A)");
  STD_TORCH_CHECK(has_numbers(scale, {2}), "scale: expected numbers of shape (2,)");
  STD_TORCH_CHECK(kind >= kSquared && kind <= kCiou, "kind: expected 0 .. 4");
  Targets targets{Reader(cells), GivenBoxes(gt_boxes, cxcywh), Reader(gt_labels), Reader(index), Reader(iou), {}, boxes,
                  width - 5};
  if (class_pos_weight) {
    STD_TORCH_CHECK(has_numbers(*class_pos_weight, {width - 5}), "class_pos_weight: expected numbers of shape (C,)");
    for (int64_t c = 0; c < width - 5; ++c) targets.pos_weight.push_back(Reader(*class_pos_weight).at(c));
  }
  const Options options{kind, use_l1, iou_weight, obj_weight, cls_weight, Reader(scale).at(0), Reader(scale).at(1)};

  std::vector<Tensor> gradients;
  Sums total;
  int64_t start = 0;
  for (const Tensor& output : outputs) {
    const std::initializer_list<int64_t> shape = {batch, output.size(1), width};
    gradients.push_back(with_gradient ? in_huge_pages(torch::stable::new_empty(output, shape))
                                      : torch::stable::new_empty(output, {0}));
    Tensor* gradient = with_gradient ? &gradients.back() : nullptr;
    Sums sums;
    switch (output.scalar_type()) {
      case ScalarType::Float: sums = one_level<float, float>(output, gradient, targets, options, start); break;
      case ScalarType::Double: sums = one_level<double, double>(output, gradient, targets, options, start); break;
      case ScalarType::Half: sums = one_level<Half, float>(output, gradient, targets, options, start); break;
      case ScalarType::BFloat16: sums = one_level<BFloat16, float>(output, gradient, targets, options, start); break;
      default: STD_TORCH_CHECK(false, "outputs: expected float32, float16, bfloat16 or float64");
    }
    total.iou += sums.iou, total.obj += sums.obj, total.cls += sums.cls, total.l1 += sums.l1;
    start += output.size(1);
  }
  const bool wide = outputs[0].scalar_type() == ScalarType::Double;
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  Tensor weighted = torch::stable::new_empty(outputs[0], {3}, type);
  Tensor parts = torch::stable::new_empty(outputs[0], {4}, type);
  wide ? write_losses<double>(total, options, weighted, parts) : write_losses<float>(total, options, weighted, parts);
  return {weighted, parts, gradients};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("yolox_loss", TORCH_BOX(&detops::yolox_loss)); }
