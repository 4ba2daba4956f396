// The losses of the DETR family, sums and gradients in one pass over the logits: the CPU kernel of set_loss.
//
// The class loss is taken as if no query had a box, by the dense pass that other losses use, and then put right at the
// labels of those that have one. Queries are cut into blocks whose sums are added in order, so that the number of
// threads changes nothing.
#include "boxes.h"
#include "focal.h"
#include "iou_loss.h"
#include "labels.h"
#include "set_parts.h"
#include "outputs.h"

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

#define DETOPS_DENSE(T, Compute)                                                                                      \
  DETOPS_CLONES DETOPS_FLATTEN double dense_square(const T* x, T* g, int64_t count, const FocalFactors& f) {          \
    return focal_run<Exponents::kTwoFour, false, false, T, Compute, Compute>(x, nullptr, nullptr, g, count, f);       \
  }                                                                                                                   \
  DETOPS_CLONES DETOPS_FLATTEN double dense_any(const T* x, T* g, int64_t count, const FocalFactors& f) {             \
    return focal_run<Exponents::kAny, false, false, T, Compute, Compute>(x, nullptr, nullptr, g, count, f);           \
  }                                                                                                                   \
  /* -log softmax(x)[label], and its gradient times `scale`; a NaN reaches both. */                                   \
  DETOPS_CLONES double softmax_row(const T* x, T* g, int64_t count, int64_t label, double scale) {                    \
    Compute most = static_cast<Compute>(x[0]), sum = 0;                                                               \
    for (int64_t c = 1; c < count; ++c) most = static_cast<Compute>(x[c]) > most ? static_cast<Compute>(x[c]) : most; \
    for (int64_t c = 0; c < count; ++c) {                                                                             \
      const Compute y = static_cast<Compute>(x[c]);                                                                   \
      sum += exp_negative(y - most) + (y == y ? Compute(0) : std::numeric_limits<Compute>::quiet_NaN());              \
    }                                                                                                                 \
    const Compute share = 1 / sum, factor = static_cast<Compute>(scale);                                              \
    for (int64_t c = 0; g != nullptr && c < count; ++c) {                                                             \
      const Compute p = exp_negative(static_cast<Compute>(x[c]) - most) * share;                                      \
      g[c] = static_cast<T>(factor * (p - (c == label ? Compute(1) : Compute(0))));                                   \
    }                                                                                                                 \
    return std::log(static_cast<double>(sum)) + static_cast<double>(most) - static_cast<double>(x[label]);            \
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
  int64_t batch, classes, boxes;
  std::vector<Reader> pred;  // of each tensor
  Reader gt, scale;
  Labels labels;
  const int64_t *index, *box_index;
  std::optional<Reader> quality;
  std::vector<double> weights;
  SetLosses losses;
  bool clamp;

  // The factor of the class, L1 or GIoU loss of a set, counted through all parts.
  double factor(int64_t set, int64_t k) const { return scale.at(set, k > 0) * weights[k]; }

  void read(int64_t tensor, int64_t s, int64_t b, int64_t q, double* to) const {
    for (int64_t d = 0; d < 4; ++d) {
      const double v = pred[tensor].at(s, b, q, d);
      to[d] = clamp && v < 0 ? 0 : clamp && v > 1 ? 1 : v;
    }
  }

  double iou(int64_t tensor, int64_t s, int64_t b, int64_t q, int64_t n) const {
    double v[4];
    read(tensor, s, b, q, v);
    const Box<double> p = box_around(v[0], v[1], v[2], v[3]);
    const Box<double> t = box_around(gt.at(b, n, 0), gt.at(b, n, 1), gt.at(b, n, 2), gt.at(b, n, 3));
    const double inter = intersection(t, p), value = inter / (area(p) + area(t) - inter + kEps);
    return value < 0 ? 0 : value > 1 ? 1 : value;
  }
};

// A run of queries of one image of one set of a part.
struct Block {
  const SetPart* part;
  int64_t set, image, first, last;  // set and queries are counted within the part

  int64_t row(int64_t batch) const { return part->rows_before + (set * batch + image) * part->queries; }
};

