// The class loss of all points as background, and its gradient: the CPU kernel of background_losses.
//
// Each image's logits of a level are cut into blocks, in the order in which they lie in memory. The sums of the blocks
// are added in order, so the result does not depend on the number of threads.
#include "focal.h"
#include "outputs.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kBlock = 16384;  // logits of a task

struct Level {
  const void* logits;
  void* gradient;  // or null
  int64_t points, start;
  int64_t inner;  // how many logits apart two points lie: 1, or the number of classes
  double scale;
};

struct Task {
  size_t level;
  int64_t b, begin, end;  // of the image's logits
};

struct Points {
  const bool* valid;  // or null
  int64_t classes, count;

  // The weight of each logit of a task: 1 at valid points, else 0.
  template <class C>
  void weights(const Level& level, const Task& task, C* out) const {
    const bool* row = valid + task.b * count + level.start;
    int64_t left = task.end - task.begin;
    if (level.inner == 1) {
      for (int64_t point = task.begin % level.points; left > 0; point = 0) {
        const int64_t n = std::min(left, level.points - point);
        const uint8_t* from = reinterpret_cast<const uint8_t*>(row) + point;
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<C>(static_cast<int32_t>(from[i]));
        out += n, left -= n;
      }
      return;
    }
    int64_t point = task.begin / level.inner, n = std::min(left, level.inner - task.begin % level.inner);
    for (; left > 0; left -= n, out += n, n = std::min(left, level.inner)) {
      std::fill(out, out + n, static_cast<C>(row[point++]));
    }
  }
};

template <Exponents E, class T, class C>
inline double run(const Task& task, const Level& level, const Points& points, const FocalFactors& f, C* weights) {
  const int64_t first = task.b * points.classes * level.points + task.begin, count = task.end - task.begin;
  const T* x = static_cast<const T*>(level.logits) + first;
  T* g = level.gradient ? static_cast<T*>(level.gradient) + first : nullptr;
  if (!points.valid) return focal_run<E, false, false, T, C, C>(x, nullptr, nullptr, g, count, f);
  points.weights(level, task, weights);
  return focal_run<E, false, true, T, C, C>(x, nullptr, weights, g, count, f);
}

#define DETOPS_BACKGROUND(T, C)                                                                                \
  DETOPS_CLONES DETOPS_FLATTEN double task_loss(T, const Task& task, const Level& level, const Points& points, \
                                                const FocalFactors& f, C* weights) {                           \
    if (f.two_four) return run<Exponents::kTwoFour, T, C>(task, level, points, f, weights);                    \
    if (f.alpha == 0) return run<Exponents::kZero, T, C>(task, level, points, f, weights);                     \
    return run<Exponents::kAny, T, C>(task, level, points, f, weights);                                        \
  }
DETOPS_BACKGROUND(float, float)
DETOPS_BACKGROUND(Half, float)
DETOPS_BACKGROUND(BFloat16, float)
DETOPS_BACKGROUND(double, double)

template <class T, class C>
std::vector<double> task_losses(const std::vector<Task>& tasks, const std::vector<Level>& levels, const Points& points,
                                const FocalFactors& factors) {
  std::vector<double> sums(tasks.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<C> weights(points.valid ? kBlock : 0);
    FocalFactors f = factors;
    for (int64_t i = begin; i < end; ++i) {
      const Level& level = levels[tasks[i].level];
      f.scale = level.scale;
      sums[i] = task_loss(T(), tasks[i], level, points, f, weights.data());
    }
  });
  return sums;
}

// Each head's whole factor, scale, and the rest of the former; all in float32, as the kernels for GPUs compute them.
struct Scales {
  int64_t groups;
  std::vector<float> numbers;  // (3, groups)

  Scales(const Tensor& counts, float least, float eps, float kept) : groups(counts.size(0)), numbers(3 * groups) {
    const Reader reader(counts);
    float largest = 0;
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0;
      for (int64_t m = 0; m < counts.size(1); ++m) {
        const double count = reader.at(g, m);
        sum += count < static_cast<double>(least) ? static_cast<double>(least) : count;
      }
      numbers[g] = 1.0f / (static_cast<float>(sum) + eps);
      largest = numbers[g] <= largest ? largest : numbers[g];  // a NaN stays
    }
    const float rest = kept > 0 ? largest / kept : 1.0f;
    for (int64_t g = 0; g < groups; ++g) numbers[groups + g] = numbers[g] / rest, numbers[2 * groups + g] = rest;
  }
};

