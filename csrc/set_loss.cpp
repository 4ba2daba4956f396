// The losses of the DETR family, sums and gradients in one pass over the logits: the CPU kernel of set_loss.
//
// The class loss is taken as if no query had a box, by the dense pass that other losses use, and then put right at the
// labels of those that have one. Queries are cut into blocks whose sums are added in order, so that the number of
// threads changes nothing.
#include "boxes.h"
#include "focal.h"
#include "iou_loss.h"
#include "labels.h"

namespace detops {
namespace {

enum SetKind : int64_t { kSoftmax, kFocal, kVarifocal, kMal, kIaBce, kVarifocalLive, kPosition };

constexpr int64_t kBlockLogits = 8192;

struct SetLosses {
  int64_t kind;
  double alpha, gamma, factor;

  // What a class without a box costs is factor p^exponent softplus(x).
  double background_factor() const {
    return kind == kIaBce ? 1 : kind == kVarifocal || kind == kMal ? alpha : 1 - alpha;
  }
  double background_exponent() const { return kind == kIaBce ? 2 : gamma; }
  bool constant_weight() const { return kind == kVarifocal || kind == kMal; }
};

struct Term {
  double loss, gradient;
};

// p, 1 - p, softplus(x) and softplus(-x) of a logit.
struct Sigmoid {
  double p, q, up, down;

  explicit Sigmoid(double x) {
    const double e = std::exp(-std::fabs(x)), r = 1 / (1 + e), l = std::log1p(e);
    p = x < 0 ? e * r : r, q = x < 0 ? r : e * r;
    up = (x < 0 ? 0 : x) + l, down = (x < 0 ? -x : 0) + l;
  }
};

Term background(const SetLosses& f, const Sigmoid& s) {
  const double exponent = f.background_exponent(), weight = f.background_factor() * std::pow(s.p, exponent);
  return {weight * s.up, weight * (s.p + (f.constant_weight() ? 0 : exponent * s.q * s.up))};
}

Term towards(double x, const Sigmoid& s, double target) { return {s.up - target * x, s.p - target}; }

// The loss of a query's logit at its label, where u is the IoU.
Term at_label(const SetLosses& f, double x, const Sigmoid& s, double u) {
  switch (f.kind) {
    case kFocal: {
      const double weight = f.alpha * std::pow(s.q, f.gamma);
      return {weight * s.down, -weight * (s.q + f.gamma * s.p * s.down)};
    }
    case kMal: return towards(x, s, std::pow(u, f.gamma));
    case kIaBce: {
      const double target = std::pow(s.p, f.alpha) * std::pow(u, 1 - f.alpha);
      return towards(x, s, target > 0.01 || target != target ? target : 0.01);
    }
    case kPosition: {
      const double apart = std::fabs(u - s.p), a = u > 0 ? f.alpha : 1 - f.alpha, power = std::pow(apart, f.gamma);
      const Term t = towards(x, s, u);
      const double slope = apart > 0 ? f.gamma * power / apart * (s.p > u ? 1 : -1) : 0;
      return {a * power * t.loss, a * (slope * s.p * s.q * t.loss + power * t.gradient)};
    }
    default: {
      if (f.kind == kVarifocalLive && u == 0) return background(f, s);
      const Term t = towards(x, s, u);
      return {u * t.loss, u * t.gradient};
    }
  }
}

#define DETOPS_DENSE(T, Compute)                                                                                   \
  DETOPS_CLONES DETOPS_FLATTEN double dense_square(const T* x, T* g, int64_t count, const FocalFactors& f) {       \
    return focal_run<Exponents::kTwoFour, false, false, T, Compute, Compute>(x, nullptr, nullptr, g, count, f);    \
  }                                                                                                                \
  DETOPS_CLONES DETOPS_FLATTEN double dense_any(const T* x, T* g, int64_t count, const FocalFactors& f) {          \
    return focal_run<Exponents::kAny, false, false, T, Compute, Compute>(x, nullptr, nullptr, g, count, f);        \
  }                                                                                                                \
  /* -log softmax(x)[label], and its gradient times `scale`; a NaN reaches both. */                                \
  DETOPS_CLONES double softmax_row(const T* x, T* g, int64_t count, int64_t label, double scale) {                 \
    Compute most = static_cast<Compute>(x[0]), sum = 0;                                                            \
    for (int64_t c = 1; c < count; ++c) most = static_cast<Compute>(x[c]) > most ? static_cast<Compute>(x[c]) : most; \
    for (int64_t c = 0; c < count; ++c) {                                                                          \
      const Compute y = static_cast<Compute>(x[c]);                                                                \
      sum += exp_negative(y - most) + (y == y ? Compute(0) : std::numeric_limits<Compute>::quiet_NaN());           \
    }                                                                                                              \
    const Compute share = 1 / sum, factor = static_cast<Compute>(scale);                                           \
    for (int64_t c = 0; g != nullptr && c < count; ++c) {                                                          \
      const Compute p = exp_negative(static_cast<Compute>(x[c]) - most) * share;                                   \
      g[c] = static_cast<T>(factor * (p - (c == label ? Compute(1) : Compute(0))));                                \
    }                                                                                                              \
    return std::log(static_cast<double>(sum)) + static_cast<double>(most) - static_cast<double>(x[label]);         \
  }
DETOPS_DENSE(float, float)
DETOPS_DENSE(Half, float)
DETOPS_DENSE(BFloat16, float)
DETOPS_DENSE(double, double)

// A tensor (S, B, Q, C) whose last dimension is contiguous.
template <class T>
struct Rows {
  T* data;
  int64_t set, image, query;

