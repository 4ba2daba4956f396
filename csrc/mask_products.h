// Maps of a few queries side by side, read at points and multiplied with labels, for point_mask_costs. To be included
// before what rounds products, so that these are fused with the additions.
#pragma once

#include "common.h"

namespace detops {

constexpr int64_t kQueries = 8;   // whose numbers lie side by side
constexpr int64_t kColumns = 16;  // masks whose products with some queries fit the registers

// Values at points of maps that lie side by side: `top` and `bottom` are the left of two cells, a to d the weights of
// the four.
#define DETOPS_READ_SIDE_BY_SIDE(C)                                                                                  \
  DETOPS_CLONES inline void read_side_by_side(const C* __restrict__ cells, const int32_t* __restrict__ top,          \
                                              const int32_t* __restrict__ bottom, const C* __restrict__ a,           \
                                              const C* __restrict__ b, const C* __restrict__ c,                      \
                                              const C* __restrict__ d, int64_t count, C* __restrict__ out) {         \
    typedef C Values __attribute__((vector_size(kQueries * sizeof(C))));                                             \
    for (int64_t p = 0; p < count; ++p) {                                                                            \
      Values of[4];                                                                                                  \
      __builtin_memcpy(of, cells + kQueries * top[p], 2 * sizeof(Values));                                           \
      __builtin_memcpy(of + 2, cells + kQueries * bottom[p], 2 * sizeof(Values));                                    \
      const Values value = of[0] * a[p] + of[1] * b[p] + of[2] * c[p] + of[3] * d[p];                                \
      __builtin_memcpy(out + kQueries * p, &value, sizeof(value));                                                   \
    }                                                                                                                \
  }                                                                                                                  \
  /* Adds the numbers of each query to its sum. */                                                                   \
  DETOPS_CLONES inline void add_side_by_side(const C* __restrict__ values, int64_t count, double* __restrict__ to) { \
    C sums[kQueries] = {};                                                                                           \
    for (int64_t p = 0; p < count; ++p) {                                                                            \
      for (int64_t k = 0; k < kQueries; ++k) sums[k] += values[kQueries * p + k];                                    \
    }                                                                                                                \
    for (int64_t k = 0; k < kQueries; ++k) to[k] += static_cast<double>(sums[k]);                                    \
  }
DETOPS_READ_SIDE_BY_SIDE(float)
DETOPS_READ_SIDE_BY_SIDE(double)
#undef DETOPS_READ_SIDE_BY_SIDE

// Adds the products of `count` points: values[p * kQueries + k] labels[p * kColumns + c] to sums[k * kColumns + c].
template <class C>
void add_products(const C* values, const C* labels, int64_t count, C* sums) {
  for (int64_t p = 0; p < count; ++p) {
    for (int k = 0; k < kQueries; ++k) {
      for (int c = 0; c < kColumns; ++c) sums[k * kColumns + c] += values[p * kQueries + k] * labels[p * kColumns + c];
    }
  }
}

#if defined(__GNUC__)
// Written with vectors, as the compiler would not keep the sums in registers. Wider ones than a processor has would not
// stay there either, so this is compiled for each width, with as many queries at once as fit.
template <class Vector, int kAtOnce>
DETOPS_INLINE void add_products_by(const float* values, const float* labels, int64_t count, float* sums) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float), kVectors = kColumns / kLanes;
  for (int first = 0; first < kQueries; first += kAtOnce) {
    Vector own[kAtOnce][kVectors] = {}, label[kVectors];
    for (int64_t p = 0; p < count; ++p) {
      __builtin_memcpy(label, labels + p * kColumns, sizeof(label));
      for (int k = 0; k < kAtOnce; ++k) {
        for (int v = 0; v < kVectors; ++v) own[k][v] += values[p * kQueries + first + k] * label[v];
      }
    }
    for (int k = 0; k < kAtOnce; ++k) {
      for (int c = 0; c < kColumns; ++c) sums[(first + k) * kColumns + c] += own[k][c / kLanes][c % kLanes];
    }
  }
}

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

#define DETOPS_PRODUCTS(Vector, at_once)                                                           \
  inline void add_products(const float* values, const float* labels, int64_t count, float* sums) { \
    add_products_by<Vector, at_once>(values, labels, count, sums);                                 \
  }
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(DETOPS_NO_CLONES)
__attribute__((target("arch=x86-64-v4"))) DETOPS_PRODUCTS(Float16, 8) __attribute__((target("arch=x86-64-v3")))
DETOPS_PRODUCTS(Float8, 4) __attribute__((target("default"))) DETOPS_PRODUCTS(Float4, 2)
#else
DETOPS_PRODUCTS(Float4, 2)
#endif
#undef DETOPS_PRODUCTS
#endif

}  // namespace detops
