// Points and boxes in runs of 16, each run within one hull: what a search cannot touch it passes over, a run at a time.
#pragma once

#include "boxes.h"

#include <cstring>
#include <vector>

namespace detops {

constexpr int64_t kRun = 16;

inline int64_t runs_of(int64_t count) { return (count + kRun - 1) / kRun; }

// The hull of each run, as columns of one number per run.
struct Hulls {
  float *x1, *y1, *x2, *y2;

  static constexpr int64_t kCount = 4;

  Hulls(float* memory, int64_t runs) : x1(memory), y1(x1 + runs), x2(y1 + runs), y2(x2 + runs) {}

  // Sets the hulls of whole runs of boxes, or of points if x2 is x1 and y2 is y1. What is NaN touches nothing.
  void set(const float* left, const float* top, const float* right, const float* bottom, int64_t runs) const {
    constexpr float kFar = std::numeric_limits<float>::infinity();
    for (int64_t r = 0; r < runs; ++r) {
      Box<float> hull{kFar, kFar, -kFar, -kFar};
      for (int64_t i = r * kRun; i < (r + 1) * kRun; ++i) {
        hull.x1 = lesser(left[i], hull.x1), hull.y1 = lesser(top[i], hull.y1);
        hull.x2 = greater(right[i], hull.x2), hull.y2 = greater(bottom[i], hull.y2);
      }
      x1[r] = hull.x1, y1[r] = hull.y1, x2[r] = hull.x2, y2[r] = hull.y2;
    }
  }
};

// Marks the runs of boxes of which some may intersect this one.
DETOPS_CLONES static void mark_intersecting(const Box<float> box, const Hulls hulls, int64_t runs,
                                            uint8_t* __restrict marks) {
  for (int64_t r = 0; r < runs; ++r) {
    marks[r] = (hulls.x1[r] < box.x2) & (hulls.x2[r] > box.x1) & (hulls.y1[r] < box.y2) & (hulls.y2[r] > box.y1);
  }
}

// Lists what is marked; `marks` holds 0 and 1. A list has room for all.
inline int64_t list_marked(const uint8_t* marks, int64_t count, int32_t* list) {
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) {
    list[size] = static_cast<int32_t>(i);
    size += marks[i];
  }
  return size;
}

// Whether no flag of a run has these bits.
inline bool none_of(const uint8_t* flags, int32_t bits) {
  uint64_t words[kRun / 8];
  std::memcpy(words, flags, kRun);
  return ((words[0] | words[1]) & (0x0101010101010101u * static_cast<uint64_t>(bits))) == 0;
}

// Runs of cells, first as marks, then as a list.
struct Runs {
  std::vector<uint8_t> marks;
  std::vector<int32_t> numbers;
  int64_t size = 0;

  explicit Runs(int64_t count) : marks(count), numbers(count) {}

  void list(int64_t count) { size = list_marked(marks.data(), count, numbers.data()); }
  const int32_t* begin() const { return numbers.data(); }
  const int32_t* end() const { return numbers.data() + size; }
};

}  // namespace detops
