// Cross entropy and dice of matched maps at points, and their gradient in the same pass: the CPU kernel of
// point_mask_losses.
#include "mask_terms.h"
#include "map_sums.h"
#include "mask_labels.h"
#include "outputs.h"

#include <tuple>

namespace detops {
namespace {

// The points of one row, read where its map and its mask lie.
template <class C>
struct Row {
  PointTable<C> table;
  MaskLabels::Room room;
  C x[kPoints], y[kPoints], p[kPoints], spare[kPoints], terms[kTerms * kPoints];
};

template <class C>
void spread(const PointTable<C>& at, const C* terms, bool finite, int64_t count, C* cells) {
  if (at.paired && finite) {
    spread_terms(at.place.data(), at.y.first.data(), at.y.second.data(), at.left.data(), at.right.data(),
                 at.y.before.data(), at.y.after.data(), terms, count, cells);
    return;
  }
  // A cell of no weight may be another's: it is not touched, lest a NaN spreads.
  for (int64_t i = 0; i < count; ++i) {
    const auto add = [&](int32_t line, C by_line, int32_t column, C by_column) {
      if (by_line == 0 || by_column == 0) return;
      for (int k = 0; k < kTerms; ++k)
        cells[kTerms * (line + column) + k] += by_line * by_column * terms[kTerms * i + k];
    };
    add(at.y.first[i], at.y.before[i], at.x.first[i], at.x.before[i]);
    add(at.y.first[i], at.y.before[i], at.x.second[i], at.x.after[i]);
    add(at.y.second[i], at.y.after[i], at.x.first[i], at.x.before[i]);
    add(at.y.second[i], at.y.after[i], at.x.second[i], at.x.after[i]);
  }
}

// Maps of the dtype T, computed as C. A map has one thread, which adds its rows of points in order: the number of
// threads changes nothing.
template <class T, class C>
std::tuple<Tensor, Tensor, Tensor> compute(const Tensor& maps, const Tensor& index, const Tensor& points,
                                           const Tensor& labels, bool nearest, bool border, bool with_gradient,
                                           ScalarType wide) {
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t count = maps.size(1), height = maps.size(2), width = maps.size(3), size = height * width;
  Tensor losses = torch::stable::new_empty(maps, {batch, rows, 2}, wide);
  Tensor sums = torch::stable::new_empty(maps, {batch, rows, 2}, wide);
  const std::vector<int64_t> shape = {batch, count, height, width}, none = {0};
  Tensor gradient = in_huge_pages(torch::stable::new_empty(maps, with_gradient ? shape : none));
  C* loss = static_cast<C*>(losses.mutable_data_ptr());
  C* sum = static_cast<C*>(sums.mutable_data_ptr());
  T* sink = with_gradient ? static_cast<T*>(gradient.mutable_data_ptr()) : nullptr;
  std::fill(loss, loss + batch * rows * 2, C(0));
  std::fill(sum, sum + batch * rows * 2, C(1));
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const Reader reader(points);
  const MaskLabels labels_at(labels, points, nearest, border);
  const RowsOfMaps of(index, batch, rows, count);
  const bool plain = maps.stride(3) == 1 && maps.stride(2) == width;
  const bool at_once = number <= kPoints;  // their places and labels are still at hand when the sums are known
  const C share = C(1) / static_cast<C>(std::max<int64_t>(number, 1));
  torch::stable::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
    Row<C> at;
    std::vector<C> added, cells(with_gradient && !at_once ? kTerms * size : 0);
    for (int64_t map = begin; map < end; ++map) {
      const int64_t b = map / count, q = map % count;
      T* const to = with_gradient ? sink + map * size : nullptr;
      if (of.first[map] < 0 || size == 0) {
        if (with_gradient) std::fill(to, to + size, T(0));
        continue;
      }
      const T* own = data + b * maps.stride(0) + q * maps.stride(1);
      prefetch_for(own, number, height, width, maps.stride(2), maps.stride(3));
      C* const into = with_gradient ? cells_to_add_to<C>(to, size, added) : nullptr;
      for (int64_t m = of.first[map]; m >= 0; m = of.next[b * rows + m]) {
        MaskSums s;
        for (int64_t from = 0; from < number; from += kPoints) {
          const int64_t some = std::min(kPoints, number - from);
          at.table.fill(points, reader, b, m, from, some, height, width, maps.stride(2), maps.stride(3), false, border);
          read_points(own, at.table, some, at.x);
          labels_at.read(at.room, b, m, from, some, at.y);
          add_terms(at.x, at.y, some, at.p, at.spare, s);
          if (!with_gradient) continue;
          if (!plain) at.table.fill(points, reader, b, m, from, some, height, width, width, 1, false, border);
          if (at_once) continue;
          const bool finite = fill_terms(at.p, at.y, some, at.terms);
          spread(at.table, at.terms, finite, some, cells.data());
        }
        const double shared = 2 * s.py + 1, total = s.p + s.y + 1;
        C* const losses_of = loss + 2 * (b * rows + m);
        C* const sums_of = sum + 2 * (b * rows + m);
        losses_of[0] = static_cast<C>(s.bce / static_cast<double>(std::max<int64_t>(number, 1)));
        losses_of[1] = static_cast<C>(1 - shared / total);
        sums_of[0] = static_cast<C>(shared), sums_of[1] = static_cast<C>(total);
        if (!with_gradient) continue;
        const C by_p = static_cast<C>(shared / (total * total)), by_label = static_cast<C>(2 / total);
        if (at_once) {
          slopes(at.x, at.y, number, share, by_p, by_label, at.spare);
          add_at_points(at.table, number, at.spare, 1, into);
        } else {
          weigh_terms(cells.data(), size, share, by_p, by_label, into);
        }
      }
      if (with_gradient) store_cells(into, size, to);
    }
  });
  return {losses, sums, gradient};
}

std::tuple<Tensor, Tensor, Tensor> point_mask_losses(const Tensor maps, const Tensor index, const Tensor points,
                                                     const Tensor labels, bool nearest, bool border,
                                                     bool with_gradient) {
  check_map_points(maps, index, points);
  switch (maps.scalar_type()) {
    case ScalarType::Float:
      return compute<float, float>(maps, index, points, labels, nearest, border, with_gradient, ScalarType::Float);
    case ScalarType::Double:
      return compute<double, double>(maps, index, points, labels, nearest, border, with_gradient, ScalarType::Double);
    case ScalarType::Half:
      return compute<Half, float>(maps, index, points, labels, nearest, border, with_gradient, ScalarType::Float);
    case ScalarType::BFloat16:
      return compute<BFloat16, float>(maps, index, points, labels, nearest, border, with_gradient, ScalarType::Float);
    default: STD_TORCH_CHECK(false, "maps: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("point_mask_losses", TORCH_BOX(&detops::point_mask_losses)); }
