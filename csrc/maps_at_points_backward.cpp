// The gradient of maps read at points: the CPU kernel of maps_at_points_backward.
//
// A map is written by one thread, which adds its rows of points in order: the number of threads changes nothing.
#include "map_sums.h"
#include "outputs.h"

#include <limits>

namespace detops {
namespace {

constexpr int64_t kPoints = 1024;  // whose places are held at once

// Gradients of the dtype T, summed as C.
template <class T, class C>
Tensor compute(const Tensor& gradient, const std::optional<Tensor>& index, const Tensor& points, int64_t count,
               int64_t height, int64_t width, bool border) {
  const int64_t batch = gradient.size(0), rows = gradient.size(1), number = gradient.size(2), size = height * width;
  const std::vector<int64_t> shape = {batch, count, height, width};
  Tensor out = in_huge_pages(torch::stable::new_empty(gradient, shape));
  T* data = static_cast<T*>(out.mutable_data_ptr());
  const T* given = static_cast<const T*>(gradient.const_data_ptr());
  const int64_t by_image = gradient.stride(0), by_row = gradient.stride(1), by_point = gradient.stride(2);
  const Reader reader(points);
  const RowsOfMaps of(index, batch, rows, count);
  torch::stable::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
    std::vector<C> sums;
    PointTable<C> table;
    for (int64_t map = begin; map < end; ++map) {
      const int64_t b = map / count;
      T* to = data + map * size;
      if (of.first[map] < 0 || size == 0) {
        std::fill(to, to + size, T(0));
        continue;
      }
      C* sum = cells_to_add_to<C>(to, size, sums);
      for (int64_t m = of.first[map]; m >= 0; m = of.next[b * rows + m]) {
        for (int64_t from = 0; from < number; from += kPoints) {
          const int64_t some = std::min(kPoints, number - from);
          table.fill(points, reader, b, m, from, some, height, width, width, 1, false, border);
          add_at_points(table, some, given + b * by_image + m * by_row + from * by_point, by_point, sum);
        }
      }
      store_cells(sum, size, to);
    }
  });
  return out;
}

Tensor maps_at_points_backward(const Tensor gradient, const std::optional<Tensor> index, const Tensor points,
                               int64_t count, int64_t height, int64_t width, bool border) {
  STD_TORCH_CHECK(has_shape(gradient, {-1, -1, -1}), "gradient: expected shape (B, M, P)");
  const int64_t batch = gradient.size(0), rows = gradient.size(1);
  STD_TORCH_CHECK(has_numbers(points, {batch, rows, gradient.size(2), 2}),
                  "points: expected numbers of shape (B, M, P, 2)");
  STD_TORCH_CHECK(!index || has_numbers(*index, {batch, rows}), "index: expected numbers of shape (B, M)");
  STD_TORCH_CHECK(count >= 0 && (index || count == rows), "count: expected the number of rows, without an index");
  STD_TORCH_CHECK(height >= 0, "height: expected at least 0");
  STD_TORCH_CHECK(width >= 0, "width: expected at least 0");
  STD_TORCH_CHECK(height * width <= std::numeric_limits<int32_t>::max(), "height: expected fewer than 2^31 cells");
  switch (gradient.scalar_type()) {
    case ScalarType::Float: return compute<float, float>(gradient, index, points, count, height, width, border);
    case ScalarType::Double: return compute<double, double>(gradient, index, points, count, height, width, border);
    case ScalarType::Half: return compute<Half, float>(gradient, index, points, count, height, width, border);
    case ScalarType::BFloat16: return compute<BFloat16, float>(gradient, index, points, count, height, width, border);
    default: STD_TORCH_CHECK(false, "gradient: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) {
  m.impl("maps_at_points_backward", TORCH_BOX(&detops::maps_at_points_backward));
}
