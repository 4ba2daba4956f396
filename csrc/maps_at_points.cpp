// Maps read at points, where they are and whatever their dtype: the CPU kernel of maps_at_points.
#include "map_points.h"

#include <vector>

namespace detops {
namespace {

constexpr int64_t kPoints = 4096;  // per task

// Numbers of the dtype T, computed as C.
template <class T, class C>
void read_points(const Tensor& maps, const std::optional<Tensor>& index, const Tensor& points, bool nearest,
                 bool border, C* out) {
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t count = maps.size(1), height = maps.size(2), width = maps.size(3);
  const int64_t by_row = maps.stride(2), by_column = maps.stride(3);
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const Points<C> where(points);
  const std::optional<Reader> chosen = reader_of(index);
  const int64_t parts = (number + kPoints - 1) / kPoints;
  torch::stable::parallel_for(0, batch * rows * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / parts, b = row / rows, m = row % rows, from = task % parts * kPoints;
      const int64_t to = from + kPoints < number ? from + kPoints : number;
      const int64_t q = chosen ? static_cast<int64_t>(chosen->at(b, m)) : m;
      C* values = out + row * number;
      if (q < 0 || q >= count || height == 0 || width == 0) {
        for (int64_t p = from; p < to; ++p) values[p] = 0;
        continue;
      }
      const T* map = data + b * maps.stride(0) + q * maps.stride(1);
      const auto term = [&](int64_t y, int64_t x, C weight) {
        return weight != 0 ? static_cast<C>(map[y * by_row + x * by_column]) * weight : C(0);
      };
      for (int64_t p = from; p < to; ++p) {
        const PointAxis<C> x(where.at(b, m, p, 0), width, nearest, border);
        const PointAxis<C> y(where.at(b, m, p, 1), height, nearest, border);
        values[p] = ((term(y.first, x.first, y.before * x.before) + term(y.first, x.second, y.before * x.after)) +
                     term(y.second, x.first, y.after * x.before)) + term(y.second, x.second, y.after * x.after);
      }
    }
  });
}

template <class T, class C>
Tensor compute(const Tensor& maps, const std::optional<Tensor>& index, const Tensor& points, bool nearest, bool border,
               ScalarType wide) {
  const std::vector<int64_t> shape = {points.size(0), points.size(1), points.size(2)};
  Tensor out = torch::stable::new_empty(maps, shape, wide);
  read_points<T, C>(maps, index, points, nearest, border, static_cast<C*>(out.mutable_data_ptr()));
  return out;
}

Tensor maps_at_points(const Tensor maps, const std::optional<Tensor> index, const Tensor points, bool nearest,
                      bool border) {
  STD_TORCH_CHECK(has_shape(maps, {-1, -1, -1, -1}), "maps: expected shape (B, Q, h, w)");
  STD_TORCH_CHECK(has_numbers(points, {maps.size(0), -1, -1, 2}), "points: expected numbers of shape (B, M, P, 2)");
  STD_TORCH_CHECK(index || points.size(1) == maps.size(1), "points: expected as many rows as maps, without an index");
  STD_TORCH_CHECK(!index || has_numbers(*index, {maps.size(0), points.size(1)}),
                  "index: expected numbers of shape (B, M)");
  switch (maps.scalar_type()) {
    case ScalarType::Float: return compute<float, float>(maps, index, points, nearest, border, ScalarType::Float);
    case ScalarType::Double: return compute<double, double>(maps, index, points, nearest, border, ScalarType::Double);
    case ScalarType::Half: return compute<Half, float>(maps, index, points, nearest, border, ScalarType::Float);
    case ScalarType::BFloat16: return compute<BFloat16, float>(maps, index, points, nearest, border, ScalarType::Float);
    case ScalarType::Byte:
    case ScalarType::Bool: return compute<uint8_t, float>(maps, index, points, nearest, border, ScalarType::Float);
    default: STD_TORCH_CHECK(false, "maps: expected float32, float16, bfloat16, float64, uint8 or bool");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("maps_at_points", TORCH_BOX(&detops::maps_at_points)); }
