// The losses at the points that have a box: the CPU kernel of positive_losses_.
//
// Runs of points are divided among torch's threads. Each run has its own sums, which are added in order, and writes
// only elements of its own points, so the result does not depend on the number of threads.
#include "box_distributions.h"
#include "labels.h"

#include <array>
#include <tuple>

namespace detops {
namespace {

using Sums = std::array<double, 6>;

enum ClassKind : int64_t { kQuality, kBce, kVarifocal, kFocal };

// With the target q: (by_quality * q + constant) * |q - p|^exponent * BCE(p, q), and as background
// background * p^background_exponent * BCE(p, 0).
struct ClassLoss {
  double by_quality, constant, exponent, background, background_exponent;
};

ClassLoss class_loss(int64_t kind, double alpha, double gamma) {
  switch (kind) {
    case kQuality: return {0, 1, gamma, 1, gamma};
    case kBce: return {0, 1, 0, 1, 0};
    case kVarifocal: return {1, 0, 0, alpha, gamma};
    case kFocal: return {2 * alpha - 1, 1 - alpha, gamma, 1 - alpha, gamma};
    default: STD_TORCH_CHECK(false, "class_kind: expected 0 .. 3");
  }
}

// Where the gradient of a level's class logits is written, in any layout.
struct GradientMap {
  void* data;
  int64_t b, c, y, x;

  int64_t place(int64_t image, int64_t label, int64_t row, int64_t width) const {
    return image * b + label * c + row / width * y + row % width * x;
  }
};

struct Scores {
  std::vector<Map> levels;
  std::vector<GradientMap> gradients;  // or empty
  ScalarType type;
  Labels labels;
  std::optional<Reader> quality, weight;  // if given
  int64_t classes;
  std::vector<double> scale;  // of each level
  ClassLoss loss;
};

void store(void* data, ScalarType type, int64_t n, double value) {
  switch (type) {
    case ScalarType::Float: static_cast<float*>(data)[n] = static_cast<float>(value); return;
    case ScalarType::Double: static_cast<double*>(data)[n] = value; return;
    case ScalarType::Half: static_cast<Half*>(data)[n] = static_cast<Half>(static_cast<float>(value)); return;
    default: static_cast<BFloat16*>(data)[n] = static_cast<BFloat16>(static_cast<float>(value));
  }
}

double raise(double value, double exponent) {
  return exponent == 2 ? value * value : exponent == 0 ? 1 : std::pow(value, exponent);
}

// Class loss of one logit, less that as background; and the gradient of the former.
double correction(double x, double quality, const ClassLoss& f, double& gradient) {
  const double e = std::exp(-std::abs(x)), p = x < 0 ? e / (1 + e) : 1 / (1 + e);
  const double soft = std::max(x, 0.0) + std::log1p(e), cost = soft - quality * x;
  const double away = p - quality, distance = std::abs(away), power = raise(distance, f.exponent);
  const double slope = distance > 0 ? f.exponent * power / away * p * (1 - p) : 0;
  const double weight = f.by_quality * quality + f.constant;
  gradient = weight * (away * power + cost * slope);
  return weight * power * cost - f.background * raise(p, f.background_exponent) * soft + x * 0;
}

// A thread's buffers.
template <class C>
struct Work {
  Group<C> group;
  std::vector<C> logits;  // (classes, kGroup)

