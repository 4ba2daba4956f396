// The gradient of GFL's and LD's box losses: the CPU kernel of gfl_box_gradient. Runs of anchors are shared out among
// torch's threads; each computes its anchors anew, which is cheaper than to keep what the losses had.
#include "gfl_boxes.h"

#include <cstring>

namespace detops {
namespace {

constexpr int64_t kBytes = 1 << 18;  // of a task that writes zeros

void clear(void* data, int64_t bytes) {
  torch::stable::parallel_for(0, (bytes + kBytes - 1) / kBytes, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBytes, last = std::min(bytes, end * kBytes);
    std::memset(static_cast<char*>(data) + first, 0, static_cast<size_t>(last - first));
  });
}

struct Factors {
  const float* weight;  // (B, A)
  std::vector<double> of_loss;  // (4, L)
};

template <class T, class C>
void run(const GflTask& task, const GflInputs& in, const Factors& factors, GflAnchor<C>& anchor, T* gradient) {
  const int64_t width = in.widths[task.level], size = in.heights[task.level] * width, levels = in.starts.size();
  double f[4];
  for (int64_t k = 0; k < 4; ++k) f[k] = factors.of_loss[k * levels + task.level];
  for (int64_t r = task.begin; r < task.end; ++r) {
    const int64_t a = in.starts[task.level] + r, n = in.box_of(task.b, a);
    const double w = n < 0 ? 0 : factors.weight[task.b * in.anchors + a], of_region = in.region_of(task.b, a);
    if (w == 0 && !(of_region > 0)) continue;
    anchor.read(in.preds[task.level], task.b, r / width, r % width, anchor.raw);
    const C ld = static_cast<C>((f[2] * w + f[3] * std::max(of_region, 0.0)) * in.temperature / in.bins);
    if (!in.soft.empty()) {
      anchor.read(in.soft[task.level], task.b, r / width, r % width, anchor.soft);
      anchor.distillation(in.temperature);
    }
    if (w != 0) anchor.box_losses(in, task.b, a, n);
    const C giou = static_cast<C>(f[0] * w), dfl = static_cast<C>(f[1] * w);
    T* out = gradient + task.b * 4 * in.bins * size + r;
    for (int64_t i = 0; i < 4 * in.bins; ++i) {
      C g = in.soft.empty() ? C(0) : ld * (anchor.student[i] - anchor.teacher[i]);
      if (w != 0) {
        const int64_t s = i / in.bins;
        const C j = static_cast<C>(i % in.bins), near = C(1) - std::abs(anchor.exact[s] - j);
        g += giou * anchor.by[s] * anchor.p[i] * (j - anchor.distance[s]);
        g += dfl * (anchor.p[i] - std::max(near, C(0)));
      }
      out[i * size] = static_cast<T>(g);
    }
  }
}

template <class T, class C>
void run_all(const GflInputs& in, const Factors& factors, std::vector<Tensor>& gradients) {
  const std::vector<GflTask> tasks = gfl_tasks(in);
  std::vector<T*> data;
  for (Tensor& gradient : gradients) {
    data.push_back(static_cast<T*>(gradient.mutable_data_ptr()));
    clear(data.back(), gradient.numel() * static_cast<int64_t>(sizeof(T)));
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    GflAnchor<C> anchor(in.bins);
    for (int64_t i = begin; i < end; ++i) run(tasks[i], in, factors, anchor, data[tasks[i].level]);
  });
}

std::vector<Tensor> gfl_box_gradient(const std::vector<Tensor> bbox_preds, const std::vector<Tensor> soft_targets,
                                     const Tensor cells, const Tensor gt_boxes, const Tensor index, const Tensor weight,
                                     const std::optional<Tensor> region, const Tensor factors, double temperature,
                                     int64_t) {
  const GflInputs in(bbox_preds, soft_targets, cells, gt_boxes, index, region, temperature);
  in.check_anchors(weight, ScalarType::Float, "weight: expected a contiguous float32 tensor (B, A)");
  const int64_t levels = static_cast<int64_t>(in.starts.size());
  STD_TORCH_CHECK(factors.dim() == 2 && factors.size(0) == 4 && factors.size(1) == levels &&
                      Reader::reads(factors.scalar_type()),
                  "factors: expected shape (4, L)");
  Factors read{static_cast<const float*>(weight.const_data_ptr()), {}};
  for (int64_t k = 0; k < 4 * levels; ++k) read.of_loss.push_back(Reader(factors).at(k / levels, k % levels));
  std::vector<Tensor> gradients;
  for (const Tensor& preds : bbox_preds) {
    gradients.push_back(
        torch::stable::new_empty(preds, {preds.size(0), preds.size(1), preds.size(2), preds.size(3)}));
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

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("gfl_box_gradient", TORCH_BOX(&detops::gfl_box_gradient)); }
