// Matching of queries with boxes in the DETR family: the CPU kernel of set_match.
//
// A problem is one set of outputs, one image and one group of queries. Its costs are computed as rows over queries, one
// row per box, which is how the search for the assignment reads them; nothing larger than that block exists.
#include "assignment.h"
#include "boxes.h"
#include "labels.h"

namespace detops {
namespace {

enum MatchKind : int64_t { kSoftmaxCost, kFocalCost };

struct Weights {
  float alpha, gamma, eps, by_class, by_box, by_giou;
};

// The queries of a problem, as columns of numbers.
struct Queries {
  std::vector<float> cx, cy, w, h, logit, total;  // total: the logarithm of the sum of all exponentials

  explicit Queries(int64_t count) : cx(count), cy(count), w(count), h(count), logit(count), total(count) {}
};

// alpha q^gamma (-log(p + eps)) - (1 - alpha) p^gamma (-log(q + eps)) of p = sigmoid(x) and q = 1 - p.
template <bool Square>
DETOPS_INLINE float focal_cost(float logit, const Weights& f) {
  const float x = logit > -1e4f ? (logit < 1e4f ? logit : 1e4f) : -1e4f;
  const float away = x < 0 ? x : -x, e = exp_negative(away), r = 1.0f / (1.0f + e);
  const float p = x < 0 ? e * r : r, q = x < 0 ? r : e * r;
  // Without eps, -log p = softplus(-x), which is exact where p itself is 0.
  const float l = log_of(1.0f + e), high = x < 0 ? -away : 0.0f;  // the latter: max(-x, 0)
  const float log_p = f.eps > 0 ? -log_of(p + f.eps) : high + l, log_q = f.eps > 0 ? -log_of(q + f.eps) : high + x + l;
  const float p_power = Square ? p * p : std::pow(p, f.gamma), q_power = Square ? q * q : std::pow(q, f.gamma);
  const float cost = f.alpha * q_power * log_p - (1.0f - f.alpha) * p_power * log_q;
  return logit == logit ? cost : std::numeric_limits<float>::quiet_NaN();
}

DETOPS_CLONES void focal_row(const float* x, const Weights f, int64_t count, float* cost) {
  for (int64_t q = 0; q < count; ++q) cost[q] = focal_cost<true>(x[q], f);
}

void any_focal_row(const float* x, const Weights& f, int64_t count, float* cost) {
  for (int64_t q = 0; q < count; ++q) cost[q] = focal_cost<false>(x[q], f);
}

DETOPS_CLONES void softmax_row(const float* x, const float* total, int64_t count, float* cost) {
  for (int64_t q = 0; q < count; ++q) {
    const float p = exp_negative(x[q] - total[q]);
    cost[q] = x[q] == x[q] && total[q] == total[q] ? -p : std::numeric_limits<float>::quiet_NaN();
  }
}

DETOPS_CLONES float log_sum(const float* x, int64_t count) {
  float most = x[0], sum = 0;
  for (int64_t c = 1; c < count; ++c) most = x[c] > most ? x[c] : most;
  for (int64_t c = 0; c < count; ++c) sum += exp_negative(x[c] - most);
  float poison = 0;
  for (int64_t c = 0; c < count; ++c) poison += x[c] == x[c] ? 0.0f : 1.0f;
  return poison > 0 ? std::numeric_limits<float>::quiet_NaN() : most + log_of(sum);
}

// The cost of a box (cx, cy, w, h) at each query, given what its class costs there. Sizes below 0 count as 0.
DETOPS_CLONES void cost_row(const float* cx, const float* cy, const float* w, const float* h, const float* class_cost,
                            const float* box, const Weights f, int64_t count, float* cost) {
  const float tx = box[0], ty = box[1], tw = box[2], th = box[3];
  const Box<float> target = box_around(tx, ty, tw, th);
  const float target_area = tw * th;
  for (int64_t q = 0; q < count; ++q) {
    const float l1 = (std::fabs(cx[q] - tx) + std::fabs(cy[q] - ty)) + (std::fabs(w[q] - tw) + std::fabs(h[q] - th));
    const float width = w[q] > 0 ? w[q] : 0.0f, height = h[q] > 0 ? h[q] : 0.0f;
    const Box<float> p = box_around(cx[q], cy[q], width, height);
    const float inter = intersection(target, p), union_ = width * height + target_area - inter;
    const float hull =
        (greater(target.x2, p.x2) - lesser(target.x1, p.x1)) * (greater(target.y2, p.y2) - lesser(target.y1, p.y1));
    const float iou = union_ > 0 ? inter / union_ : 0.0f, empty = hull > 0 ? (hull - union_) / hull : 0.0f;
    cost[q] = (f.by_box * l1 + f.by_class * class_cost[q]) - f.by_giou * (iou - empty);
  }
}

// Logits (S, B, Q, C) of type T.
template <class T>
struct Logits {
  const T* data;
  int64_t set, image, query, klass, classes;