  Work(int64_t bins, int64_t classes) : group(bins), logits(classes * kGroup) {}
};

template <class C>
Sums run(const Task& task, const PositiveInputs& in, const Scores& scores, Work<C>& work, float* weights) {
  Sums sums{};
  Group<C>& group = work.group;
  const int64_t width = in.widths[task.level];
  const double scale = scores.scale[task.level];
  for_each_group(task, in, [&](const int64_t* rows, int count) {
    group.read(in.preds[task.level], task.b, rows, width, group.raw);
    if (!in.soft.empty()) {
      group.read(in.soft[task.level], task.b, rows, width, group.soft);
      group.distillation(in.temperature);
    }
    int64_t labels[kGroup];
    bool any = false;
    for (int k = 0; k < count; ++k) {
      const int64_t n = in.box_of(task.b, in.starts[task.level] + rows[k]);
      labels[k] = n < 0 ? -1 : scores.labels.at(task.b, n, scores.classes);
      any |= labels[k] >= 0;
    }
    if (any) group.distributions();
    C highest[kGroup], poison[kGroup] = {};
    if (any && !scores.weight) {
      const C* logits = work.logits.data();
      scores.levels[task.level].read(task.b, rows, width, scores.classes, work.logits.data(),
                                     [](int64_t c) { return c * kGroup; });
      std::copy(logits, logits + kGroup, highest);
      for (int64_t c = 0; c < scores.classes * kGroup; c += kGroup) {
        for (int k = 0; k < kGroup; ++k) {
          highest[k] = std::max(highest[k], logits[c + k]);
          poison[k] += logits[c + k] * C(0);
        }
      }
    }
    for (int k = 0; k < count; ++k) {
      const int64_t a = in.starts[task.level] + rows[k];
      const double of_region = in.region_of(task.b, a), ld = group.ld[k];
      if (of_region > 0) sums[5] += of_region * ld;
      if (labels[k] < 0) continue;
      const int64_t n = in.box_of(task.b, a);
      double w, x;
      if (scores.weight) {
        w = scores.weight->at(task.b, a), x = scores.levels[task.level].at(task.b, rows[k], width, labels[k]);
      } else {
        w = 1 / (1 + std::exp(-static_cast<double>(highest[k]))) + static_cast<double>(poison[k]);
        x = static_cast<double>(work.logits[labels[k] * kGroup + k]);
      }
      weights[task.b * in.num_points + a] = static_cast<float>(w);
      double quality;
      if (scores.quality) {
        quality = scores.quality->at(task.b, a);
        if (w != 0) group.template box_losses<false>(in, task.b, a, n, k);
      } else {
        group.template box_losses<true>(in, task.b, a, n, k);
        quality = static_cast<double>(group.iou[k]);
      }
      if (w != 0) sums[1] += w, sums[2] += w * group.box[k], sums[3] += w * group.dfl[k], sums[4] += w * ld;
      double gradient;
      sums[0] += scale * correction(x, quality, scores.loss, gradient);
      if (scores.gradients.empty()) continue;
      const GradientMap& sink = scores.gradients[task.level];
      store(sink.data, scores.type, sink.place(task.b, labels[k], rows[k], width), scale * gradient);
    }
  });
  return sums;
}

Scores check_scores(const std::vector<Tensor>& gradients, const std::vector<Tensor>& maps, const Tensor& labels,
                    const std::optional<Tensor>& quality, const std::optional<Tensor>& weight, const Tensor& scales,
                    double weight_of_class, const ClassLoss& loss, const PositiveInputs& in) {
  STD_TORCH_CHECK(maps.size() == in.starts.size(), "cls_scores: expected as many levels as bbox_preds has");
  STD_TORCH_CHECK(gradients.empty() || gradients.size() == maps.size(),
                  "class_gradients: expected as many levels as cls_scores has, or none");
  const int64_t levels = static_cast<int64_t>(maps.size()), groups = scales.dim() == 2 ? scales.size(1) : 0;
  STD_TORCH_CHECK(groups > 0 && levels % groups == 0 && has_numbers(scales, {3, groups}),
                  "scales: expected numbers of shape (3, G), G a divisor of the number of levels");
  check_labels(labels, std::nullopt, in.batch, in.num_boxes, "labels");
  for (const auto& [name, value] : {std::pair("quality", quality), std::pair("weight", weight)}) {
    STD_TORCH_CHECK(!value || has_numbers(*value, {in.batch, in.num_points}), name,
                    ": expected numbers of shape (B, A)");
  }
  const int64_t classes = maps[0].dim() == 4 ? maps[0].size(1) : 0;
  Scores scores{{},
                {},
                maps[0].scalar_type(),
                Labels(labels, std::nullopt, in.num_boxes),
                reader_of(quality),
                reader_of(weight),
                classes,
                {},
                loss};
  for (int64_t i = 0; i < levels; ++i)
    scores.scale.push_back(weight_of_class * Reader(scales).at(1, i * groups / levels));
  for (size_t i = 0; i < maps.size(); ++i) {
    const Tensor& level = maps[i];
    STD_TORCH_CHECK(has_shape(level, {in.batch, classes, in.heights[i], in.widths[i]}) &&
                        level.scalar_type() == scores.type && Map::holds(scores.type),
                    "cls_scores: expected levels (B, C, H, W) of one floating-point dtype, to match bbox_preds");
    scores.levels.emplace_back(level);
    if (gradients.empty()) continue;
    STD_TORCH_CHECK(has_shape(gradients[i], {in.batch, classes, in.heights[i], in.widths[i]}) &&
                        gradients[i].scalar_type() == scores.type,
                    "class_gradients: expected tensors of the shapes and dtype of cls_scores");
    Tensor& t = const_cast<Tensor&>(gradients[i]);
    scores.gradients.push_back({t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)});
  }
  return scores;
}

template <class C>
std::vector<Sums> run_all(const PositiveInputs& in, const Scores& scores, const std::vector<Task>& tasks,
                          float* weights) {
  std::vector<Sums> parts(tasks.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    Work<C> work(in.bins, scores.classes);
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks[i];
      float* row = weights + task.b * in.num_points + in.starts[task.level];
      std::fill(row + task.begin, row + task.end, 0.0f);
      parts[i] = run(task, in, scores, work, weights);
    }
  });
  return parts;
}