  explicit Rows(const Tensor& t, T* data) : data(data), set(t.stride(0)), image(t.stride(1)), query(t.stride(2)) {}
  T* at(int64_t s, int64_t b, int64_t q) const { return data + s * set + b * image + q * query; }
};

struct Input {
  int64_t sets, batch, queries, classes, boxes;
  Reader pred, gt, scale;
  Labels labels;
  const int64_t *index, *box_index;
  std::optional<Reader> quality;
  std::vector<double> weights;
  SetLosses losses;

  // The factor of the class, L1 or GIoU loss.
  double factor(int64_t s, int64_t k) const { return scale.at(s, k > 0) * weights[k]; }

  double iou(int64_t s, int64_t b, int64_t q, int64_t n) const {
    const auto box = [](const Reader& r, int64_t i, int64_t j, int64_t k, bool four) {
      double v[4];
      for (int64_t d = 0; d < 4; ++d) v[d] = four ? r.at(i, j, k, d) : r.at(i, j, d);
      return box_around(v[0], v[1], v[2], v[3]);
    };
    const Box<double> p = box(pred, s, b, q, true), t = box(gt, b, n, 0, false);
    const double inter = intersection(t, p), value = inter / (area(p) + area(t) - inter + kEps);
    return value < 0 ? 0 : value > 1 ? 1 : value;
  }
};

// The class loss of queries [first, last) of one image of one set, without its scale.
template <class T>
double class_block(const Input& in, const Rows<const T>& logits, const Rows<T>* gradients, int64_t s, int64_t b,
                   int64_t first, int64_t last) {
  const SetLosses& f = in.losses;
  const int64_t* index = in.index + (s * in.batch + b) * in.queries;
  const double scale = in.factor(s, 0);
  FocalFactors dense(f.background_exponent(), 4, 1, f.background_factor(), std::nullopt);
  dense.scale = scale;
  dense.slope = f.constant_weight() ? 0 : f.background_exponent();
  double sum = 0;
  for (int64_t q = first; q < last;) {
    T* g = gradients ? gradients->at(s, b, q) : nullptr;
    if (index[q] < -1) {
      if (g) std::fill(g, g + in.classes, T(0));
      ++q;
      continue;
    }
    const T* x = logits.at(s, b, q);
    if (f.kind == kSoftmax) {
      const int64_t label = index[q] >= 0 ? in.labels.at(b, index[q], in.classes) : -1;
      const double weight = label >= 0 ? 1 : f.factor;
      sum += weight * softmax_row(x, g, in.classes, label >= 0 ? label : in.classes - 1, weight * scale);
      ++q;
      continue;
    }
    int64_t end = q + 1;  // a run of queries whose rows follow each other
    const bool joined = logits.query == in.classes && (!gradients || gradients->query == in.classes);
    while (joined && end < last && index[end] >= -1) ++end;
    const int64_t count = (end - q) * in.classes;
    sum += dense.two_four ? dense_square(x, g, count, dense) : dense_any(x, g, count, dense);
    for (; q < end; ++q) {
      const int64_t label = index[q] >= 0 ? in.labels.at(b, index[q], in.classes) : -1;
      if (label < 0) continue;
      const double logit = static_cast<double>(logits.at(s, b, q)[label]);
      const Sigmoid sigmoid(logit);
      const double u = in.quality ? in.quality->at(s, b, q) : f.kind == kFocal ? 0 : in.iou(s, b, q, index[q]);
      const Term term = at_label(f, logit, sigmoid, u);
      sum += term.loss - background(f, sigmoid).loss;
      if (gradients) gradients->at(s, b, q)[label] = static_cast<T>(scale * term.gradient);
    }
  }
  return sum;
}

// The box losses of the same queries, without their scales.
template <class T>
void box_block(const Input& in, T* l1_gradient, T* giou_gradient, int64_t s, int64_t b, int64_t first, int64_t last,
               double* sums) {
  const int64_t* index = in.box_index + (s * in.batch + b) * in.queries;
  const double by_l1 = in.factor(s, 1), by_giou = in.factor(s, 2);
  for (int64_t q = first; q < last; ++q) {
    const int64_t at = ((s * in.batch + b) * in.queries + q) * 4;
    if (l1_gradient) std::fill(l1_gradient + at, l1_gradient + at + 4, T(0));
    if (l1_gradient) std::fill(giou_gradient + at, giou_gradient + at + 4, T(0));
    if (index[q] < 0 || index[q] >= in.boxes) continue;
    double p[4], t[4], gradient[4];
    for (int64_t d = 0; d < 4; ++d) p[d] = in.pred.at(s, b, q, d), t[d] = in.gt.at(b, index[q], d);
    for (int64_t d = 0; d < 4; ++d) sums[1] += std::fabs(p[d] - t[d]);
    sums[2] += iou_loss(p, t, kGiou, gradient);
    for (int64_t d = 0; l1_gradient && d < 4; ++d) {
      l1_gradient[at + d] = static_cast<T>(by_l1 * (p[d] > t[d] ? 1.0 : p[d] < t[d] ? -1.0 : 0.0));
      giou_gradient[at + d] = static_cast<T>(by_giou * gradient[d]);
    }
  }
}

template <class F>
void with_type(ScalarType type, const char* name, F&& call) {
  switch (type) {
    case ScalarType::Float: return call(float());
    case ScalarType::Half: return call(Half());
    case ScalarType::BFloat16: return call(BFloat16());
    case ScalarType::Double: return call(double());
    default: STD_TORCH_CHECK(false, name, ": expected float32, float16, bfloat16 or float64");
  }
}

std::tuple<Tensor, Tensor, Tensor> set_loss(const Tensor class_logits, const Tensor pred_boxes, const Tensor gt_boxes,
                                            const Tensor gt_labels, const Tensor index,
                                            const std::optional<Tensor> box_index, const std::optional<Tensor> quality,
                                            const Tensor scale, const std::vector<double> weights, int64_t kind, double alpha, double gamma,
                                            double factor, bool with_gradient) {
  STD_TORCH_CHECK(has_numbers(class_logits, {-1, -1, -1, -1}), "class_logits: expected numbers of shape (S, B, Q, C)");
  const int64_t sets = class_logits.size(0), batch = class_logits.size(1), queries = class_logits.size(2);
  const int64_t classes = class_logits.size(3);
  STD_TORCH_CHECK(classes < 2 || class_logits.stride(3) == 1, "class_logits: expected contiguous rows");
  STD_TORCH_CHECK(has_numbers(pred_boxes, {sets, batch, queries, 4}),
                  "pred_boxes: expected numbers of shape (S, B, Q, 4)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {batch, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  check_labels(gt_labels, std::nullopt, batch, gt_boxes.size(1), "gt_labels");
  const auto is_index = [&](const Tensor& t) {
    return has_shape(t, {sets, batch, queries}) && t.scalar_type() == ScalarType::Long && t.is_contiguous();
  };
  STD_TORCH_CHECK(is_index(index), "index: expected contiguous int64 of shape (S, B, Q)");
  STD_TORCH_CHECK(!box_index || is_index(*box_index), "box_index: expected contiguous int64 of shape (S, B, Q)");
  STD_TORCH_CHECK(!quality || has_numbers(*quality, {sets, batch, queries}),
                  "quality: expected numbers of shape (S, B, Q)");
  STD_TORCH_CHECK(has_numbers(scale, {sets, 2}), "scale: expected numbers of shape (S, 2)");
  STD_TORCH_CHECK(weights.size() == 3, "weights: expected 3 numbers");
  STD_TORCH_CHECK(kind >= kSoftmax && kind <= kPosition, "kind: expected 0 .. 6");
  const auto pointer = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  const Input in{sets, batch, queries, classes, gt_boxes.size(1), Reader(pred_boxes), Reader(gt_boxes), Reader(scale),
                 Labels(gt_labels, std::nullopt, gt_boxes.size(1)), pointer(index),
                 box_index ? pointer(*box_index) : pointer(index), reader_of(quality), weights,
                 {kind, alpha, gamma, factor}};
  using torch::stable::new_empty;
  Tensor gradient = with_gradient ? torch::stable::empty_like(class_logits) : new_empty(class_logits, {0});
  Tensor box_gradient = with_gradient ? new_empty(pred_boxes, {2, sets, batch, queries, 4}) : new_empty(pred_boxes, {0});
  const int64_t each = std::max<int64_t>(1, kBlockLogits / std::max<int64_t>(classes, 1));
  const int64_t blocks = (queries + each - 1) / each;
  std::vector<double> sums(sets * batch * blocks * 3);
  with_type(class_logits.scalar_type(), "class_logits", [&](auto zero) {
    using T = decltype(zero);
    const Rows<const T> logits(class_logits, static_cast<const T*>(class_logits.const_data_ptr()));
    const Rows<T> out(with_gradient ? gradient : class_logits,
                      with_gradient ? static_cast<T*>(gradient.mutable_data_ptr()) : nullptr);
    torch::stable::parallel_for(0, sets * batch * blocks, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks % batch, s = i / blocks / batch, first = i % blocks * each;
        sums[i * 3] = class_block<T>(in, logits, with_gradient ? &out : nullptr, s, b, first,
                                     std::min(queries, first + each));
      }
    });
  });
  with_type(pred_boxes.scalar_type(), "pred_boxes", [&](auto zero) {
    using T = decltype(zero);
    T* l1 = with_gradient ? static_cast<T*>(box_gradient.mutable_data_ptr()) : nullptr;
    T* giou = with_gradient ? l1 + sets * batch * queries * 4 : nullptr;
    torch::stable::parallel_for(0, sets * batch * blocks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks % batch, s = i / blocks / batch, first = i % blocks * each;
        box_block<T>(in, l1, giou, s, b, first, std::min(queries, first + each), sums.data() + i * 3);
      }
    });
  });
  const bool wide = class_logits.scalar_type() == ScalarType::Double;
  Tensor losses = new_empty(class_logits, {sets, 3}, wide ? ScalarType::Double : ScalarType::Float);
  void* to = losses.mutable_data_ptr();
  for (int64_t s = 0; s < sets; ++s) {
    for (int64_t k = 0; k < 3; ++k) {
      double total = 0;
      for (int64_t i = s * batch * blocks; i < (s + 1) * batch * blocks; ++i) total += sums[i * 3 + k];
      total *= in.factor(s, k);
      if (wide) {
        static_cast<double*>(to)[s * 3 + k] = total;
      } else {
        static_cast<float*>(to)[s * 3 + k] = static_cast<float>(total);
      }
    }
  }
  return {losses, gradient, box_gradient};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("set_loss", TORCH_BOX(&detops::set_loss)); }
