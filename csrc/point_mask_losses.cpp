// Cross entropy and dice of matched maps at points: the CPU kernel of point_mask_losses.
#include "mask_terms.h"
#include "mask_labels.h"

#include <tuple>

namespace detops {
namespace {

// Maps of the dtype T, computed as C.
template <class T, class C>
std::tuple<Tensor, Tensor> compute(const Tensor& maps, const Tensor& index, const Tensor& points, const Tensor& labels,
                                   bool nearest, bool border, ScalarType wide) {
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t count = maps.size(1), height = maps.size(2), width = maps.size(3);
  Tensor losses = torch::stable::new_empty(maps, {batch, rows, 2}, wide);
  Tensor sums = torch::stable::new_empty(maps, {batch, rows, 2}, wide);
  C* loss = static_cast<C*>(losses.mutable_data_ptr());
  C* sum = static_cast<C*>(sums.mutable_data_ptr());
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const Reader chosen(index), reader(points);
  const MaskLabels labels_at(labels, points, nearest, border);
  torch::stable::parallel_for(0, batch * rows, 1, [&](int64_t begin, int64_t end) {
    PointTable<C> table;
    MaskLabels::Room room;
    C x[kPoints], y[kPoints], p[kPoints], spare[kPoints];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / rows, m = row % rows, q = static_cast<int64_t>(chosen.at(b, m));
      loss[2 * row] = loss[2 * row + 1] = 0, sum[2 * row] = sum[2 * row + 1] = 1;
      if (q < 0 || q >= count || height == 0 || width == 0) continue;
      const T* own = data + b * maps.stride(0) + q * maps.stride(1);
      prefetch_for(own, number, height, width, maps.stride(2), maps.stride(3));
      MaskSums s;
      for (int64_t from = 0; from < number; from += kPoints) {
        const int64_t some = std::min(kPoints, number - from);
        table.fill(points, reader, b, m, from, some, height, width, maps.stride(2), maps.stride(3), false, border);
        read_points(own, table, some, x);
        labels_at.read(room, b, m, from, some, y);
        add_terms(x, y, some, p, spare, s);
      }
      const double shared = 2 * s.py + 1, total = s.p + s.y + 1;
      loss[2 * row] = static_cast<C>(s.bce / static_cast<double>(std::max<int64_t>(number, 1)));
      loss[2 * row + 1] = static_cast<C>(1 - shared / total);
      sum[2 * row] = static_cast<C>(shared), sum[2 * row + 1] = static_cast<C>(total);
    }
  });
  return {losses, sums};
}

std::tuple<Tensor, Tensor> point_mask_losses(const Tensor maps, const Tensor index, const Tensor points,
                                             const Tensor labels, bool nearest, bool border) {
  check_map_points(maps, index, points);
  switch (maps.scalar_type()) {
    case ScalarType::Float:
      return compute<float, float>(maps, index, points, labels, nearest, border, ScalarType::Float);
    case ScalarType::Double:
      return compute<double, double>(maps, index, points, labels, nearest, border, ScalarType::Double);
    case ScalarType::Half: return compute<Half, float>(maps, index, points, labels, nearest, border, ScalarType::Float);
    case ScalarType::BFloat16:
      return compute<BFloat16, float>(maps, index, points, labels, nearest, border, ScalarType::Float);
    default: STD_TORCH_CHECK(false, "maps: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("point_mask_losses", TORCH_BOX(&detops::point_mask_losses)); }
