// The L1 loss of a map at a few of its cells: the CPU kernel of l1_at_cells.
//
// The map is read at the cells alone; its gradient is zero elsewhere, and filled by torch's threads. The sum is of one
// thread: a batch has few boxes.
#include "common.h"

#include <algorithm>
#include <tuple>
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

// Numbers of the dtype T, computed as C.
template <class T, class C>
double walk(const Tensor& preds, const Tensor& target, const Tensor& index, const Tensor& used, C factor, T* gradient) {
  const int64_t batch = preds.size(0), depth = preds.size(1), height = preds.size(2), width = preds.size(3);
  const Reader read(preds), wanted(target), cells(index), counts(used);
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t n = 0; n < index.size(1); ++n) {
      const int64_t cell = static_cast<int64_t>(cells.at(b, n));
      if (counts.at(b, n) == 0 || cell < 0 || cell >= height * width) continue;
      for (int64_t d = 0; d < depth; ++d) {
        const C value = static_cast<C>(read.at(b, d, cell / width, cell % width));
        const C difference = value - static_cast<C>(wanted.at(b, n, d));
        total += std::abs(difference);
        const C slope = difference > 0 ? factor : difference < 0 ? -factor : C(0);
        if (gradient) gradient[(b * depth + d) * height * width + cell] = static_cast<T>(slope);
      }
    }
  }
  return total;
}

template <class T, class C>
std::tuple<Tensor, Tensor> compute(const Tensor& preds, const Tensor& target, const Tensor& index, const Tensor& used,
                                   const std::optional<Tensor>& scale, bool with_gradient, ScalarType wide) {
  const C factor = scale ? static_cast<C>(Reader(*scale).at(0)) : C(1);
  const std::vector<int64_t> shape = {preds.size(0), preds.size(1), preds.size(2), preds.size(3)};
  Tensor gradient = torch::stable::new_empty(preds, with_gradient ? shape : std::vector<int64_t>{0});
  T* sink = with_gradient ? static_cast<T*>(gradient.mutable_data_ptr()) : nullptr;
  if (sink) fill_with_zeros(sink, shape[0] * shape[1] * shape[2] * shape[3] * static_cast<int64_t>(sizeof(T)));
  Tensor loss = torch::stable::new_empty(preds, std::vector<int64_t>{}, wide);
  const double total = walk<T, C>(preds, target, index, used, factor, sink);
  *static_cast<C*>(loss.mutable_data_ptr()) = static_cast<C>(total) * factor;
  return {loss, gradient};
}

std::tuple<Tensor, Tensor> l1_at_cells(const Tensor preds, const Tensor target, const Tensor index, const Tensor used,
                                       const std::optional<Tensor> scale, bool with_gradient) {
  STD_TORCH_CHECK(has_numbers(preds, {-1, -1, -1, -1}), "preds: expected numbers of shape (B, D, H, W)");
  const int64_t batch = preds.size(0), depth = preds.size(1);
  STD_TORCH_CHECK(has_numbers(index, {batch, -1}), "index: expected numbers of shape (B, N)");
  STD_TORCH_CHECK(has_numbers(target, {batch, index.size(1), depth}), "target: expected numbers of shape (B, N, D)");
  STD_TORCH_CHECK(has_booleans(used, {batch, index.size(1)}), "used: expected bool of shape (B, N)");
  STD_TORCH_CHECK(!scale || has_numbers(*scale, {}), "scale: expected one number");
  switch (preds.scalar_type()) {
    case ScalarType::Float:
      return compute<float, float>(preds, target, index, used, scale, with_gradient, ScalarType::Float);
    case ScalarType::Double:
      return compute<double, double>(preds, target, index, used, scale, with_gradient, ScalarType::Double);
    case ScalarType::Half:
      return compute<Half, float>(preds, target, index, used, scale, with_gradient, ScalarType::Float);
    case ScalarType::BFloat16:
      return compute<BFloat16, float>(preds, target, index, used, scale, with_gradient, ScalarType::Float);
    default: STD_TORCH_CHECK(false, "preds: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("l1_at_cells", TORCH_BOX(&detops::l1_at_cells)); }