// The divisor of the box losses, unless their factor is given.
struct BoxFactor {
  std::optional<Reader> given;
  float least, eps;
  bool of_distillation;

  // Of row 2 + k of the losses, given the sum of all weights.
  float at(int64_t k, int64_t group, float sum) const {
    if (k >= 2 && !of_distillation) return 1;
    if (given) return static_cast<float>(given->at(group));
    return 1.0f / ((sum < least ? least : sum) + eps);
  }
};

// Multiplies the sums of all columns (6, columns) by their factors, and returns the factors of the box losses.
Tensor finish(Tensor& losses, const std::vector<double>& total, int64_t columns, const Tensor& scales,
              const BoxFactor& box_factor) {
  const int64_t groups = scales.size(1);
  const ScalarType type = losses.scalar_type();
  Tensor factors = torch::stable::new_empty(scales, {4, groups}, ScalarType::Float);
  float* factor = static_cast<float*>(factors.mutable_data_ptr());
  double sum = 0;
  for (int64_t column = 0; column < columns; ++column) sum += total[columns + column];
  for (int64_t i = 0; i < 4 * groups; ++i) factor[i] = box_factor.at(i / groups, i % groups, static_cast<float>(sum));
  for (int64_t i = 0; i < 6 * columns; ++i) {
    const int64_t row = i / columns, group = i % columns * groups / columns;
    double number = 1;
    if (row == 0) number = Reader(scales).at(2, group);
    if (row >= 2) number = static_cast<double>(factor[(row - 2) * groups + group]);
    // Rounded before the product, too: the losses are what PyTorch's product of sums and factors would be.
    const double value = type == ScalarType::Double ? total[i] : static_cast<double>(static_cast<float>(total[i]));
    store(losses.mutable_data_ptr(), type, i, value * number);
  }
  return factors;
}

std::tuple<Tensor, Tensor, Tensor> positive_losses_(
    std::vector<Tensor> class_gradients, const std::vector<Tensor> cls_scores, const std::vector<Tensor> bbox_preds,
    const std::vector<Tensor> soft_targets, const Tensor points, const Tensor boxes, const Tensor labels,
    const Tensor index, const std::optional<Tensor> quality, const std::optional<Tensor> weight,
    const std::optional<Tensor> region, const Tensor background, const Tensor scales,
    const std::optional<Tensor> box_scale, double least, double eps, bool divide_distillation,
    const std::vector<double> weights, int64_t class_kind, int64_t box_kind, double alpha, double gamma,
    double temperature, double margin, int64_t, int64_t heads) {
  const PositiveInputs in(bbox_preds, soft_targets, points, boxes, index, region, box_kind, temperature, margin);
  STD_TORCH_CHECK(weights.size() == 5, "weights: expected five numbers");
  const Scores scores = check_scores(class_gradients, cls_scores, labels, quality, weight, scales, weights[0],
                                     class_loss(class_kind, alpha, gamma), in);
  const std::vector<Task> tasks = tasks_of(in);
  const bool wide = scores.type == ScalarType::Double;
  Tensor found = torch::stable::new_empty(cls_scores[0], {in.batch, in.num_points}, ScalarType::Float);
  float* data = static_cast<float*>(found.mutable_data_ptr());
  const std::vector<Sums> parts =
      wide ? run_all<double>(in, scores, tasks, data) : run_all<float>(in, scores, tasks, data);
  const int64_t levels = static_cast<int64_t>(in.starts.size());
  STD_TORCH_CHECK(has_numbers(background, {levels}), "background: expected numbers of shape (L,)");
  const int64_t groups = scales.size(1);
  STD_TORCH_CHECK(heads >= 0 && (heads == 0 || (levels % heads == 0 && heads % groups == 0)),
                  "heads: expected a divisor of the number of levels and a multiple of G, or 0");
  STD_TORCH_CHECK(!box_scale || has_numbers(*box_scale, {groups}), "box_scale: expected numbers of shape (G,)");
  const int64_t columns = heads == 0 ? levels : heads, together = levels / columns;
  std::vector<double> total(6 * columns);
  for (int64_t i = 0; i < levels; ++i) total[i / together] += Reader(background).at(i);
  for (size_t i = 0; i < tasks.size(); ++i) {
    const int64_t column = tasks[i].level / together;
    for (int64_t k = 0; k < 6; ++k) total[k * columns + column] += (k < 2 ? 1 : weights[k - 1]) * parts[i][k];
  }
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  Tensor losses = torch::stable::new_empty(cls_scores[0], {6, columns}, type);
  const Tensor factors =
      finish(losses, total, columns, scales,
             {reader_of(box_scale), static_cast<float>(least), static_cast<float>(eps), divide_distillation});
  return {losses, factors, found};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("positive_losses_", TORCH_BOX(&detops::positive_losses_)); }
