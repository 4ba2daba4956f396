// CenterNet's losses and their gradients: the CPU kernel of centernet_losses.
//
// The heatmap's are those of gaussian_focal_loss_from_boxes. Size and offset are read at the boxes' cells alone; their
// gradients are zero elsewhere, and filled by torch's threads. Their sums are of one thread: a batch has few boxes.
#include "focal_from_boxes.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kRun = 1 << 16;  // bytes of the gradient per task

void fill_with_zeros(void* data, int64_t bytes) {
  const int64_t runs = (bytes + kRun - 1) / kRun;
  torch::stable::parallel_for(0, runs, 4, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kRun;
    std::fill_n(static_cast<char*>(data) + first, std::min(bytes, end * kRun) - first, char(0));
  });
}

struct Cells {
  Reader index, used;
  int64_t batch, count;
};

// The sum of absolute differences at the cells that are used, and its gradient; numbers of the dtype T, computed as C.
template <class T, class C>
double l1_of(const Tensor& preds, const Tensor& target, const Cells& cells, C factor, T* gradient) {
  const int64_t height = preds.size(2), width = preds.size(3);
  const Reader read(preds), wanted(target);
  double total = 0;
  for (int64_t b = 0; b < cells.batch; ++b) {
    for (int64_t n = 0; n < cells.count; ++n) {
      const int64_t cell = static_cast<int64_t>(cells.index.at(b, n));
      if (cells.used.at(b, n) == 0 || cell < 0 || cell >= height * width) continue;
      for (int64_t d = 0; d < 2; ++d) {
        const C value = static_cast<C>(read.at(b, d, cell / width, cell % width));
        const C difference = value - static_cast<C>(wanted.at(b, n, d));
        total += std::abs(difference);
        const C slope = difference > 0 ? factor : difference < 0 ? -factor : C(0);
        if (gradient) gradient[(b * 2 + d) * height * width + cell] = static_cast<T>(slope);
      }
    }
  }
  return total;
}

// The loss of one map; its gradient is appended to the others.
double l1_loss(const Tensor& preds, const Tensor& target, const Cells& cells, double factor, bool with_gradient,
               std::vector<Tensor>& gradients) {
  const std::vector<int64_t> shape = {preds.size(0), preds.size(1), preds.size(2), preds.size(3)};
  gradients.push_back(torch::stable::new_empty(preds, with_gradient ? shape : std::vector<int64_t>{0}));
  void* sink = with_gradient ? gradients.back().mutable_data_ptr() : nullptr;
  const auto run = [&](auto* to, auto one) {
    if (to) fill_with_zeros(to, gradients.back().numel() * static_cast<int64_t>(sizeof(*to)));
    using C = decltype(one);
    return static_cast<double>(static_cast<C>(l1_of(preds, target, cells, static_cast<C>(factor), to)) *
                               static_cast<C>(factor));
  };
  switch (preds.scalar_type()) {
    case ScalarType::Float: return run(static_cast<float*>(sink), 0.0f);
    case ScalarType::Double: return run(static_cast<double*>(sink), 0.0);
    case ScalarType::Half: return run(static_cast<Half*>(sink), 0.0f);
    default: return run(static_cast<BFloat16*>(sink), 0.0f);
  }
}

using Losses = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

template <class C>
void write(const double* losses, const double* rests, Tensor& to, Tensor& rest) {
  C *sink = static_cast<C*>(to.mutable_data_ptr()), *left = static_cast<C*>(rest.mutable_data_ptr());
  for (int i = 0; i < 3; ++i) left[i] = static_cast<C>(rests[i]), sink[i] = static_cast<C>(losses[i]) * left[i];
}

