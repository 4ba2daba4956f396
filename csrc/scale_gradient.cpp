// Multiplies a gradient in place by a number; where that is 1, as it nearly always is, nothing is touched: the CPU
// kernel of scale_gradient_.
#include "common.h"

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

void scale_gradient_(Tensor gradient, const Tensor factor) {
  STD_TORCH_CHECK(gradient.is_contiguous(), "gradient: expected a contiguous tensor");
  STD_TORCH_CHECK(factor.numel() == 1 && Reader::reads(factor.scalar_type()), "factor: expected one number");
  const double value = Reader(factor).at(0);
  if (value == 1) return;
  switch (gradient.scalar_type()) {
    case ScalarType::Float: return scale_all<float, float>(gradient, value);
    case ScalarType::Half: return scale_all<Half, float>(gradient, value);
    case ScalarType::BFloat16: return scale_all<BFloat16, float>(gradient, value);
    case ScalarType::Double: return scale_all<double, double>(gradient, value);
    default: STD_TORCH_CHECK(false, "gradient: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("scale_gradient_", TORCH_BOX(&detops::scale_gradient_)); }
