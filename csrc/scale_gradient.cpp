// Multiplies a gradient in place by a number; if that is 1, as it nearly always is, nothing is written: the CPU kernel
// of scale_gradient_.
#include "common.h"

#include <optional>
#include <vector>

#include <algorithm>

namespace detops {
namespace {

#define DETOPS_SCALE(T, Compute)                                                              \
  DETOPS_CLONES void scale(T* data, int64_t count, Compute factor) {                          \
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(static_cast<Compute>(data[i]) * factor); \
  }
DETOPS_SCALE(float, float)
DETOPS_SCALE(Half, float)
DETOPS_SCALE(BFloat16, float)
DETOPS_SCALE(double, double)

template <class T, class Compute>
void scale_all(Tensor& gradient, double factor) {
  T* data = static_cast<T*>(gradient.mutable_data_ptr());
  torch::stable::parallel_for(0, gradient.numel(), 32768, [&](int64_t begin, int64_t end) {
    scale(data + begin, end - begin, static_cast<Compute>(factor));
  });
}

// Each factor applies to one group of columns of every row.
template <class T, class Compute>
void scale_columns(Tensor& gradient, const std::vector<double>& factors, const std::vector<int64_t>& columns,
                   int64_t width) {
  T* data = static_cast<T*>(gradient.mutable_data_ptr());
  torch::stable::parallel_for(0, gradient.numel() / width, 32768 / width + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* group = data + row * width;
      for (size_t k = 0; k < columns.size(); group += columns[k++]) {
        if (factors[k] != 1) scale(group, columns[k], static_cast<Compute>(factors[k]));
      }
    }
  });
}

// Each factor is for one entry of the first dimension.
template <class T, class Compute>
void scale_parts(Tensor& gradient, const std::vector<double>& factors) {
  constexpr int64_t kBlock = 32768;
  T* data = static_cast<T*>(gradient.mutable_data_ptr());
  const int64_t size = gradient.numel() / gradient.size(0), blocks = (size + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, gradient.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * kBlock;
      const double factor = factors[i / blocks];
      T* part = data + i / blocks * size + first;
      if (factor != 1) scale(part, std::min(kBlock, size - first), static_cast<Compute>(factor));
    }
  });
}

template <class T, class Compute>
void run(Tensor& gradient, const std::vector<double>& factors, const std::vector<int64_t>& columns, int64_t width) {
  if (columns.empty() && factors.size() > 1) return scale_parts<T, Compute>(gradient, factors);
  if (columns.size() > 1) return scale_columns<T, Compute>(gradient, factors, columns, width);
  scale_all<T, Compute>(gradient, factors[0]);
}

void scale_gradient_(Tensor gradient, const Tensor factor, const std::optional<std::vector<int64_t>> columns) {
  STD_TORCH_CHECK(gradient.is_contiguous(), "gradient: expected a contiguous tensor");
  const std::vector<int64_t> groups = columns.value_or(std::vector<int64_t>{});
  const bool by_part = !columns && factor.numel() != 1 && gradient.dim() > 0 && factor.numel() == gradient.size(0);
  const int64_t count = columns ? static_cast<int64_t>(groups.size()) : by_part ? factor.numel() : 1;
  STD_TORCH_CHECK((count > 0 || by_part) && factor.numel() == count && Reader::reads(factor.scalar_type()),
                  "factor: expected one number, or one per group of columns, or one per entry of the first dimension");
  const int64_t width = gradient.dim() > 0 ? gradient.size(gradient.dim() - 1) : 1;
  int64_t total = 0;
  for (int64_t columns_of_group : groups) {
    STD_TORCH_CHECK(columns_of_group >= 0, "columns: expected numbers of at least 0");
    total += columns_of_group;
  }
  STD_TORCH_CHECK(!columns || total == width, "columns: expected the sum to be the size of the last dimension");
  const Reader reader(factor);
  std::vector<double> factors(count);
  bool all_one = true;
  for (int64_t k = 0; k < count; ++k) {
    factors[k] = factor.dim() > 0 ? reader.at(k) : reader.at(0);
    all_one &= factors[k] == 1;
  }
  if (all_one || gradient.numel() == 0) return;
  switch (gradient.scalar_type()) {
    case ScalarType::Float: return run<float, float>(gradient, factors, groups, width);
    case ScalarType::Half: return run<Half, float>(gradient, factors, groups, width);
    case ScalarType::BFloat16: return run<BFloat16, float>(gradient, factors, groups, width);
    case ScalarType::Double: return run<double, double>(gradient, factors, groups, width);
    default: STD_TORCH_CHECK(false, "gradient: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("scale_gradient_", TORCH_BOX(&detops::scale_gradient_)); }
