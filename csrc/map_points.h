// Where points lie on maps, for the ops that read maps at points and that hand gradients back.
#pragma once

#include "common.h"
#include "unfused.h"

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
#define DETOPS_POINT_AXIS(P, C)                                                                                  \
  DETOPS_CLONES inline void fill_axis(const P* points, int64_t step, int64_t count, int64_t cells, int64_t stride, \
                                      bool nearest, bool border, int32_t* first, int32_t* second, C* before,     \
                                      C* after) {                                                                \
    const C size = static_cast<C>(cells), last = static_cast<C>(cells - 1);                                      \
    const int32_t apart = static_cast<int32_t>(stride);                                                          \
    for (int64_t i = 0; i < count; ++i) {                                                                        \
      const C scaled = static_cast<C>(points[i * step]) * size, given = scaled - C(0.5);                         \
      const C held = given > 0 ? (given < last ? given : last) : C(0); /* 0 for NaN */                           \
      const bool there = border || (given > -1 && given < size);                                                 \
      const C position = border ? held : there ? given : C(0);                                                   \
      int32_t cell = static_cast<int32_t>(position);                                                             \
      cell -= position < static_cast<C>(cell);                                                                   \
      C far = position - static_cast<C>(cell);                                                                   \
      const bool up = far > C(0.5) || (far == C(0.5) && (cell & 1));                                             \
      far = nearest ? (up ? C(1) : C(0)) : far;                                                                  \
      const bool has_first = cell >= 0, has_second = cell + 1 < cells;                                           \
      before[i] = there && has_first ? C(1) - far : C(0);                                                        \
      after[i] = there && has_second ? far : C(0);                                                               \
      first[i] = (has_first ? cell : 0) * apart;                                                                 \
      second[i] = (has_second ? cell + 1 : cell) * apart;                                                        \
    }                                                                                                            \
  }
DETOPS_POINT_AXIS(float, float)
DETOPS_POINT_AXIS(double, float)
DETOPS_POINT_AXIS(float, double)
DETOPS_POINT_AXIS(double, double)
#undef DETOPS_POINT_AXIS

// Points of one row, at most as many as fit the cache, and the offsets of their cells in a map.
template <class C>
struct PointTable {
  PointAxis<C> x, y;
  std::vector<double> line;

  // Takes points [from, from + count) of row m of image b.
  void fill(const Tensor& points, const Reader& reader, int64_t b, int64_t m, int64_t from, int64_t count,
            int64_t height, int64_t width, int64_t by_row, int64_t by_column, bool nearest, bool border) {
    x.resize(count), y.resize(count);
    for (int64_t axis = 0; axis < 2; ++axis) {
      PointAxis<C>& to = axis == 0 ? x : y;
      const int64_t cells = axis == 0 ? width : height, stride = axis == 0 ? by_column : by_row;
      if (points.scalar_type() == ScalarType::Float) {
        const float* data = static_cast<const float*>(points.const_data_ptr()) + b * points.stride(0) +
                            m * points.stride(1) + from * points.stride(2) + axis * points.stride(3);
        fill_axis(data, points.stride(2), count, cells, stride, nearest, border, to.first.data(), to.second.data(),
                  to.before.data(), to.after.data());
      } else {
        line.resize(count);
        for (int64_t i = 0; i < count; ++i) line[i] = reader.at(b, m, from + i, axis);
        fill_axis(line.data(), 1, count, cells, stride, nearest, border, to.first.data(), to.second.data(),
                  to.before.data(), to.after.data());
      }
    }
  }
};

}  // namespace detops
