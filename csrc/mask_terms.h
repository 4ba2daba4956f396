// Cross entropy and dice of mask logits, for the mask losses and costs. To be included before what rounds products, so
// that these do not.
#pragma once

#include "focal.h"

namespace detops {

constexpr int kMaskLanes = 16;  // partial sums

// Softplus and sigmoid of a logit; both are NaN where it is not finite.
template <class C>
DETOPS_INLINE void softplus_and_sigmoid(C x, C& up, C& p) {
  const C magnitude = x < 0 ? x : -x;
  const auto [e, r, l] = focal_terms(magnitude > C(kLowest) ? magnitude : C(kLowest));
  const C poison = x * C(0);
  up = (x < 0 ? C(0) : x) + l + poison;
  p = (x < 0 ? e : C(1)) * r + poison;
}

// The sum of numbers that lie together, in a fixed order.
template <class C>
DETOPS_INLINE double sum_of(const C* values, int64_t count) {
  C lanes[kMaskLanes] = {};
  int64_t i = 0;
  for (; i + kMaskLanes <= count; i += kMaskLanes) {
    for (int j = 0; j < kMaskLanes; ++j) lanes[j] += values[i + j];
  }
  for (int j = 0; i + j < count; ++j) lanes[j] += values[i + j];
  double total = 0;
  for (C lane : lanes) total += static_cast<double>(lane);
  return total;
}

// Sums over points of BCE, p, y and p y.
struct MaskSums {
  double bce = 0, p = 0, y = 0, py = 0;
};

#define DETOPS_MASK_TERMS(C)                                                                                           \
  DETOPS_CLONES DETOPS_FLATTEN inline void add_terms(const C* __restrict__ x, const C* __restrict__ y, int64_t count,  \
                                                     C* __restrict__ p, C* __restrict__ room, MaskSums& sums) {        \
    for (int64_t i = 0; i < count; ++i) {                                                                              \
      C up;                                                                                                            \
      softplus_and_sigmoid(x[i], up, p[i]);                                                                            \
      room[i] = up - x[i] * y[i];                                                                                      \
    }                                                                                                                  \
    sums.bce += sum_of(room, count), sums.p += sum_of(p, count), sums.y += sum_of(y, count);                           \
    for (int64_t i = 0; i < count; ++i) room[i] = p[i] * y[i];                                                         \
    sums.py += sum_of(room, count);                                                                                    \
  }                                                                                                                    \
  /* The gradient of `of_bce` times (p - y) and of dice, whose slope by p is constant - 2 y / total, times its factor. \
   */                                                                                                                  \
  DETOPS_CLONES DETOPS_FLATTEN inline void slopes(const C* __restrict__ x, const C* __restrict__ y, int64_t count,     \
                                                  C of_bce, C constant, C of_label, C* __restrict__ out) {             \
    for (int64_t i = 0; i < count; ++i) {                                                                              \
      C up, p;                                                                                                         \
      softplus_and_sigmoid(x[i], up, p);                                                                               \
      out[i] = of_bce * (p - y[i]) + (constant - of_label * y[i]) * (p * (C(1) - p));                                  \
    }                                                                                                                  \
  }                                                                                                                    \
  /* Sigmoids and softplus. */                                                                                         \
  DETOPS_CLONES DETOPS_FLATTEN inline void fill_sigmoids(const C* __restrict__ x, int64_t count, C* __restrict__ p,    \
                                                         C* __restrict__ up) {                                         \
    for (int64_t i = 0; i < count; ++i) softplus_and_sigmoid(x[i], up[i], p[i]);                                       \
  }
DETOPS_MASK_TERMS(float)
DETOPS_MASK_TERMS(double)
#undef DETOPS_MASK_TERMS

// The slope of a pair's losses by a logit is a (p - y) + b p (1 - p) - c y p (1 - p), of which a, b and c are known
// only once all points were read. So the three terms are spread over the cells of the map on their own, and weighed at
// the end. Of a cell's kTerms numbers the last is the sum of its weights: where it is 0, no point has touched the cell.
constexpr int64_t kTerms = 4;

#define DETOPS_SPREAD_TERMS(C)                                                                                     \
  /* Writes the terms of points; returns whether all are finite. */                                                \
  DETOPS_CLONES inline bool fill_terms(const C* __restrict__ p, const C* __restrict__ y, int64_t count,            \
                                       C* __restrict__ terms) {                                                    \
    int32_t broken = 0;                                                                                            \
    for (int64_t i = 0; i < count; ++i) {                                                                          \
      const C both = p[i] * (C(1) - p[i]), labelled = y[i] * both;                                                 \
      broken |= labelled - labelled != 0 ? 1 : 0;                                                                  \
      terms[kTerms * i] = p[i] - y[i];                                                                             \
      terms[kTerms * i + 1] = both;                                                                                \
      terms[kTerms * i + 2] = labelled;                                                                            \
      terms[kTerms * i + 3] = C(1);                                                                                \
    }                                                                                                              \
    return broken == 0;                                                                                            \
  }                                                                                                                \
  DETOPS_CLONES inline void spread_terms(                                                                          \
      const int32_t* __restrict__ place, const int32_t* __restrict__ top, const int32_t* __restrict__ bottom,      \
      const C* __restrict__ left, const C* __restrict__ right, const C* __restrict__ by_top,                       \
      const C* __restrict__ by_bottom, const C* __restrict__ terms, int64_t count, C* __restrict__ cells) {        \
    typedef C Terms __attribute__((vector_size(kTerms * sizeof(C))));                                              \
    const auto add = [](C* cell, Terms more) {                                                                     \
      Terms sum;                                                                                                   \
      __builtin_memcpy(&sum, cell, sizeof(sum));                                                                   \
      sum += more;                                                                                                 \
      __builtin_memcpy(cell, &sum, sizeof(sum));                                                                   \
    };                                                                                                             \
    for (int64_t i = 0; i < count; ++i) {                                                                          \
      Terms own;                                                                                                   \
      __builtin_memcpy(&own, terms + kTerms * i, sizeof(own));                                                     \
      const Terms first = own * left[i], second = own * right[i];                                                  \
      C* const above = cells + kTerms * (top[i] + place[i]);                                                       \
      C* const below = cells + kTerms * (bottom[i] + place[i]);                                                    \
      add(above, first * by_top[i]), add(above + kTerms, second * by_top[i]);                                      \
      add(below, first * by_bottom[i]), add(below + kTerms, second * by_bottom[i]);                                \
    }                                                                                                              \
  }                                                                                                                \
  /* Adds the terms of all cells, each times its factor, and clears them. */                                       \
  DETOPS_CLONES inline void weigh_terms(C* __restrict__ cells, int64_t size, C a, C b, C c, C* __restrict__ out) { \
    for (int64_t i = 0; i < size; ++i) {                                                                           \
      C* const cell = cells + kTerms * i;                                                                          \
      out[i] += cell[3] != 0 ? a * cell[0] + b * cell[1] - c * cell[2] : C(0);                                     \
      cell[0] = cell[1] = cell[2] = cell[3] = C(0);                                                                \
    }                                                                                                              \
  }
DETOPS_SPREAD_TERMS(float)
DETOPS_SPREAD_TERMS(double)
#undef DETOPS_SPREAD_TERMS

}  // namespace detops