// The class loss of a block, without its scale.
template <class T>
double class_block(const Input& in, const Rows<const T>& logits, const Rows<T>* gradients, const Block& block) {
  const SetLosses& f = in.losses;
  const int64_t row = block.row(in.batch), s = block.part->first_set + block.set, b = block.image;
  const int64_t before = block.part->first_query;
  const int64_t* index = in.index + row;
  const double scale = in.factor(block.part->sets_before + block.set, 0);
  FocalFactors dense(f.background_exponent(), 4, 1, f.background_factor(), std::nullopt);
  dense.scale = scale;
  dense.slope = f.constant_weight() ? 0 : f.background_exponent();
  double sum = 0;
  for (int64_t q = block.first; q < block.last;) {
    T* g = gradients ? gradients->at(s, b, before + q) : nullptr;
    if (index[q] < -1) {
      if (g) std::fill(g, g + in.classes, T(0));
      ++q;
      continue;
    }
    const T* x = logits.at(s, b, before + q);
    if (f.kind == kSoftmax) {
      const int64_t label = index[q] >= 0 ? in.labels.at(b, index[q], in.classes) : -1;
      const double weight = label >= 0 ? 1 : f.factor;
      sum += weight * softmax_row(x, g, in.classes, label >= 0 ? label : in.classes - 1, weight * scale);
      ++q;
      continue;
    }
    int64_t end = q + 1;  // a run of queries whose rows follow each other
    const bool joined = logits.query == in.classes && (!gradients || gradients->query == in.classes);
    while (joined && end < block.last && index[end] >= -1) ++end;
    const int64_t count = (end - q) * in.classes;
    sum += dense.two_four ? dense_square(x, g, count, dense) : dense_any(x, g, count, dense);
    for (; q < end; ++q) {
      const int64_t label = index[q] >= 0 ? in.labels.at(b, index[q], in.classes) : -1;
      if (label < 0) continue;
      const double logit = static_cast<double>(logits.at(s, b, before + q)[label]);
      const Sigmoid sigmoid(logit);
      const double u = in.quality         ? std::clamp(in.quality->at(row + q), 0.0, 1.0)
                       : f.kind == kFocal ? 0
                                          : in.iou(block.part->tensor, s, b, before + q, index[q]);
      const Term term = at_label(f, logit, sigmoid, u);
      sum += term.loss - background(f, sigmoid).loss;
      if (gradients) gradients->at(s, b, before + q)[label] = static_cast<T>(scale * term.gradient);
    }
  }
  return sum;
}

