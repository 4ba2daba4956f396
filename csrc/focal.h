// CenterNet's focal loss at cells, for gaussian_focal_loss and gaussian_focal_loss_from_boxes.
//
// A positive's term is that of a negative with the opposite logit, so there is one formula without a branch.
#pragma once

#include "common.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace detops {

constexpr int kLanes = 32;           // partial sums
constexpr int64_t kSumCells = 4096;  // cells that one float32 sum is taken over
constexpr int64_t kRunCells = 256;   // cells that share a formula
constexpr double kLowest = -87;      // its exp is about the smallest normal float; lower logits are raised to it

// The exponents: alpha = 2 and gamma = 4, as in the paper, need only products; alpha = 0 where no cell has a target
// needs no power at all.
enum class Exponents { kAny, kTwoFour, kZero };

struct FocalFactors {
  double alpha, gamma, positive, negative, scale;
  bool two_four;
  double slope;  // alpha; or 0 where the power of a probability counts as a constant in the gradient

  FocalFactors(double alpha, double gamma, double positive, double negative, const std::optional<Tensor>& scale)
      : alpha(alpha), gamma(gamma), positive(positive), negative(negative), scale(1),
        two_four(alpha == 2 && gamma == 4), slope(alpha) {
    if (!scale) return;
    STD_TORCH_CHECK(scale->numel() == 1 && Reader::reads(scale->scalar_type()), "scale: expected one number");
    this->scale = Reader(*scale).at(0);
  }
};

// 2 atanh(z) for 0 <= z <= 1 / 3, relative error below 1e-7: the best polynomial of its degree there, where a series
// would take seven terms.
inline float twice_atanh(float z) {
  const float s = z * z;
  float p = 0.28178335f;
  p = p * s + 0.27960603f;
  p = p * s + 0.4002491f;
  p = p * s + 0.66666315f;
  p = p * s + 2.0f;
  return z * p;
}

// log(1 + e) for 0 <= e <= 1.
inline float log1p_of(float e) { return twice_atanh(e / (2.0f + e)); }
inline double log1p_of(double e) { return std::log1p(e); }

// The terms of a logit's loss, from its negative magnitude: e = exp(-|y|), r = 1 / (1 + e), l = log(1 + e).
template <class Compute>
struct FocalTerms {
  Compute e, r, l;
};

// For a magnitude of at most 87. One division serves both the sigmoid and the logarithm.
inline FocalTerms<float> focal_terms(float magnitude) {
  const float e = exp_within(magnitude), a = 1.0f + e, b = 2.0f + e, d = 1.0f / (a * b);
  return {e, b * d, twice_atanh(e * (a * d))};
}

inline FocalTerms<double> focal_terms(double magnitude) {
  const double e = std::exp(magnitude);
  return {e, 1 / (1 + e), std::log1p(e)};
}

// exp(x), which for float stays within exp(-87) .. exp(87).
inline float exp_bounded(float x) { return exp_negative(x < 87.0f ? x : 87.0f); }
inline double exp_bounded(double x) { return std::exp(x); }

// Loss and gradient of one cell with logit x, target t, and weight w of its loss as a negative.
template <class Compute, Exponents E>
inline void focal_cell(Compute x, Compute t, Compute w, const FocalFactors& f, Compute& loss, Compute& gradient) {
  const bool positive = t == Compute(1);
  const Compute y = positive ? -x : x;
  const Compute magnitude = y < 0 ? y : -y;
  const auto [e, r, l] = focal_terms(magnitude > Compute(kLowest) ? magnitude : Compute(kLowest));
  const Compute u = y < 0 ? e : Compute(1), v = y < 0 ? Compute(1) : e;  // sigmoid of y is u r, of -y it is v r
  const Compute p = u * r;
  // Softplus of y; a logit that is not finite makes it NaN, and with it the loss and the gradient.
  const Compute cost = (y < 0 ? Compute(0) : y) + l + x * Compute(0);
  const Compute away = Compute(1) - t;
  Compute scale;
  if constexpr (E == Exponents::kTwoFour) {
    const Compute squared = away * away;
    scale = (positive ? Compute(f.positive) : Compute(f.negative) * w * squared * squared) * (p * p);
  } else if constexpr (E == Exponents::kZero) {
    scale = Compute(f.negative) * w;
  } else {
    const Compute log_p = (y < 0 ? y : Compute(0)) - l, power = exp_bounded(Compute(f.alpha) * log_p);
    const Compute fall = away == 1 ? Compute(1) : std::pow(away, Compute(f.gamma));
    scale = (positive ? Compute(f.positive) : Compute(f.negative) * w * fall) * power;
  }
  loss = scale * cost;
  const Compute g = Compute(f.scale) * (scale * r) * (u + Compute(f.slope) * v * cost);
  gradient = positive ? -g : g;
}