  explicit Logits(const Tensor& t)
      : data(static_cast<const T*>(t.const_data_ptr())), set(t.stride(0)), image(t.stride(1)), query(t.stride(2)),
        klass(t.stride(3)), classes(t.size(3)) {}
};

struct Problem {
  int64_t set, image, first, queries;
};

// Sets of outputs (S, B, Q, ...) of one tensor: how many sets and queries, and which problem and row are their first.
template <class T>
struct Part {
  Logits<T> logits;
  Reader boxes;
  int64_t sets, queries, first_problem, first_row;
};

template <class T>
void read_queries(const Problem& at, const Logits<T>& logits, const Reader& boxes, bool softmax, Queries& out,
                  std::vector<float>& line) {
  for (int64_t q = 0; q < at.queries; ++q) {
    out.cx[q] = static_cast<float>(boxes.at(at.set, at.image, at.first + q, 0));
    out.cy[q] = static_cast<float>(boxes.at(at.set, at.image, at.first + q, 1));
    out.w[q] = static_cast<float>(boxes.at(at.set, at.image, at.first + q, 2));
    out.h[q] = static_cast<float>(boxes.at(at.set, at.image, at.first + q, 3));
    if (!softmax) continue;
    const T* x = logits.data + at.set * logits.set + at.image * logits.image + (at.first + q) * logits.query;
    for (int64_t c = 0; c < logits.classes; ++c) line[c] = static_cast<float>(x[c * logits.klass]);
    out.total[q] = log_sum(line.data(), logits.classes);
  }
}

struct Target {
  float box[4];
  int64_t label, row;  // row: its place among the image's boxes
};

// The boxes of an image that take part.
std::vector<Target> read_targets(const Reader& boxes, const Labels& labels, int64_t b, int64_t classes) {
  std::vector<Target> found;
  for (int64_t n = 0; n < labels.rows(b); ++n) {
    Target target{{}, labels.at(b, n, classes), n};
    bool valid = target.label >= 0;
    for (int64_t i = 0; i < 4; ++i) {
      target.box[i] = static_cast<float>(boxes.at(b, n, i));
      valid &= std::isfinite(target.box[i]) && (i < 2 || target.box[i] >= 0);
    }
    if (valid) found.push_back(target);
  }
  return found;
}

template <class T>
void match(const Problem& at, const Logits<T>& logits, const Reader& boxes, const std::vector<Target>& targets,
           const Weights& f, const std::optional<Reader>& extra, bool softmax, Queries& queries,
           std::vector<float>& class_costs, std::vector<float>& line, AssignmentSolver<float>& solver) {
  const int64_t count = static_cast<int64_t>(targets.size()), m = at.queries;
  read_queries(at, logits, boxes, softmax, queries, line);
  float* costs = solver.costs(count, m);
  const int64_t stride = AssignmentSolver<float>::row_size(m);
  class_costs.resize(count * m);
  const T* first = logits.data + at.set * logits.set + at.image * logits.image + at.first * logits.query;
  for (int64_t n = 0; n < count; ++n) {
    int64_t same = 0;  // boxes of one class share what it costs
    while (targets[same].label != targets[n].label) ++same;
    float* class_cost = class_costs.data() + same * m;
    if (same == n) {
      const T* x = first + targets[n].label * logits.klass;
      for (int64_t q = 0; q < m; ++q) queries.logit[q] = static_cast<float>(x[q * logits.query]);
      if (softmax) {
        softmax_row(queries.logit.data(), queries.total.data(), m, class_cost);
      } else if (f.gamma == 2) {
        focal_row(queries.logit.data(), f, m, class_cost);
      } else {
        any_focal_row(queries.logit.data(), f, m, class_cost);
      }
    }
    cost_row(queries.cx.data(), queries.cy.data(), queries.w.data(), queries.h.data(), class_cost, targets[n].box, f, m,
             costs + n * stride);
    for (int64_t q = 0; extra && q < m; ++q) {
      costs[n * stride + q] += static_cast<float>(extra->at(at.set, at.image, at.first + q, targets[n].row));
    }
  }
}

template <class T>
void match_all(const std::vector<Tensor>& class_logits, const std::vector<Tensor>& pred_boxes,
               const std::vector<std::vector<Target>>& targets, int64_t groups, int64_t most, const Weights& f,
               const std::optional<Reader>& extra, bool softmax, int64_t* out, int64_t* index) {
  const int64_t batch = static_cast<int64_t>(targets.size());
  std::vector<Part<T>> parts;
  int64_t problems = 0, rows = 0, longest = 0;
  for (size_t i = 0; i < class_logits.size(); ++i) {
    const Tensor& t = class_logits[i];
    parts.push_back({Logits<T>(t), Reader(pred_boxes[i]), t.size(0), t.size(2), problems, rows});
    problems += t.size(0) * groups * batch, rows += t.size(0) * batch * t.size(2);
    longest = std::max(longest, t.size(2) / groups);
  }
  torch::stable::parallel_for(0, problems, 1, [&](int64_t begin, int64_t end) {
    AssignmentSolver<float> solver;
    Queries queries(longest);
    std::vector<float> class_costs, line(parts.empty() ? 0 : parts[0].logits.classes);
    std::vector<int64_t> query_of;
    for (int64_t p = begin; p < end; ++p) {  // (S, G, B) of each part
      size_t i = parts.size() - 1;
      while (p < parts[i].first_problem) --i;
      const Part<T>& part = parts[i];
      const int64_t own = p - part.first_problem, each = part.queries / groups;
      const Problem at{own / (groups * batch), own % batch, own / batch % groups * each, each};
      const std::vector<Target>& here = targets[at.image];
      std::fill(out + p * most, out + (p + 1) * most, -1);
      if (here.empty() || each == 0) continue;
      match(at, part.logits, part.boxes, here, f, i == 0 ? extra : std::nullopt, softmax, queries, class_costs, line,
            solver);
      query_of.resize(here.size());
      solver.solve(static_cast<int64_t>(here.size()), each, query_of.data());
      for (size_t n = 0; n < here.size(); ++n) {
        if (query_of[n] < 0) continue;
        const int64_t q = at.first + query_of[n];
        out[p * most + here[n].row] = q;
        index[part.first_row + (at.set * batch + at.image) * part.queries + q] = here[n].row;
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> set_match(const std::vector<Tensor> class_logits,
                                             const std::vector<Tensor> pred_boxes, const Tensor gt_boxes,
                                             const Tensor gt_labels, const std::optional<Tensor> sample_sizes,
                                             int64_t num_classes, int64_t groups, int64_t kind, double alpha,
                                             double gamma, double eps, double class_cost, double box_cost,
                                             double giou_cost, const std::optional<Tensor> extra_cost) {
  STD_TORCH_CHECK(has_numbers(gt_boxes, {-1, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  const int64_t batch = gt_boxes.size(0), most = gt_boxes.size(1);
  check_labels(gt_labels, sample_sizes, batch, most, "gt_labels");
  STD_TORCH_CHECK(!class_logits.empty() && class_logits[0].dim() == 4,
                  "class_logits: expected parts of shape (S, B, Q, C)");
  STD_TORCH_CHECK(pred_boxes.size() == class_logits.size(), "pred_boxes: expected as many parts as class_logits has");
  const int64_t classes = class_logits[0].size(3);
  int64_t sets = 0, rows = 0;
  for (size_t i = 0; i < class_logits.size(); ++i) {
    const Tensor& t = class_logits[i];
    STD_TORCH_CHECK(has_numbers(t, {-1, batch, -1, classes}) && t.scalar_type() == class_logits[0].scalar_type(),
                    "class_logits: expected parts of shape (S, B, Q, C) of one dtype");
    STD_TORCH_CHECK(has_numbers(pred_boxes[i], {t.size(0), batch, t.size(2), 4}),
                    "pred_boxes: expected parts of numbers of shape (S, B, Q, 4)");
    sets += t.size(0), rows += t.size(0) * batch * t.size(2);
  }
  STD_TORCH_CHECK(num_classes >= 0 && num_classes <= classes,
                  "num_classes: expected at most as many as class_logits has");
  STD_TORCH_CHECK(groups > 0, "groups: expected at least 1");
  STD_TORCH_CHECK(kind == kSoftmaxCost || kind == kFocalCost, "kind: expected 0 or 1");
  STD_TORCH_CHECK(
      !extra_cost || has_numbers(*extra_cost, {class_logits[0].size(0), batch, class_logits[0].size(2), most}),
      "extra_cost: expected numbers of shape (S, B, Q, N)");
  Tensor query_of = torch::stable::new_empty(gt_boxes, {sets, groups, batch, most}, ScalarType::Long);
  Tensor index = torch::stable::new_empty(gt_boxes, {rows}, ScalarType::Long);
  Tensor valid = torch::stable::new_empty(gt_boxes, {batch, most}, ScalarType::Bool);
  int64_t* out = static_cast<int64_t*>(query_of.mutable_data_ptr());
  int64_t* box_of = static_cast<int64_t*>(index.mutable_data_ptr());
  bool* takes_part = static_cast<bool*>(valid.mutable_data_ptr());
  std::fill(box_of, box_of + index.numel(), -1);
  std::fill(takes_part, takes_part + valid.numel(), false);
  const Weights f{static_cast<float>(alpha),      static_cast<float>(gamma),    static_cast<float>(eps),
                  static_cast<float>(class_cost), static_cast<float>(box_cost), static_cast<float>(giou_cost)};
  const Labels labels(gt_labels, sample_sizes, most);
  const Reader reader(gt_boxes);
  std::vector<std::vector<Target>> targets;
  for (int64_t b = 0; b < batch; ++b) {
    targets.push_back(read_targets(reader, labels, b, num_classes));
    for (const Target& target : targets.back()) takes_part[b * most + target.row] = true;
  }
  const std::optional<Reader> extra = reader_of(extra_cost);
  const bool softmax = kind == kSoftmaxCost;
  const auto run = [&](auto zero) {
    match_all<decltype(zero)>(class_logits, pred_boxes, targets, groups, most, f, extra, softmax, out, box_of);
  };
  switch (class_logits[0].scalar_type()) {
    case ScalarType::Float: run(float()); break;
    case ScalarType::Half: run(Half()); break;
    case ScalarType::BFloat16: run(BFloat16()); break;
    case ScalarType::Double: run(double()); break;
    default: STD_TORCH_CHECK(false, "class_logits: expected float32, float16, bfloat16 or float64");
  }
  return {query_of, index, valid};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("set_match", TORCH_BOX(&detops::set_match)); }