// The box losses of a block, without their scales.
template <class T>
void box_block(const Input& in, T* l1_gradient, T* giou_gradient, const Block& block, double* sums) {
  const int64_t row = block.row(in.batch), s = block.part->first_set + block.set, b = block.image;
  const int64_t set = block.part->sets_before + block.set;
  const double by_l1 = in.factor(set, 1), by_giou = in.factor(set, 2);
  for (int64_t q = block.first; q < block.last; ++q) {
    const int64_t at = (row + q) * 4, n = in.box_index[row + q];
    if (l1_gradient) std::fill(l1_gradient + at, l1_gradient + at + 4, T(0));
    if (l1_gradient) std::fill(giou_gradient + at, giou_gradient + at + 4, T(0));
    if (n < 0 || n >= in.boxes) continue;
    double p[4], t[4], gradient[4];
    in.read(block.part->tensor, s, b, block.part->first_query + q, p);
    for (int64_t d = 0; d < 4; ++d) t[d] = in.gt.at(b, n, d);
    for (int64_t d = 0; d < 4; ++d) sums[1] += std::fabs(p[d] - t[d]);
    sums[2] += iou_loss(p, t, kGiou, gradient);
    for (int64_t d = 0; l1_gradient && d < 4; ++d) {
      const double v = in.pred[block.part->tensor].at(s, b, block.part->first_query + q, d);
      if (in.clamp && !(v >= 0 && v <= 1)) continue;
      l1_gradient[at + d] = static_cast<T>(by_l1 * (p[d] > t[d] ? 1.0 : p[d] < t[d] ? -1.0 : 0.0));
      giou_gradient[at + d] = static_cast<T>(by_giou * gradient[d]);
    }
  }
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> set_loss(
    const std::vector<Tensor> class_logits, const std::vector<Tensor> pred_boxes, const std::vector<int64_t> parts,
    const Tensor gt_boxes, const Tensor gt_labels, const Tensor index, const std::optional<Tensor> box_index,
    const std::optional<Tensor> quality, const Tensor scale, const std::vector<double> weights, int64_t kind,
    double alpha, double gamma, double factor, bool clamp, bool with_gradient) {
  STD_TORCH_CHECK(has_numbers(gt_boxes, {-1, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  const int64_t batch = gt_boxes.size(0);
  check_labels(gt_labels, std::nullopt, batch, gt_boxes.size(1), "gt_labels");
  STD_TORCH_CHECK(!class_logits.empty() && class_logits[0].dim() == 4,
                  "class_logits: expected tensors of shape (S, B, Q, C)");
  STD_TORCH_CHECK(pred_boxes.size() == class_logits.size(), "pred_boxes: expected as many as class_logits");
  const int64_t classes = class_logits[0].size(3);
  for (size_t i = 0; i < class_logits.size(); ++i) {
    const Tensor& t = class_logits[i];
    STD_TORCH_CHECK(has_numbers(t, {-1, batch, -1, classes}) && t.scalar_type() == class_logits[0].scalar_type(),
                    "class_logits: expected tensors of shape (S, B, Q, C) of one dtype");
    STD_TORCH_CHECK(classes < 2 || t.stride(3) == 1, "class_logits: expected contiguous rows");
    STD_TORCH_CHECK(has_numbers(pred_boxes[i], {t.size(0), batch, t.size(2), 4}) &&
                        pred_boxes[i].scalar_type() == pred_boxes[0].scalar_type(),
                    "pred_boxes: expected tensors of numbers of shape (S, B, Q, 4) of one dtype");
  }
  const std::vector<SetPart> all = parts_of(parts, class_logits, batch);
  const int64_t sets = sets_of(all), rows = rows_of(all, batch);
  const auto is_index = [&](const Tensor& t) {
    return has_shape(t, {rows}) && t.scalar_type() == ScalarType::Long && t.is_contiguous();
  };
  STD_TORCH_CHECK(is_index(index), "index: expected contiguous int64, one for each query of the parts");
  STD_TORCH_CHECK(!box_index || is_index(*box_index), "box_index: expected contiguous int64, as index");
  STD_TORCH_CHECK(!quality || has_numbers(*quality, {rows}), "quality: expected numbers, as many as index");
  STD_TORCH_CHECK(has_numbers(scale, {sets, 2}), "scale: expected numbers of shape (R, 2)");
  STD_TORCH_CHECK(weights.size() == 3, "weights: expected 3 numbers");
  STD_TORCH_CHECK(kind >= kSoftmax && kind <= kPosition, "kind: expected 0 .. 6");
  const auto pointer = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  std::vector<Reader> readers;
  for (const Tensor& t : pred_boxes) readers.emplace_back(t);
  const Input in{batch,
                 classes,
                 gt_boxes.size(1),
                 readers,
                 Reader(gt_boxes),
                 Reader(scale),
                 Labels(gt_labels, std::nullopt, gt_boxes.size(1)),
                 pointer(index),
                 box_index ? pointer(*box_index) : pointer(index),
                 reader_of(quality),
                 weights,
                 {kind, alpha, gamma, factor},
                 clamp};
  using torch::stable::new_empty;
  std::vector<Tensor> gradients;
  for (size_t i = 0; with_gradient && i < class_logits.size(); ++i) {
    gradients.push_back(in_huge_pages(torch::stable::empty_like(class_logits[i])));
    clear_gaps(gradients[i], static_cast<int64_t>(i), all);
  }
  Tensor box_gradient = with_gradient ? new_empty(pred_boxes[0], {2, rows, 4}) : new_empty(pred_boxes[0], {0});
  const int64_t each = std::max<int64_t>(1, kBlockLogits / std::max<int64_t>(classes, 1));
  std::vector<Block> blocks;
  std::vector<int64_t> starts;  // the first block of each set
  for (const SetPart& part : all) {
    for (int64_t s = 0; s < part.sets; ++s) {
      starts.push_back(static_cast<int64_t>(blocks.size()));
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t q = 0; q < part.queries; q += each) {
          blocks.push_back({&part, s, b, q, std::min(part.queries, q + each)});
        }
      }
    }
  }
  const int64_t count = static_cast<int64_t>(blocks.size());
  starts.push_back(count);
  std::vector<double> sums(count * 3);
  with_type(class_logits[0].scalar_type(), "class_logits", [&](auto zero) {
    using T = decltype(zero);
    std::vector<Rows<const T>> logits;
    std::vector<Rows<T>> out;
    for (const Tensor& t : class_logits) logits.emplace_back(t, static_cast<const T*>(t.const_data_ptr()));
    for (Tensor& t : gradients) out.emplace_back(t, static_cast<T*>(t.mutable_data_ptr()));
    torch::stable::parallel_for(0, count, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tensor = blocks[i].part->tensor;
        sums[i * 3] = class_block<T>(in, logits[tensor], with_gradient ? &out[tensor] : nullptr, blocks[i]);
      }
    });
  });
  with_type(pred_boxes[0].scalar_type(), "pred_boxes", [&](auto zero) {
    using T = decltype(zero);
    T* l1 = with_gradient ? static_cast<T*>(box_gradient.mutable_data_ptr()) : nullptr;
    T* giou = with_gradient ? l1 + rows * 4 : nullptr;
    torch::stable::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) box_block<T>(in, l1, giou, blocks[i], sums.data() + i * 3);
    });
  });
  const bool wide = class_logits[0].scalar_type() == ScalarType::Double;
  Tensor losses = new_empty(scale, {sets, 3}, wide ? ScalarType::Double : ScalarType::Float);
  void* to = losses.mutable_data_ptr();
  for (int64_t s = 0; s < sets; ++s) {
    for (int64_t k = 0; k < 3; ++k) {
      double total = 0;
      for (int64_t i = starts[s]; i < starts[s + 1]; ++i) total += sums[i * 3 + k];
      total *= in.factor(s, k);
      if (wide) {
        static_cast<double*>(to)[s * 3 + k] = total;
      } else {
        static_cast<float*>(to)[s * 3 + k] = static_cast<float>(total);
      }
    }
  }
  return {losses, gradients, box_gradient};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("set_loss", TORCH_BOX(&detops::set_loss)); }
