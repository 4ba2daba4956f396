// The gradient of the box losses: the CPU kernel of positive_losses_backward. Runs of points are divided among
// torch's threads; each recomputes its points, which is cheaper than keeping the intermediate values of the losses.
#include "box_distributions.h"
#include "outputs.h"

#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace detops {
namespace {

constexpr int64_t kBytes = 1 << 18;     // per task that writes zeros
constexpr int64_t kStreamed = 1 << 24;  // this many bytes of zeros would only evict useful data from the caches

// The streamed part begins and ends at multiples of 16 bytes.
void clear_part(char* data, int64_t bytes, [[maybe_unused]] bool streamed) {
#if defined(__SSE2__)
  if (streamed) {
    for (int64_t i = 0; i < bytes; i += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(data + i), _mm_setzero_si128());
    _mm_sfence();
    return;
  }
#endif
  std::memset(data, 0, static_cast<size_t>(bytes));
}

void clear(void* data, int64_t bytes, int64_t all_bytes) {
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  torch::stable::parallel_for(0, (bytes + kBytes - 1) / kBytes, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBytes, last = std::min(bytes, end * kBytes);
    clear_part(static_cast<char*>(data) + first, last - first, all_bytes >= kStreamed && aligned && last % 16 == 0);
  });
}

struct Factors {
  const float* weight;          // (B, A)
  std::vector<double> of_loss;  // (4, L)
};

// Factors of each side's terms; 0 for a point that does not have them.
template <class C>
struct Terms {
  C box[kSides], dfl[kSides], ld[kSides];
};

// The gradient by the logits of a group's distributions.
#define DETOPS_GRADIENT(C)                                                                                         \
  DETOPS_CLONES inline void box_gradient(const Group<C>& group, const Terms<C>& f, bool has_box, bool has_teacher, \
                                         C* g) {                                                                   \
    if (!has_box) std::fill(g, g + group.bins * kSides, C(0));                                                     \
    if (group.bins == 1) {                                                                                         \
      if (has_box) std::copy(f.box, f.box + kSides, g);                                                            \
      return;                                                                                                      \
    }                                                                                                              \
    for (int64_t j = 0; has_box && j < group.bins; ++j) {                                                          \
      const C bin = static_cast<C>(j), *p = &group.p[j * kSides];                                                  \
      for (int i = 0; i < kSides; ++i) {                                                                           \
        const C near = C(1) - std::abs(group.exact[i] - bin);                                                      \
        const C beyond = p[i] - (near > 0 ? near : 0);                                                             \
        g[j * kSides + i] = f.box[i] * p[i] * (bin - group.distance[i]) + f.dfl[i] * beyond;                       \
      }                                                                                                            \
    }                                                                                                              \
    if (!has_teacher) return;                                                                                      \
    for (int64_t j = 0; j < group.bins * kSides; j += kSides) {                                                    \
      for (int i = 0; i < kSides; ++i) g[j + i] += f.ld[i] * (group.student[j + i] - group.teacher[j + i]);        \
    }                                                                                                              \
  }
DETOPS_GRADIENT(float)
DETOPS_GRADIENT(double)

template <class T, class C>
void run(const Task& task, const PositiveInputs& in, const Factors& factors, Group<C>& group, std::vector<C>& g,
         T* gradient) {
  const int64_t width = in.widths[task.level], size = in.heights[task.level] * width, levels = in.starts.size();
  double f[4];
  for (int64_t k = 0; k < 4; ++k) f[k] = factors.of_loss[k * levels + task.level];
  T* out = gradient + task.b * 4 * in.bins * size;
  for_each_group(task, in, [&](const int64_t* rows, int count) {
    double w[kGroup];
    bool has_box = false;
    for (int k = 0; k < count; ++k) {
      const int64_t a = in.starts[task.level] + rows[k];
      w[k] = in.box_of(task.b, a) < 0 ? 0 : factors.weight[task.b * in.num_points + a];
      has_box |= w[k] != 0;
    }
    group.read(in.preds[task.level], task.b, rows, width, group.raw);
    if (has_box) group.distributions();
    if (!in.soft.empty()) {
      group.read(in.soft[task.level], task.b, rows, width, group.soft);
      group.distillation(in.temperature);
    }
    Terms<C> terms{};
    int64_t places[kGroup];  // of the points that have a gradient
    int which[kGroup], written = 0;
    for (int k = 0; k < count; ++k) {
      const int64_t a = in.starts[task.level] + rows[k];
      const double of_region = std::max(in.region_of(task.b, a), 0.0);
      const double ld = (f[2] * w[k] + f[3] * of_region) * in.temperature / in.bins;
      if (w[k] == 0 && of_region == 0) continue;
      places[written] = rows[k], which[written++] = k;
      if (w[k] != 0) group.template box_losses<false>(in, task.b, a, in.box_of(task.b, a), k);
      for (int i = k; i < kSides; i += kGroup) {
        terms.box[i] = w[k] == 0 ? C(0) : static_cast<C>(f[0] * w[k]) * group.by[i];
        terms.dfl[i] = static_cast<C>(f[1] * w[k]);
        terms.ld[i] = static_cast<C>(ld);
      }
    }
    box_gradient(group, terms, has_box, !in.soft.empty(), g.data());
    for (int64_t c = 0; c < 4 * in.bins; ++c, out += size) {
      const C* from = &g[c % in.bins * kSides + c / in.bins * kGroup];
      for (int i = 0; i < written; ++i) out[places[i]] = static_cast<T>(from[which[i]]);
    }
    out -= 4 * in.bins * size;
  });
}

