// Labels of true masks at points, for the losses that compare masks there: read from the masks, or given.
#pragma once

#include "map_points.h"

#include <algorithm>

namespace detops {

constexpr int64_t kPoints = 1024;  // whose places and values are held at once

// Adds to `place` the offset of the nearest of `cells` cells along an axis, `stride` apart, and multiplies `weight`
// with 1 if it is there, else 0; points are `step` apart. The same arithmetic as that of `fill_axis`.
#define DETOPS_NEAREST(P, C)                                                                                        \
  DETOPS_CLONES inline void nearest_cells(const P* __restrict__ points, int64_t step, int64_t count, int64_t cells, \
                                          int64_t stride, bool border, int32_t* __restrict__ place,                 \
                                          C* __restrict__ weight) {                                                 \
    const C size = static_cast<C>(cells), last = static_cast<C>(cells - 1), all = border ? C(1) : C(0);             \
    const C half = C(0.5), above_half = half + half * std::numeric_limits<C>::epsilon();                            \
    const int32_t apart = static_cast<int32_t>(stride), end = static_cast<int32_t>(cells);                          \
    for (int64_t i = 0; i < count; ++i) {                                                                           \
      const C scaled = static_cast<C>(points[i * step]) * size, given = scaled - half;                              \
      const C low = given > 0 ? given : C(0), held = low < last ? low : last; /* 0 for NaN */                       \
      const C from = given > -1 ? C(1) : C(0), to = given < size ? C(1) : C(0), within = from * to;                 \
      const C there = all > within ? all : within, inner = within > 0 ? given : C(0);                               \
      const C position = all > 0 ? held : inner;                                                                    \
      const int32_t whole = static_cast<int32_t>(position);                                                         \
      const int32_t cell = whole - (position < static_cast<C>(whole) ? 1 : 0);                                      \
      const C far = position - static_cast<C>(cell), up = (cell & 1) != 0 ? half : above_half;                      \
      const int32_t nearest = cell + (far >= up ? 1 : 0);                                                           \
      const int32_t inside = nearest < end ? nearest : end - 1, held_cell = inside > 0 ? inside : 0;                \
      place[i] += held_cell * apart;                                                                                \
      weight[i] *= held_cell == nearest ? there : C(0);                                                             \
    }                                                                                                               \
  }
DETOPS_NEAREST(float, float)
DETOPS_NEAREST(double, float)
DETOPS_NEAREST(float, double)
DETOPS_NEAREST(double, double)
#undef DETOPS_NEAREST

// A table of points for labels: cells around each to blend, or the nearest one and whether it is there.
template <class C>
struct LabelTable : PointTable<C> {
  std::vector<int32_t> nearest = std::vector<int32_t>(kPoints);
  std::vector<C> weight = std::vector<C>(kPoints);
};

class MaskLabels {
 public:
  // `labels` is (B, N, H, W), read at points (B, M, P, 2), where row m has mask m % N; or (B, M, P), the values there.
  MaskLabels(const Tensor& labels, const Tensor& points, bool nearest, bool border)
      : given_(labels.dim() == 3), nearest_(nearest), border_(border), labels_(labels), points_(points),
        reader_(labels), point_reader_(points), type_(labels.scalar_type()),
        data_(static_cast<const char*>(labels.const_data_ptr())) {
    const bool fits = given_ ? has_shape(labels, {points.size(0), points.size(1), points.size(2)})
                             : has_shape(labels, {points.size(0), -1, -1, -1});
    STD_TORCH_CHECK(fits, "labels: expected shape (B, N, H, W) or (B, M, P)");
    STD_TORCH_CHECK(has_numbers(labels, {points.size(0), -1, -1}) ||
                        has_numbers(labels, {points.size(0), -1, -1, -1}) || type_ == ScalarType::Bool,
                    "labels: expected numbers or bool");
    if (given_) return;
    masks_ = labels.size(1), height_ = labels.size(2), width_ = labels.size(3);
    const int64_t rows = points.size(1);
    STD_TORCH_CHECK(rows == 0 || (masks_ > 0 && rows % masks_ == 0), "labels: expected a divisor of ", rows, " masks");
    STD_TORCH_CHECK(height_ * labels.stride(2) + width_ * labels.stride(3) <= std::numeric_limits<int32_t>::max(),
                    "labels: expected a mask that spans fewer than 2^31 numbers");
    STD_TORCH_CHECK(type_ == ScalarType::Bool || type_ == ScalarType::Byte || type_ == ScalarType::Float ||
                        type_ == ScalarType::Double || type_ == ScalarType::Half || type_ == ScalarType::BFloat16,
                    "labels: expected bool, uint8 or floating point");
  }

