// CenterNet's focal loss at cells: what gaussian_focal_loss and gaussian_focal_loss_from_boxes share.
//
// A positive cell is a negative one of the opposite logit, so there is one formula without a branch.
#pragma once

#include "common.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace detops {

constexpr int kLanes = 32;  // with 16, half as fast: GCC then shuffles within vectors
constexpr int64_t kSumCells = 4096;  // cells that one float32 sum is taken over

struct FocalFactors {
  double alpha, gamma, positive, negative, scale;
  bool standard;  // alpha = 2, gamma = 4: powers are products

  FocalFactors(double alpha, double gamma, double positive, double negative, const std::optional<Tensor>& scale)
      : alpha(alpha), gamma(gamma), positive(positive), negative(negative), scale(1),
        standard(alpha == 2 && gamma == 4) {
    if (!scale) return;
    STD_TORCH_CHECK(scale->numel() == 1 && Reader::reads(scale->scalar_type()), "scale: expected one number");
    this->scale = Reader(*scale).at(0);
  }
};

// log(1 + e) for 0 <= e <= 1, as 2 atanh(z) with z = e / (2 + e) <= 1 / 3; relative error below 1e-7. The polynomial
// is the best of its degree there, where a series would take seven terms.
inline float log1p_of(float e) {
  const float z = e / (2.0f + e), s = z * z;
  float p = 0.28178335f;
  p = p * s + 0.27960603f;
  p = p * s + 0.4002491f;
  p = p * s + 0.66666315f;
  p = p * s + 2.0f;
  return z * p;
}

inline double log1p_of(double e) { return std::log1p(e); }

// Loss and gradient of one cell with logit x, target t, and weight w of its loss as a negative.
template <class Compute, bool Standard>
inline void focal_cell(Compute x, Compute t, Compute w, const FocalFactors& f, Compute& loss, Compute& gradient) {
  const bool positive = t == Compute(1);
  const Compute y = positive ? -x : x;
  const Compute magnitude = y < 0 ? y : -y;  // -|y|; NaN stays
  const Compute e = exp_negative(magnitude);
  const Compute r = Compute(1) / (Compute(1) + e), l = log1p_of(e);
  const Compute p = y < 0 ? e * r : r, q = y < 0 ? r : e * r;  // sigmoid of y and of -y
  // Softplus of y; a logit that is not finite makes it NaN, and so all of what follows.
  const Compute cost = (y < 0 ? Compute(0) : y) + l + x * Compute(0);
  const Compute away = Compute(1) - t;
  Compute scale;
  if constexpr (Standard) {
    const Compute squared = away * away;
    scale = (positive ? Compute(f.positive) : Compute(f.negative) * w * squared * squared) * (p * p);
  } else {
    scale = (positive ? Compute(f.positive) : Compute(f.negative) * w * std::pow(away, Compute(f.gamma))) *
            std::pow(p, Compute(f.alpha));
  }
  loss = scale * cost;
  const Compute g = Compute(f.scale) * (scale * (p + Compute(f.alpha) * q * cost));
  gradient = positive ? -g : g;
}

// Loss summed over a run of cells, and its gradient where one is wanted. Without targets all are 0, without
// weights all are 1.
template <bool Standard, bool HasTarget, bool HasWeight, class T, class U, class Compute>
inline double focal_run(const T* logits, const U* target, const Compute* weight, T* gradient, int64_t count,
                        const FocalFactors& f) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kSumCells) {
    const int64_t end = std::min(count, begin + kSumCells);
    Compute sums[kLanes] = {};
    int64_t base = begin;
    for (; base + kLanes <= end; base += kLanes) {
      Compute x[kLanes], t[kLanes], w[kLanes], loss[kLanes], g[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = static_cast<Compute>(logits[base + i]);
      for (int i = 0; i < kLanes; ++i) t[i] = HasTarget ? static_cast<Compute>(target[base + i]) : Compute(0);
      for (int i = 0; i < kLanes; ++i) w[i] = HasWeight ? weight[base + i] : Compute(1);
      for (int i = 0; i < kLanes; ++i) focal_cell<Compute, Standard>(x[i], t[i], w[i], f, loss[i], g[i]);
      for (int i = 0; i < kLanes; ++i) sums[i] += loss[i];
      if (gradient == nullptr) continue;
      for (int i = 0; i < kLanes; ++i) gradient[base + i] = static_cast<T>(g[i]);
    }
    for (; base < end; ++base) {
      Compute loss, g;
      focal_cell<Compute, Standard>(static_cast<Compute>(logits[base]),
                                    HasTarget ? static_cast<Compute>(target[base]) : Compute(0),
                                    HasWeight ? weight[base] : Compute(1), f, loss, g);
      sums[base % kLanes] += loss;
      if (gradient != nullptr) gradient[base] = static_cast<T>(g);
    }
    for (Compute part : sums) total += static_cast<double>(part);
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
