// Where points lie on maps, for the ops that read maps at points and that hand gradients back.
#pragma once

#include "common.h"
#include "unfused.h"

#include <limits>
#include <vector>

namespace detops {

// The two cells around each of some points along an axis, as offsets in a map, and their weights: 0 for a cell that is
// not there, whose offset is that of one that is.
template <class C>
struct PointAxis {
  std::vector<int32_t> first, second;
  std::vector<C> before, after;

  void resize(int64_t count) { first.resize(count), second.resize(count), before.resize(count), after.resize(count); }
};

// Fills `count` places of an axis of `cells` cells, `stride` apart, from points that are `step` apart.
#define DETOPS_POINT_AXIS(P, C)                                                                                      \
  DETOPS_CLONES inline void fill_axis(const P* __restrict__ points, int64_t step, int64_t count, int64_t cells,      \
                                      int64_t stride, bool nearest, bool border, int32_t* __restrict__ first,        \
                                      int32_t* __restrict__ second, C* __restrict__ before, C* __restrict__ after) { \
    const C size = static_cast<C>(cells), last = static_cast<C>(cells - 1);                                          \
    const C all = border ? C(1) : C(0), round = nearest ? C(1) : C(0), half = C(0.5);                                \
    const C above_half = half + half * std::numeric_limits<C>::epsilon();                                            \
    const int32_t apart = static_cast<int32_t>(stride), end = static_cast<int32_t>(cells);                           \
    for (int64_t i = 0; i < count; ++i) { /* selects of numbers alone, so that it is vectorised */                   \
      const C scaled = static_cast<C>(points[i * step]) * size, given = scaled - half;                               \
      const C low = given > 0 ? given : C(0), held = low < last ? low : last; /* 0 for NaN */                        \
      const C from = given > -1 ? C(1) : C(0), to = given < size ? C(1) : C(0), within = from * to;                  \
      const C there = all > within ? all : within, inner = within > 0 ? given : C(0);                                \
      const C position = all > 0 ? held : inner;                                                                     \
      const int32_t whole = static_cast<int32_t>(position);                                                          \
      const int32_t cell = whole - (position < static_cast<C>(whole) ? 1 : 0);                                       \
      const C far = position - static_cast<C>(cell), up = (cell & 1) != 0 ? half : above_half; /* ties to even */    \
      const C rounded = far >= up ? C(1) : C(0), share = round > 0 ? rounded : far, rest = C(1) - share;             \
      const C has_first = cell >= 0 ? there : C(0), has_second = cell + 1 < end ? there : C(0);                      \
      before[i] = rest * has_first;                                                                                  \
      after[i] = share * has_second;                                                                                 \
      first[i] = (cell >= 0 ? cell : 0) * apart;                                                                     \
      second[i] = (cell + 1 < end ? cell + 1 : cell) * apart;                                                        \
    }                                                                                                                \
  }
DETOPS_POINT_AXIS(float, float)
DETOPS_POINT_AXIS(double, float)
DETOPS_POINT_AXIS(float, double)
DETOPS_POINT_AXIS(double, double)
#undef DETOPS_POINT_AXIS

// Makes two neighbours of the two cells of each point, which are one and the same at borders; `last` is the last cell.
#define DETOPS_PAIR_CELLS(C)                                                                                     \
  DETOPS_CLONES inline void pair_cells(const int32_t* __restrict__ first, const int32_t* __restrict__ second,    \
                                       const C* __restrict__ before, const C* __restrict__ after, int64_t count, \
                                       int32_t last, int32_t* __restrict__ place, C* __restrict__ left,          \
                                       C* __restrict__ right) {                                                  \
    for (int64_t p = 0; p < count; ++p) {                                                                        \
      const C a = before[p], b = after[p], both = a + b;                                                         \
      const int32_t cell = first[p];                                                                             \
      const bool apart = second[p] != cell, end = cell == last;                                                  \
      place[p] = end ? cell - 1 : cell;                                                                          \
      left[p] = apart ? a : end ? C(0) : both;                                                                   \
      right[p] = apart ? b : end ? both : C(0);                                                                  \
    }                                                                                                            \
  }
DETOPS_PAIR_CELLS(float)
DETOPS_PAIR_CELLS(double)
#undef DETOPS_PAIR_CELLS

// Takes every second number.
DETOPS_CLONES inline void take_second(const float* __restrict__ from, int64_t count, float* __restrict__ to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
}

// Points of one row, at most as many as fit the cache, and the offsets of their cells in a map.
template <class C>
struct PointTable {
  PointAxis<C> x, y;
  // Where columns lie together, also as two neighbouring cells: the offset of the first, and the weights of both.
  bool paired = false;
  std::vector<int32_t> place;
  std::vector<C> left, right;
  std::vector<float> single;
  std::vector<double> line;

