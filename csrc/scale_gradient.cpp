// Multiplies gradients in place by a number; if that is 1, as it nearly always is, nothing is written: the CPU kernel
// of scale_gradient_.
#include "common.h"

#include <optional>
#include <vector>

#include <algorithm>

namespace detops {
namespace {

#define DETOPS_SCALE(T, Compute)                                                                          \
  DETOPS_CLONES void scale(T* data, int64_t count, Compute factor) {                                      \
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

// What a gradient is multiplied by: one number, or one per group of columns or per entry of the first dimension.
struct Factors {
  std::vector<double> numbers;
  std::vector<int64_t> columns;
  int64_t width;

  bool all_one() const {
    return std::all_of(numbers.begin(), numbers.end(), [](double number) { return number == 1; });
  }
};

template <class T, class Compute>
void run(Tensor& gradient, const Factors& f) {
  if (f.columns.empty() && f.numbers.size() > 1) return scale_parts<T, Compute>(gradient, f.numbers);
  if (f.columns.size() > 1) return scale_columns<T, Compute>(gradient, f.numbers, f.columns, f.width);
  scale_all<T, Compute>(gradient, f.numbers[0]);
}

void scale_one(Tensor& gradient, const Factors& f) {
  if (f.all_one() || gradient.numel() == 0) return;
  switch (gradient.scalar_type()) {
    case ScalarType::Float: return run<float, float>(gradient, f);
    case ScalarType::Half: return run<Half, float>(gradient, f);
    case ScalarType::BFloat16: return run<BFloat16, float>(gradient, f);
    case ScalarType::Double: return run<double, double>(gradient, f);
    default: STD_TORCH_CHECK(false, "gradients: expected float32, float16, bfloat16 or float64");
  }
}

void scale_gradient_(std::vector<Tensor> gradients, const Tensor factor,
                     const std::optional<std::vector<int64_t>> columns) {
  STD_TORCH_CHECK(!gradients.empty(), "gradients: expected at least one");
  const Tensor& first = gradients[0];
  const int64_t width = first.dim() > 0 ? first.size(first.dim() - 1) : 1, count = factor.numel();
  int64_t total = 0;
  for (int64_t columns_of_group : columns.value_or(std::vector<int64_t>{})) {
    STD_TORCH_CHECK(columns_of_group >= 0, "columns: expected numbers of at least 0");
    total += columns_of_group;
  }
  for (const Tensor& gradient : gradients) {
    STD_TORCH_CHECK(gradient.is_contiguous() && gradient.scalar_type() == first.scalar_type(),
                    "gradients: expected contiguous tensors of one dtype");
    STD_TORCH_CHECK(!columns || (gradient.dim() > 0 && total == gradient.size(gradient.dim() - 1)),
                    "columns: expected the sum to be the size of the last dimension");
  }
  const int64_t tensors = static_cast<int64_t>(gradients.size());
  const bool by_tensor = !columns && tensors > 1 && count > 1 && tensors % count == 0;
  const bool by_entry = !columns && tensors == 1 && first.dim() > 0 && count == first.size(0);
  const int64_t groups = columns ? static_cast<int64_t>(columns->size()) : 1;
  STD_TORCH_CHECK(
      (by_tensor || by_entry || (groups > 0 && count == groups)) && Reader::reads(factor.scalar_type()),
      "factor: expected one number, or one per G-th of the gradients, per group of columns, or per entry of the "
      "first dimension of a single gradient");
  const Reader reader(factor);
  Factors all{{}, columns.value_or(std::vector<int64_t>{}), width};
  for (int64_t k = 0; k < count; ++k) all.numbers.push_back(factor.dim() > 0 ? reader.at(k) : reader.at(0));
  for (int64_t i = 0; i < tensors; ++i) {
    scale_one(gradients[i], by_tensor ? Factors{{all.numbers[i * count / tensors]}, {}, width} : all);
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("scale_gradient_", TORCH_BOX(&detops::scale_gradient_)); }