std::tuple<Tensor, Tensor, std::vector<Tensor>> background_losses(const std::vector<Tensor> logits,
                                                                  const std::optional<Tensor> valid,
                                                                  const Tensor counts, double least, double eps,
                                                                  double kept, double factor, double gamma,
                                                                  bool with_gradient) {
  STD_TORCH_CHECK(!logits.empty() && logits[0].dim() == 4, "logits: expected at least one level (B, C, H, W)");
  const int64_t batch = logits[0].size(0), classes = logits[0].size(1), count = static_cast<int64_t>(logits.size());
  const int64_t groups = counts.dim() == 2 ? counts.size(0) : 0;
  STD_TORCH_CHECK(groups > 0 && count % groups == 0 && Reader::reads(counts.scalar_type()),
                  "counts: expected numbers of shape (G, M), G a divisor of the number of levels");
  const Scales scales(counts, static_cast<float>(least), static_cast<float>(eps), static_cast<float>(kept));
  std::vector<Tensor> gradients;
  std::vector<Level> levels;
  std::vector<Task> tasks;
  int64_t start = 0;
  for (const Tensor& level : logits) {
    STD_TORCH_CHECK(has_shape(level, {batch, classes, -1, -1}) && level.scalar_type() == logits[0].scalar_type() &&
                        is_floating(level.scalar_type()),
                    "logits: expected levels (B, C, H, W) of one floating-point dtype");
    STD_TORCH_CHECK(is_dense(level), "logits: expected levels that are contiguous or channels last");
    const int64_t points = level.size(2) * level.size(3), per_image = classes * points;
    void* gradient = nullptr;
    if (with_gradient) {
      gradients.push_back(in_huge_pages(torch::stable::empty_like(level)));
      gradient = gradients.back().mutable_data_ptr();
    }
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < per_image; i += kBlock) {
        tasks.push_back({levels.size(), b, i, std::min(per_image, i + kBlock)});
      }
    }
    const float number = scales.numbers[groups + static_cast<int64_t>(levels.size()) * groups / count];
    levels.push_back({level.const_data_ptr(), gradient, points, start, level.is_contiguous() ? 1 : classes, number});
    start += points;
  }
  STD_TORCH_CHECK(!valid || (has_booleans(*valid, {batch, start}) && valid->is_contiguous()),
                  "valid: expected a contiguous bool tensor (B, A)");
  const Points points{valid ? static_cast<const bool*>(valid->const_data_ptr()) : nullptr, classes, start};
  const FocalFactors f(gamma, 4, 1, factor, std::nullopt);  // background is the case of a target of 0
  std::vector<double> sums;
  switch (logits[0].scalar_type()) {
    case ScalarType::Float: sums = task_losses<float, float>(tasks, levels, points, f); break;
    case ScalarType::Half: sums = task_losses<Half, float>(tasks, levels, points, f); break;
    case ScalarType::BFloat16: sums = task_losses<BFloat16, float>(tasks, levels, points, f); break;
    default: sums = task_losses<double, double>(tasks, levels, points, f);
  }
  std::vector<double> total(logits.size());
  for (size_t i = 0; i < tasks.size(); ++i) total[tasks[i].level] += sums[i] * levels[tasks[i].level].scale;
  const bool wide = logits[0].scalar_type() == ScalarType::Double;
  Tensor losses = torch::stable::new_empty(logits[0], {count}, wide ? ScalarType::Double : ScalarType::Float);
  for (int64_t i = 0; i < count; ++i) {
    if (wide) {
      static_cast<double*>(losses.mutable_data_ptr())[i] = total[i];
    } else {
      static_cast<float*>(losses.mutable_data_ptr())[i] = static_cast<float>(total[i]);
    }
  }
  Tensor numbers = torch::stable::new_empty(logits[0], {3, groups}, ScalarType::Float);
  std::copy(scales.numbers.begin(), scales.numbers.end(), static_cast<float*>(numbers.mutable_data_ptr()));
  return {losses, numbers, gradients};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("background_losses", TORCH_BOX(&detops::background_losses)); }