  // Hands the coordinates along an axis of points [from, from + count) of row m of image b to `take`, with their step.
  template <class Take>
  void along(const Tensor& points, const Reader& reader, int64_t b, int64_t m, int64_t from, int64_t count,
             int64_t axis, const Take& take) {
    if (points.scalar_type() == ScalarType::Float) {
      const int64_t step = points.stride(2);
      const float* data = static_cast<const float*>(points.const_data_ptr()) + b * points.stride(0) +
                          m * points.stride(1) + from * step + axis * points.stride(3);
      if (step != 2) return take(data, step);
      // Pairs that lie together are taken apart first: a known step is vectorised better.
      single.resize(count);
      take_second(data, count, single.data());
      return take(static_cast<const float*>(single.data()), int64_t(1));
    }
    line.resize(count);
    for (int64_t i = 0; i < count; ++i) line[i] = reader.at(b, m, from + i, axis);
    take(static_cast<const double*>(line.data()), int64_t(1));
  }

  // Takes points [from, from + count) of row m of image b.
  void fill(const Tensor& points, const Reader& reader, int64_t b, int64_t m, int64_t from, int64_t count,
            int64_t height, int64_t width, int64_t by_row, int64_t by_column, bool nearest, bool border) {
    x.resize(count), y.resize(count);
    for (int64_t axis = 0; axis < 2; ++axis) {
      PointAxis<C>& to = axis == 0 ? x : y;
      const int64_t cells = axis == 0 ? width : height, stride = axis == 0 ? by_column : by_row;
      along(points, reader, b, m, from, count, axis, [&](const auto* given, int64_t step) {
        fill_axis(given, step, count, cells, stride, nearest, border, to.first.data(), to.second.data(),
                  to.before.data(), to.after.data());
      });
    }
    paired = by_column == 1 && width > 1;
    if (!paired) return;
    place.resize(count), left.resize(count), right.resize(count);
    pair_cells(x.first.data(), x.second.data(), x.before.data(), x.after.data(), count, static_cast<int32_t>(width - 1),
               place.data(), left.data(), right.data());
  }
};

// The values of a map at the points of a table, computed as C. A cell of no weight counts for nothing, whatever it
// holds.
#define DETOPS_READ_ROW(T, C)                                                                                        \
  DETOPS_CLONES inline void read_row(const T* __restrict__ map, const int32_t* __restrict__ left,                    \
                                     const int32_t* __restrict__ right, const C* __restrict__ by_left,               \
                                     const C* __restrict__ by_right, const int32_t* __restrict__ top,                \
                                     const int32_t* __restrict__ bottom, const C* __restrict__ by_top,               \
                                     const C* __restrict__ by_bottom, int64_t count, C* __restrict__ out) {          \
    for (int64_t p = 0; p < count; ++p) {                                                                            \
      const C a = by_top[p] * by_left[p], b = by_top[p] * by_right[p];                                               \
      const C c = by_bottom[p] * by_left[p], d = by_bottom[p] * by_right[p];                                         \
      const C u = static_cast<C>(map[top[p] + left[p]]), v = static_cast<C>(map[top[p] + right[p]]);                 \
      const C w = static_cast<C>(map[bottom[p] + left[p]]), z = static_cast<C>(map[bottom[p] + right[p]]);           \
      out[p] =                                                                                                       \
          (((a != 0 ? u * a : C(0)) + (b != 0 ? v * b : C(0))) + (c != 0 ? w * c : C(0))) + (d != 0 ? z * d : C(0)); \
    }                                                                                                                \
  }
DETOPS_READ_ROW(float, float)
DETOPS_READ_ROW(Half, float)
DETOPS_READ_ROW(BFloat16, float)
DETOPS_READ_ROW(uint8_t, float)
DETOPS_READ_ROW(double, double)
#undef DETOPS_READ_ROW

// The same from pairs of neighbours: two above and two below each point, four to a point.
#define DETOPS_BLEND_PAIRS(T, C)                                                                                      \
  DETOPS_CLONES inline void blend_pairs(const T* __restrict__ above, const T* __restrict__ below,                     \
                                        const C* __restrict__ left, const C* __restrict__ right,                      \
                                        const C* __restrict__ by_top, const C* __restrict__ by_bottom, int64_t count, \
                                        C* __restrict__ out) {                                                        \
    for (int64_t p = 0; p < count; ++p) {                                                                             \
      const C a = by_top[p] * left[p], b = by_top[p] * right[p];                                                      \
      const C c = by_bottom[p] * left[p], d = by_bottom[p] * right[p];                                                \
      const C u = static_cast<C>(above[2 * p]), v = static_cast<C>(above[2 * p + 1]);                                 \
      const C w = static_cast<C>(below[2 * p]), z = static_cast<C>(below[2 * p + 1]);                                 \
      out[p] =                                                                                                        \
          (((a != 0 ? u * a : C(0)) + (b != 0 ? v * b : C(0))) + (c != 0 ? w * c : C(0))) + (d != 0 ? z * d : C(0));  \
    }                                                                                                                 \
  }
DETOPS_BLEND_PAIRS(float, float)
DETOPS_BLEND_PAIRS(Half, float)
DETOPS_BLEND_PAIRS(BFloat16, float)
DETOPS_BLEND_PAIRS(uint8_t, float)
DETOPS_BLEND_PAIRS(double, double)
#undef DETOPS_BLEND_PAIRS

constexpr int64_t kPairs = 256;  // points whose cells are copied together

// The values of a map at the points of its table. Pairs of cells are copied first, as gathering single cells by vectors
// takes several times as long.
template <class T, class C>
void read_points(const T* map, const PointTable<C>& at, int64_t count, C* out) {
  if (!at.paired) {
    read_row(map, at.x.first.data(), at.x.second.data(), at.x.before.data(), at.x.after.data(), at.y.first.data(),
             at.y.second.data(), at.y.before.data(), at.y.after.data(), count, out);
    return;
  }
  T above[2 * kPairs], below[2 * kPairs];
  for (int64_t from = 0; from < count; from += kPairs) {
    const int64_t some = count - from < kPairs ? count - from : kPairs;
    const int32_t *place = at.place.data() + from, *top = at.y.first.data() + from, *bottom = at.y.second.data() + from;
    for (int64_t p = 0; p < some; ++p) {
      __builtin_memcpy(above + 2 * p, map + top[p] + place[p], 2 * sizeof(T));
      __builtin_memcpy(below + 2 * p, map + bottom[p] + place[p], 2 * sizeof(T));
    }
    blend_pairs(above, below, at.left.data() + from, at.right.data() + from, at.y.before.data() + from,
                at.y.after.data() + from, some, out + from);
  }
}

// Asks for a map ahead of its use, in order, as points are spread over nearly all of it: read at random, each of its
// lines would be waited for.
template <class T>
void prefetch(const T* map, int64_t count) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(map + i, 0, 2);
#endif
}

