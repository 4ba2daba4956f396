// Products of a few rows of numbers with labels, for point_mask_costs. To be included before what rounds products, so
// that these are fused with the additions.
#pragma once

#include "common.h"

namespace detops {

constexpr int64_t kQueries = 3, kRows = 2 * kQueries;  // queries of a task; their logits and sigmoids
constexpr int64_t kColumns = 16;                       // masks whose products with all rows fit the registers

// Adds the products of `count` points: rows[r * apart + p] labels[p * kColumns + c] to sums[r * kColumns + c].
template <class C>
void add_products(const C* rows, const C* labels, int64_t count, int64_t apart, C* sums) {
  for (int64_t p = 0; p < count; ++p) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] += rows[r * apart + p] * labels[p * kColumns + c];
    }
  }
}

#if defined(__GNUC__)
// Written with vectors, as the compiler would not keep the sums in registers. Wider ones than a processor has would not
// stay there either, so this is compiled for each width.
template <class Vector>
DETOPS_INLINE void add_products_by(const float* rows, const float* labels, int64_t count, int64_t apart, float* sums) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float), kVectors = kColumns / kLanes;
  Vector own[kRows][kVectors] = {}, label[kVectors];
  for (int64_t p = 0; p < count; ++p) {
    __builtin_memcpy(label, labels + p * kColumns, sizeof(label));
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) own[r][v] += rows[r * apart + p] * label[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] += own[r][c / kLanes][c % kLanes];
  }
}

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

#define DETOPS_PRODUCTS(Vector)                                                                                 \
  inline void add_products(const float* rows, const float* labels, int64_t count, int64_t apart, float* sums) { \
    add_products_by<Vector>(rows, labels, count, apart, sums);                                                  \
  }
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(DETOPS_NO_CLONES)
__attribute__((target("arch=x86-64-v4"))) DETOPS_PRODUCTS(Float16) __attribute__((target("arch=x86-64-v3")))
DETOPS_PRODUCTS(Float8) __attribute__((target("default"))) DETOPS_PRODUCTS(Float4)
#else
DETOPS_PRODUCTS(Float4)
#endif
#undef DETOPS_PRODUCTS
#endif

}  // namespace detops