Losses centernet_losses(const Tensor logits, const Tensor wh, const Tensor offset, const Tensor centers,
                        const Tensor radii, const Tensor labels, const std::optional<Tensor> negative_weight,
                        const Tensor gt_wh, const Tensor gt_offset, const Tensor index, const Tensor used,
                        const Tensor count, double least, double diameter_to_sigma_factor, double alpha, double gamma,
                        double pos_weight, double neg_weight, double wh_weight, double offset_weight,
                        const std::vector<double> kept, bool with_gradient) {
  STD_TORCH_CHECK(logits.dim() == 4, "logits: expected shape (B, C, H, W)");
  const int64_t batch = logits.size(0), height = logits.size(2), width = logits.size(3);
  STD_TORCH_CHECK(has_shape(wh, {batch, 2, height, width}) && is_floating(wh.scalar_type()),
                  "wh: expected floating-point numbers of shape (B, 2, H, W)");
  STD_TORCH_CHECK(has_shape(offset, {batch, 2, height, width}) && is_floating(offset.scalar_type()),
                  "offset: expected floating-point numbers of shape (B, 2, H, W)");
  STD_TORCH_CHECK(has_numbers(index, {batch, -1}), "index: expected numbers of shape (B, N)");
  const int64_t boxes = index.size(1);
  STD_TORCH_CHECK(has_numbers(gt_wh, {batch, boxes, 2}), "gt_wh: expected numbers of shape (B, N, 2)");
  STD_TORCH_CHECK(has_numbers(gt_offset, {batch, boxes, 2}), "gt_offset: expected numbers of shape (B, N, 2)");
  STD_TORCH_CHECK(has_booleans(used, {batch, boxes}), "used: expected bool of shape (B, N)");
  STD_TORCH_CHECK(has_numbers(count, {}), "count: expected one number");
  STD_TORCH_CHECK(kept.size() == 3, "kept: expected three numbers");

  // In the precision that the losses' divisors have in PyTorch: float32, but for a heatmap in float64.
  constexpr float kEps = std::numeric_limits<float>::epsilon();
  const float divisor = std::max(static_cast<float>(Reader(count).at(0)), static_cast<float>(least));
  const float twice = 2 * divisor + kEps;
  const bool wide = logits.scalar_type() == ScalarType::Double;
  const double scales[3] = {wide ? 1 / (static_cast<double>(divisor) + kEps) : 1 / (divisor + kEps),
                            static_cast<float>(wh_weight) / twice, static_cast<float>(offset_weight) / twice};
  double factors[3], rests[3];
  for (int i = 0; i < 3; ++i) {
    factors[i] = kept[i] != 0 ? kept[i] : scales[i];
    rests[i] = kept[i] != 0 ? scales[i] / kept[i] : 1;
  }
  Tensor scale = torch::stable::new_empty(logits, {}, ScalarType::Double);
  torch::stable::fill_(scale, factors[0]);
  auto [heatmap, gradient] =
      gaussian_focal_loss_from_boxes(logits, centers, radii, labels, std::nullopt, negative_weight, scale,
                                     diameter_to_sigma_factor, alpha, gamma, pos_weight, neg_weight, with_gradient);
  std::vector<Tensor> gradients = {gradient};
  const Cells cells{Reader(index), Reader(used), batch, boxes};
  double losses[3] = {Reader(heatmap).at(0)};
  losses[1] = l1_loss(wh, gt_wh, cells, factors[1], with_gradient, gradients);
  losses[2] = l1_loss(offset, gt_offset, cells, factors[2], with_gradient, gradients);
  const bool doubles = wide || wh.scalar_type() == ScalarType::Double || offset.scalar_type() == ScalarType::Double;
  const ScalarType type = doubles ? ScalarType::Double : ScalarType::Float;
  Tensor result = torch::stable::new_empty(logits, {3}, type), rest = torch::stable::new_empty(logits, {3}, type);
  doubles ? write<double>(losses, rests, result, rest) : write<float>(losses, rests, result, rest);
  return {result, rest, gradients};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("centernet_losses", TORCH_BOX(&detops::centernet_losses)); }
