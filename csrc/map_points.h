// Where points lie on maps, for the ops that read maps at points and that hand gradients back.
#pragma once

#include "common.h"
#include "unfused.h"

namespace detops {

// The two cells around a point along an axis, and the weight of each: 0 for a cell that is not there.
template <class C>
struct PointAxis {
  int64_t first = 0, second = 0;
  C before = 0, after = 0;

  PointAxis(C point, int64_t count, bool nearest, bool border) {
    const C scaled = point * static_cast<C>(count), last = static_cast<C>(count - 1);
    C position = scaled - C(0.5);
    if (border) {
      position = position > 0 ? (position < last ? position : last) : C(0);  // 0 for NaN
    } else if (!(position > -1 && position < static_cast<C>(count))) {
      return;
    }
    int64_t cell = static_cast<int64_t>(position);
    if (position < 0) cell = -1;  // truncation is upwards there
    after = position - static_cast<C>(cell);
    if (nearest) after = after > C(0.5) || (after == C(0.5) && (cell & 1)) ? C(1) : C(0);
    before = C(1) - after;
    first = cell, second = cell + 1;
    if (first < 0) first = 0, before = 0;
    if (second >= count) second = count - 1, after = 0;
  }
};

// The points (B, M, P, 2) of an image's row, of any dtype and strides.
template <class C>
class Points {
 public:
  explicit Points(const Tensor& points) : read_(points) {
    for (int64_t d = 0; d < 4; ++d) strides_[d] = points.stride(d);
    if (points.scalar_type() == ScalarType::Float) data_ = static_cast<const float*>(points.const_data_ptr());
  }

  C at(int64_t b, int64_t m, int64_t p, int64_t i) const {
    if (data_) return static_cast<C>(data_[b * strides_[0] + m * strides_[1] + p * strides_[2] + i * strides_[3]]);
    return static_cast<C>(read_.at(b, m, p, i));
  }

 private:
  Reader read_;
  int64_t strides_[4];
  const float* data_ = nullptr;
};

}  // namespace detops