  // What one thread needs.
  struct Room {
    LabelTable<float> single;
    LabelTable<double> twice;
    float narrow[kPoints];
    double wide[kPoints];
  };

  // Writes the labels of points [from, from + count) of row m; at most kPoints.
  template <class C>
  void read(Room& room, int64_t b, int64_t m, int64_t from, int64_t count, C* out) const {
    if (given_) {
      if (type_ == ScalarType::Float && labels_.stride(2) == 1) {
        const float* values = reinterpret_cast<const float*>(data_) + place(b, m) + from;
        for (int64_t p = 0; p < count; ++p) out[p] = static_cast<C>(values[p]);
      } else {
        for (int64_t p = 0; p < count; ++p) out[p] = static_cast<C>(reader_.at(b, m, from + p));
      }
      return;
    }
    if (height_ == 0 || width_ == 0) {
      std::fill(out, out + count, C(0));
      return;
    }
    const int64_t first = place(b, m % masks_);
    if (type_ == ScalarType::Double) {
      fill(room.twice, b, m, from, count);
      read_map(reinterpret_cast<const double*>(data_) + first, room.twice, from, count, room.wide);
      for (int64_t p = 0; p < count; ++p) out[p] = static_cast<C>(room.wide[p]);
      return;
    }
    fill(room.single, b, m, from, count);
    float* const values = room.narrow;
    switch (type_) {
      case ScalarType::Float:
        read_map(reinterpret_cast<const float*>(data_) + first, room.single, from, count, values);
        break;
      case ScalarType::Half:
        read_map(reinterpret_cast<const Half*>(data_) + first, room.single, from, count, values);
        break;
      case ScalarType::BFloat16:
        read_map(reinterpret_cast<const BFloat16*>(data_) + first, room.single, from, count, values);
        break;
      default: read_map(reinterpret_cast<const uint8_t*>(data_) + first, room.single, from, count, values);
    }
    for (int64_t p = 0; p < count; ++p) out[p] = static_cast<C>(values[p]);
  }

 private:
  int64_t place(int64_t b, int64_t m) const { return b * labels_.stride(0) + m * labels_.stride(1); }

  template <class C>
  void fill(LabelTable<C>& table, int64_t b, int64_t m, int64_t from, int64_t count) const {
    if (!nearest_) {
      table.fill(points_, point_reader_, b, m, from, count, height_, width_, labels_.stride(2), labels_.stride(3),
                 false, border_);
      return;
    }
    std::fill_n(table.nearest.data(), count, 0);
    std::fill_n(table.weight.data(), count, C(1));
    for (int64_t axis = 0; axis < 2; ++axis) {
      const int64_t cells = axis == 0 ? width_ : height_, stride = labels_.stride(axis == 0 ? 3 : 2);
      table.along(points_, point_reader_, b, m, from, count, axis, [&](const auto* line, int64_t step) {
        nearest_cells(line, step, count, cells, stride, border_, table.nearest.data(), table.weight.data());
      });
    }
  }

  template <class T, class C>
  void read_map(const T* map, LabelTable<C>& at, int64_t from, int64_t count, C* out) const {
    if (from == 0) prefetch_for(map, points_.size(2), height_, width_, labels_.stride(2), labels_.stride(3));
    if (!nearest_) return read_points(map, at, count, out);
    for (int64_t p = 0; p < count; ++p) {
      const C value = static_cast<C>(map[at.nearest[p]]);
      out[p] = at.weight[p] != 0 ? value : C(0);
    }
  }

  bool given_, nearest_, border_;
  const Tensor &labels_, &points_;
  Reader reader_, point_reader_;
  ScalarType type_;
  const char* data_;
  int64_t masks_ = 0, height_ = 0, width_ = 0;
};

}  // namespace detops
