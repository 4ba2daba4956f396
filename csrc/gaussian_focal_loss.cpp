// CenterNet's focal loss over Gaussian targets, the sum and its gradient in one pass: the CPU kernel of
// gaussian_focal_loss.
//
// Sums are taken per block of fixed size and added in order, so the result does not depend on the number of threads.
#include "focal.h"
#include "outputs.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

// Unless gamma is 4, (1 - t)^gamma calls the C library, which wider vectors do not speed up, so it is compiled once.
#define DETOPS_BLOCK(T, U, Compute)                                                                                    \
  DETOPS_CLONES DETOPS_FLATTEN double standard_block(const T* x, const U* t, T* g, int64_t n, const FocalFactors& f) { \
    return focal_run<Exponents::kTwoFour, true, false, T, U, Compute>(x, t, nullptr, g, n, f);                         \
  }                                                                                                                    \
  double general_block(const T* x, const U* t, T* g, int64_t n, const FocalFactors& f) {                               \
    return focal_run<Exponents::kAny, true, false, T, U, Compute>(x, t, nullptr, g, n, f);                             \
  }
DETOPS_BLOCK(float, float, float)
DETOPS_BLOCK(Half, Half, float)
DETOPS_BLOCK(Half, float, float)
DETOPS_BLOCK(BFloat16, BFloat16, float)
DETOPS_BLOCK(BFloat16, float, float)
DETOPS_BLOCK(double, double, double)

template <class T, class U>
std::vector<double> block_sums(const Tensor& logits, const Tensor& target, Tensor* gradient, const FocalFactors& f) {
  const int64_t count = logits.numel(), blocks = (count + kSumCells - 1) / kSumCells;
  std::vector<double> sums(blocks);
  const T* x = static_cast<const T*>(logits.const_data_ptr());
  const U* t = static_cast<const U*>(target.const_data_ptr());
  T* g = gradient ? static_cast<T*>(gradient->mutable_data_ptr()) : nullptr;
  torch::stable::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i * kSumCells, n = std::min(kSumCells, count - from);
      T* out = g ? g + from : nullptr;
      sums[i] =
          f.two_four ? standard_block(x + from, t + from, out, n, f) : general_block(x + from, t + from, out, n, f);
    }
  });
  return sums;
}

std::tuple<Tensor, Tensor> gaussian_focal_loss(const Tensor logits, const Tensor target,
                                               const std::optional<Tensor> scale, double alpha, double gamma,
                                               double pos_weight, double neg_weight, bool with_gradient) {
  STD_TORCH_CHECK(logits.numel() == target.numel(), "target: expected the shape of the logits");
  STD_TORCH_CHECK(logits.is_contiguous() && target.is_contiguous(), "logits, target: expected contiguous tensors");
  const ScalarType type = logits.scalar_type(), other = target.scalar_type();
  STD_TORCH_CHECK(other == type || (other == ScalarType::Float && type != ScalarType::Double),
                  "target: expected the dtype of the logits, or float32");
  const FocalFactors f(alpha, gamma, pos_weight, neg_weight, scale);
  Tensor gradient =
      with_gradient ? in_huge_pages(torch::stable::empty_like(logits)) : torch::stable::new_empty(logits, {0});
  Tensor* g = with_gradient ? &gradient : nullptr;
  const bool same = other == type;
  std::vector<double> sums;
  switch (type) {
    case ScalarType::Float: sums = block_sums<float, float>(logits, target, g, f); break;
    case ScalarType::Double: sums = block_sums<double, double>(logits, target, g, f); break;
    case ScalarType::Half:
      sums = same ? block_sums<Half, Half>(logits, target, g, f) : block_sums<Half, float>(logits, target, g, f);
      break;
    case ScalarType::BFloat16:
      sums = same ? block_sums<BFloat16, BFloat16>(logits, target, g, f)
                  : block_sums<BFloat16, float>(logits, target, g, f);
      break;
    default: STD_TORCH_CHECK(false, "logits: expected float32, float16, bfloat16 or float64");
  }
  return {focal_total(logits, sums, f), gradient};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("gaussian_focal_loss", TORCH_BOX(&detops::gaussian_focal_loss)); }
