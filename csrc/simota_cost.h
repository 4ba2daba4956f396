// SimOTA's matching cost: logarithms of p = sqrt(sigmoid(class) sigmoid(objectness)) and of 1 - p, from logits.
#pragma once

#include "common.h"

#include <algorithm>
#include <limits>

namespace detops {

constexpr int kWide = 16;                 // lanes of the sum over classes
constexpr int64_t kProduct = 64 * kWide;  // classes that one product of mantissas is taken over

// log p and log(1 - p) of p = sqrt(sigmoid(a) sigmoid(b)), each at least -100.
DETOPS_INLINE void log_terms(float a, float b, float& log_p, float& log_q) {
  a = a > -1e4f ? (a < 1e4f ? a : 1e4f) : -1e4f;
  b = b > -1e4f ? (b < 1e4f ? b : 1e4f) : -1e4f;
  const float abs_a = a < 0 ? -a : a, abs_b = b < 0 ? -b : b;
  const float soft_a = (a < 0 ? -a : 0.0f) + log_of(1.0f + exp_negative(-abs_a));  // softplus(-a)
  const float soft_b = (b < 0 ? -b : 0.0f) + log_of(1.0f + exp_negative(-abs_b));
  const float p = -0.5f * (soft_a + soft_b);
  log_p = p > -100.0f ? p : -100.0f;
  // With u = e^-a + e^-b + e^-a e^-b: 1 - p = u / (1 + u + sqrt(1 + u)). For large a and b u is left as a logarithm.
  const float ea = exp_within(a > -40.0f ? (a < 80.0f ? -a : -80.0f) : 40.0f);
  const float eb = exp_within(b > -40.0f ? (b < 80.0f ? -b : -80.0f) : 40.0f);
  const float u = ea + eb + ea * eb, low = a < b ? a : b;
  const float apart = a < b ? a - b : b - a;
  const float log_u = low > 30.0f ? -low + log_of(1.0f + exp_negative(apart)) : log_of(u);
  const float q = log_u - log_of(1.0f + u + std::sqrt(1.0f + u));
  log_q = q > -100.0f ? q : -100.0f;
}

struct Weights {
  float iou, classes;
};

// What an IoU adds to the cost.
inline float iou_cost(float iou, Weights weights) { return -weights.iou * log_of(iou + 1e-8f); }

// The cost of a box at each of `count` cells, from the logit of its label, the cell's objectness, the class cost there
// if no class is the label, and the IoU.
DETOPS_CLONES static void cost_row(const float* logit, const float* objectness, const float* total, const float* iou,
                                   Weights weights, int64_t count, float* cost) {
  for (int64_t i = 0; i < count; ++i) {
    float log_p, log_q;
    log_terms(logit[i], objectness[i], log_p, log_q);
    const float c = weights.classes * (total[i] + (log_q - log_p)) - weights.iou * log_of(iou[i] + 1e-8f);
    const bool known = logit[i] == logit[i] && objectness[i] == objectness[i] && c == c;
    cost[i] = known ? c : std::numeric_limits<float>::infinity();
  }
}

// A bound for the costs at these cells, whatever the label, but for the IoU's part: the lowest class cost, and a label
// that is certain. A margin keeps it below all that rounding can do.
inline float least_cost(const float* objectness, const float* total, int64_t count, Weights weights) {
  constexpr float kFar = std::numeric_limits<float>::infinity();
  float highest = -kFar, lowest = kFar;
  for (int64_t i = 0; i < count; ++i) {
    highest = objectness[i] > highest ? objectness[i] : highest;
    lowest = total[i] < lowest ? total[i] : lowest;
  }
  float log_p, log_q;
  log_terms(kFar, highest, log_p, log_q);
  const float cost = weights.classes * (lowest + (log_q - log_p));
  const float margin = 1e-3f * (1 + weights.classes + weights.iou) + 1e-5f * std::abs(cost);
  return weights.iou >= 0 && weights.classes >= 0 && cost == cost ? cost - margin : -kFar;
}

// In halves whose sizes the compiler knows, so that they stay in registers.
DETOPS_INLINE float product_of_lanes(float* x) {
  static_assert(kWide == 16);
  for (int i = 0; i < 8; ++i) x[i] *= x[i + 8];
  for (int i = 0; i < 4; ++i) x[i] *= x[i + 4];
  for (int i = 0; i < 2; ++i) x[i] *= x[i + 2];
  return x[0] * x[1];
}

// The sum of -log(1 - p) over classes, for an objectness of at most 30. The logarithm is taken once, of the product of
// all 1 - p as one fraction, whose exponents are added separately so that nothing underflows. `logits` is padded to
// whole lanes with large negative numbers.
DETOPS_CLONES static float all_classes(const float* logits, int64_t count, float objectness) {
  const float eb = exp_within(objectness > -40.0f ? -objectness : 40.0f);
  float above[kWide], below[kWide], unknown[kWide];
  int32_t exponent[kWide];
  for (int i = 0; i < kWide; ++i) above[i] = below[i] = 1.0f, unknown[i] = 0.0f, exponent[i] = 0;
  for (int64_t start = 0; start < count; start += kProduct) {
    const int64_t end = std::min(count, start + kProduct);
    for (int64_t c = start; c < end; c += kWide) {
      for (int i = 0; i < kWide; ++i) {
        const float a = logits[c + i];
        const float ea = exp_within(a > -40.0f ? (a < 80.0f ? -a : -80.0f) : 40.0f);
        const float u = ea + eb + ea * eb;
        int32_t e, f;
        above[i] *= mantissa(u, e);
        below[i] *= mantissa(1.0f + u + std::sqrt(1.0f + u), f);
        exponent[i] += e - f;
        unknown[i] += a == a ? 0.0f : 1.0f;
      }
    }
    for (int i = 0; i < kWide; ++i) {
      int32_t e, f;
      above[i] = mantissa(above[i], e), below[i] = mantissa(below[i], f);
      exponent[i] += e - f;
    }
  }
  int32_t power = 0;
  for (int i = 0; i < kWide; ++i) {
    above[i] = unknown[i] > 0 ? std::numeric_limits<float>::quiet_NaN() : above[i] / below[i];
    power += exponent[i];
  }
  const float product = product_of_lanes(above);
  const float sum = -log_of(product) - 0.693147180559945309f * static_cast<float>(power);
  return product == product ? sum : product;
}

// The same for any objectness, and slower.
DETOPS_CLONES static double all_classes_confident(const float* logits, int64_t count, float objectness) {
  double sum = 0;
  for (int64_t c = 0; c < count; ++c) {
    float log_p, log_q;
    log_terms(logits[c], objectness, log_p, log_q);
    sum -= log_q + (logits[c] == logits[c] ? 0.0f : logits[c]);
  }
  return sum;
}

}  // namespace detops