// The same for a map whose rows lie together, if `points` reads of two lines each touch most of it.
template <class T>
void prefetch_for(const T* map, int64_t points, int64_t height, int64_t width, int64_t by_row, int64_t by_column) {
  const int64_t lines = height * width * static_cast<int64_t>(sizeof(T)) / 64;
  if (by_column == 1 && by_row == width && lines <= 2 * points) prefetch(map, height * width);
}

// What all ops that read maps (B, Q, h, w) by an index (B, M) at points (B, M, P, 2) expect.
inline void check_map_points(const Tensor& maps, const Tensor& index, const Tensor& points) {
  STD_TORCH_CHECK(has_shape(maps, {-1, -1, -1, -1}), "maps: expected shape (B, Q, h, w)");
  STD_TORCH_CHECK(has_numbers(points, {maps.size(0), -1, -1, 2}), "points: expected numbers of shape (B, M, P, 2)");
  STD_TORCH_CHECK(has_numbers(index, {maps.size(0), points.size(1)}), "index: expected numbers of shape (B, M)");
  STD_TORCH_CHECK(maps.size(2) * maps.stride(2) + maps.size(3) * maps.stride(3) <= std::numeric_limits<int32_t>::max(),
                  "maps: expected a map that spans fewer than 2^31 numbers");
}

}  // namespace detops