template <class T, class C>
void run_all(const PositiveInputs& in, const Factors& factors, std::vector<Tensor>& gradients) {
  const std::vector<Task> tasks = tasks_of(in);
  std::vector<T*> data;
  int64_t all_bytes = 0;
  for (const Tensor& gradient : gradients) all_bytes += gradient.numel() * static_cast<int64_t>(sizeof(T));
  for (Tensor& gradient : gradients) {
    data.push_back(static_cast<T*>(gradient.mutable_data_ptr()));
    clear(data.back(), gradient.numel() * static_cast<int64_t>(sizeof(T)), all_bytes);
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    Group<C> group(in.bins);
    std::vector<C> g(in.bins * kSides);
    for (int64_t i = begin; i < end; ++i) run(tasks[i], in, factors, group, g, data[tasks[i].level]);
  });
}

std::vector<Tensor> positive_losses_backward(const std::vector<Tensor> bbox_preds,
                                             const std::vector<Tensor> soft_targets, const Tensor points,
                                             const Tensor boxes, const Tensor index, const Tensor weight,
                                             const std::optional<Tensor> region, const Tensor slopes,
                                             const Tensor factors, const std::vector<double> weights, int64_t box_kind,
                                             double temperature, double margin, int64_t) {
  const PositiveInputs in(bbox_preds, soft_targets, points, boxes, index, region, box_kind, temperature, margin);
  in.check_points(weight, ScalarType::Float, "weight: expected a contiguous float32 tensor (B, A)");
  const int64_t levels = static_cast<int64_t>(in.starts.size());
  const int64_t columns = slopes.dim() == 2 ? slopes.size(1) : 0, groups = factors.dim() == 2 ? factors.size(1) : 0;
  const int64_t rows = region ? 4 : !soft_targets.empty() ? 3 : in.bins > 1 ? 2 : 1;
  STD_TORCH_CHECK(has_numbers(slopes, {-1, columns}) && columns > 0 && levels % columns == 0 && slopes.size(0) >= rows,
                  "slopes: expected numbers of shape (R, K), a row for each loss, K a divisor of the number of levels");
  STD_TORCH_CHECK(has_numbers(factors, {4, groups}) && groups > 0 && levels % groups == 0,
                  "factors: expected numbers of shape (4, G), G a divisor of the number of levels");
  STD_TORCH_CHECK(weights.size() == 4, "weights: expected four numbers");
  Factors read{static_cast<const float*>(weight.const_data_ptr()), {}};
  const bool wide = bbox_preds[0].scalar_type() == ScalarType::Double;
  for (int64_t k = 0; k < 4 * levels; ++k) {
    const int64_t row = k / levels, level = k % levels;
    double factor = 0;
    if (row < rows) {
      factor = Reader(slopes).at(row, level * columns / levels) * Reader(factors).at(row, level * groups / levels);
    }
    read.of_loss.push_back(weights[row] * (wide ? factor : static_cast<double>(static_cast<float>(factor))));
  }
  std::vector<Tensor> gradients;
  for (const Tensor& preds : bbox_preds) {
    gradients.push_back(
        in_huge_pages(torch::stable::new_empty(preds, {preds.size(0), preds.size(1), preds.size(2), preds.size(3)})));
  }
  switch (bbox_preds[0].scalar_type()) {
    case ScalarType::Float: run_all<float, float>(in, read, gradients); break;
    case ScalarType::Double: run_all<double, double>(in, read, gradients); break;
    case ScalarType::Half: run_all<Half, float>(in, read, gradients); break;
    case ScalarType::BFloat16: run_all<BFloat16, float>(in, read, gradients); break;
    default: STD_TORCH_CHECK(false, "bbox_preds: expected float32, float16, bfloat16 or float64");
  }
  return gradients;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) {
  m.impl("positive_losses_backward", TORCH_BOX(&detops::positive_losses_backward));
}