// The same, bit for bit, for a cell with target 0 and a logit between kLowest and 0. Without HasWeight, w is 1.
template <Exponents E, bool HasWeight>
inline void bare_cell(float x, float w, float factor, float slope, float& loss, float& gradient) {
  static_assert(E != Exponents::kAny);
  const auto [e, r, l] = focal_terms(x);
  if constexpr (E == Exponents::kTwoFour) {
    const float p = e * r, scale = HasWeight ? w * (p * p) : p * p;
    loss = scale * l;
    gradient = factor * (scale * r) * (e + slope * l);
  } else {
    loss = HasWeight ? w * l : l;
    gradient = factor * (HasWeight ? w * r : r) * e;
  }
}

// Whether all logits are between kLowest and 0, and none is NaN: one comparison of their bits, with the sign flipped.
inline bool all_bare(const float* x, int64_t count) {
  uint32_t lowest, top = 0;
  const float limit = static_cast<float>(-kLowest);
  __builtin_memcpy(&lowest, &limit, sizeof(lowest));
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    bits ^= 0x80000000u;
    top = bits > top ? bits : top;
  }
  return top < lowest;
}

// Losses and gradients of a run of cells. Without targets all are 0, without weights all are 1. The logit of a negative
// of weight 0 is not read: it may be NaN.
template <Exponents E, bool HasTarget, bool HasWeight, class U, class Compute>
inline void focal_cells(const Compute* __restrict x, const U* __restrict target, const Compute* __restrict weight,
                        int64_t count, const FocalFactors& f, Compute* __restrict loss, Compute* __restrict gradient) {
  for (int64_t i = 0; i < count; ++i) {
    const Compute t = HasTarget ? static_cast<Compute>(target[i]) : Compute(0), w = HasWeight ? weight[i] : Compute(1);
    const Compute given = x[i];  // loaded in any case, so that the loop is vectorised
    const Compute read = HasWeight && w == 0 && t != 1 ? Compute(0) : given;
    focal_cell<Compute, E>(read, t, w, f, loss[i], gradient[i]);
  }
}

// The same by `bare_cell`. Where IsOne, all weights and the negatives' factor are 1.
template <Exponents E, bool HasWeight, bool IsOne>
inline void bare_cells(const float* __restrict x, const float* __restrict weight, int64_t count, const FocalFactors& f,
                       float* __restrict loss, float* __restrict gradient) {
  const float factor = static_cast<float>(f.scale), negative = static_cast<float>(f.negative);
  const float slope = static_cast<float>(f.slope);
  for (int64_t i = 0; i < count; ++i) {
    const float w = HasWeight ? negative * weight[i] : negative;
    bare_cell<E, !IsOne>(x[i], w, factor, slope, loss[i], gradient[i]);
  }
}

// The sum of the cells' losses, and its gradient if asked for; targets and weights as in `focal_cells`.
template <Exponents E, bool HasTarget, bool HasWeight, class T, class U, class Compute>
inline double focal_run(const T* logits, const U* target, const Compute* weight, T* gradient, int64_t count,
                        const FocalFactors& f) {
  constexpr bool kMayBeBare = E != Exponents::kAny && !HasTarget && std::is_same_v<Compute, float>;
  constexpr bool kInPlace = std::is_same_v<T, Compute>;
  Compute converted[kRunCells], unread[kRunCells], loss[kRunCells], sums[kLanes] = {};
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kRunCells) {
    const int64_t n = std::min(kRunCells, count - begin);
    const Compute* x = converted;
    Compute* g = unread;
    if constexpr (kInPlace) {
      x = logits + begin;
      if (gradient != nullptr) g = gradient + begin;
    } else {
      for (int64_t i = 0; i < n; ++i) converted[i] = static_cast<Compute>(logits[begin + i]);
    }
    const U* t = HasTarget ? target + begin : nullptr;
    const Compute* w = HasWeight ? weight + begin : nullptr;
    bool bare = false;
    if constexpr (kMayBeBare) {
      bare = all_bare(x, n);
      if (bare && !HasWeight && f.negative == 1) {
        bare_cells<E, HasWeight, !HasWeight>(x, w, n, f, loss, g);
      } else if (bare) {
        bare_cells<E, HasWeight, false>(x, w, n, f, loss, g);
      }
    }
    if (!bare) focal_cells<E, HasTarget, HasWeight>(x, t, w, n, f, loss, g);
    if constexpr (!kInPlace) {
      for (int64_t i = 0; gradient != nullptr && i < n; ++i) gradient[begin + i] = static_cast<T>(g[i]);
    }
    std::fill(loss + n, loss + (n + kLanes - 1) / kLanes * kLanes, Compute(0));
    for (int64_t base = 0; base < n; base += kLanes) {
      for (int i = 0; i < kLanes; ++i) sums[i] += loss[base + i];
    }
    if ((begin + kRunCells) % kSumCells != 0 && begin + kRunCells < count) continue;
    for (Compute& part : sums) total += static_cast<double>(part), part = 0;
  }
  return total;
}

inline Tensor focal_total(const Tensor& logits, const std::vector<double>& sums, const FocalFactors& f) {
  double total = 0;
  for (double sum : sums) total += sum;
  const ScalarType type = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor loss = torch::stable::new_empty(logits, {}, type);
  torch::stable::fill_(loss, total * f.scale);
  return loss;
}

}  // namespace detops
