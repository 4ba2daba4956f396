// SimOTA's matching cost: logarithms of p = sqrt(sigmoid(class) sigmoid(objectness)) and of 1 - p, from logits.
#pragma once

#include "common.h"

#include <algorithm>
#include <limits>

namespace detops {

constexpr int kWide = 16;                 // lanes of the sum over classes
constexpr int64_t kProduct = 64 * kWide;  // classes that one product of mantissas is taken over

// log p and log(1 - p) of p = sqrt(sigmoid(a) sigmoid(b)), each at least -100.
inline void log_terms(float a, float b, float& log_p, float& log_q) {
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

// The cost of a box at each of `count` cells, from the logit of its label, the cell's objectness, the class cost there
// if no class is the label, and the IoU.
DETOPS_CLONES static void cost_row(const float* logit, const float* objectness, const float* total, const float* iou,
                                   float iou_weight, float class_weight, int64_t count, float* cost) {
  for (int64_t i = 0; i < count; ++i) {
    float log_p, log_q;
    log_terms(logit[i], objectness[i], log_p, log_q);
    const float c = class_weight * (total[i] + (log_q - log_p)) - iou_weight * log_of(iou[i] + 1e-8f);
    const bool known = logit[i] == logit[i] && objectness[i] == objectness[i] && c == c;
    cost[i] = known ? c : std::numeric_limits<float>::infinity();
  }
}

// The sum of -log(1 - p) over classes, for an objectness of at most 30. The logarithm is taken once, of the product of
// all 1 - p, whose exponents are added separately so that it cannot underflow. `logits` is padded to whole lanes with
// large negative numbers.
DETOPS_CLONES static double all_classes(const float* logits, int64_t count, float objectness) {
  const float eb = exp_within(objectness > -40.0f ? -objectness : 40.0f);
  double sum = 0;
  float unknown[kWide] = {};
  for (int64_t start = 0; start < count; start += kProduct) {
    float product[kWide];
    int32_t exponent[kWide] = {};
    for (int i = 0; i < kWide; ++i) product[i] = 1.0f;
    const int64_t end = std::min(count, start + kProduct);
    for (int64_t c = start; c < end; c += kWide) {
      for (int i = 0; i < kWide; ++i) {
        const float a = logits[c + i];
        const float ea = exp_within(a > -40.0f ? (a < 80.0f ? -a : -80.0f) : 40.0f);
        const float u = ea + eb + ea * eb;
        int32_t e;
        product[i] *= mantissa(u / (1.0f + u + std::sqrt(1.0f + u)), e);
        exponent[i] += e;
        unknown[i] += a == a ? 0.0f : 1.0f;
      }
    }
    for (int i = 0; i < kWide; ++i) sum -= log_of(product[i]) + 0.693147180559945309 * exponent[i];
  }
  for (float u : unknown) sum += u > 0 ? std::numeric_limits<double>::quiet_NaN() : 0;
  return sum;
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
