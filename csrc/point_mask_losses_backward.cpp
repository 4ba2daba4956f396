// The gradient of mask losses at points, by the maps: the CPU kernel of point_mask_losses_backward_.
//
// A gradient that is known for factors of 1 is scaled, if all losses have one factor. Else logits and labels are read
// again, which takes less time than keeping them takes memory. A map is written by one thread, which adds its rows of
// points in order: the number of threads changes nothing.
#include "mask_terms.h"
#include "map_sums.h"
#include "mask_labels.h"

namespace detops {
namespace {

// The one factor of all losses of pairs that have a map, 1 without such pairs; none if they differ.
std::optional<double> common_factor(const Tensor& index, const Tensor& factors, int64_t count) {
  const Reader chosen(index), factor(factors);
  std::optional<double> found;
  for (int64_t b = 0; b < index.size(0); ++b) {
    for (int64_t m = 0; m < index.size(1); ++m) {
      const double q = chosen.at(b, m);
      if (q < 0 || q >= static_cast<double>(count)) continue;
      for (int64_t i = 0; i < 2; ++i) {
        if (!found) found = factor.at(b, m, i);
        if (factor.at(b, m, i) != *found) return std::nullopt;
      }
    }
  }
  return found.value_or(1);
}

template <class T, class C>
void compute(Tensor& gradient, const Tensor& maps, const Tensor& index, const Tensor& points, const Tensor& labels,
             const Tensor& sums, const Tensor& factors, bool nearest, bool border, bool known) {
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t count = maps.size(1), height = maps.size(2), width = maps.size(3), size = height * width;
  T* sink = static_cast<T*>(gradient.mutable_data_ptr());
  const RowsOfMaps of(index, batch, rows, count);
  const std::optional<double> common = known ? common_factor(index, factors, count) : std::nullopt;
  if (common) {
    if (*common == 1) return;
    torch::stable::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t map = begin; map < end; ++map) {
        if (of.first[map] < 0) continue;
        for (int64_t i = map * size; i < (map + 1) * size; ++i) {
          sink[i] = static_cast<T>(static_cast<C>(sink[i]) * static_cast<C>(*common));
        }
      }
    });
    return;
  }
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const Reader reader(points), sum(sums), factor(factors);
  const MaskLabels labels_at(labels, points, nearest, border);
  const bool plain = maps.stride(3) == 1 && maps.stride(2) == width;
  torch::stable::parallel_for(0, batch * count, 1, [&](int64_t begin, int64_t end) {
    std::vector<C> added;
    PointTable<C> table;
    MaskLabels::Room room;
    C x[kPoints], y[kPoints], slope[kPoints];
    for (int64_t map = begin; map < end; ++map) {
      const int64_t b = map / count, q = map % count;
      T* to = sink + map * size;
      if (of.first[map] < 0 || size == 0) {
        std::fill(to, to + size, T(0));
        continue;
      }
      const T* own = data + b * maps.stride(0) + q * maps.stride(1);
      prefetch_for(own, number, height, width, maps.stride(2), maps.stride(3));
      C* into = cells_to_add_to<C>(to, size, added);
      for (int64_t m = of.first[map]; m >= 0; m = of.next[b * rows + m]) {
        const double shared = sum.at(b, m, 0), total = sum.at(b, m, 1), of_dice = factor.at(b, m, 1);
        const C of_bce = static_cast<C>(factor.at(b, m, 0) / static_cast<double>(std::max<int64_t>(number, 1)));
        const C constant = static_cast<C>(of_dice * shared / (total * total));
        const C of_label = static_cast<C>(of_dice * 2 / total);
        for (int64_t from = 0; from < number; from += kPoints) {
          const int64_t some = std::min(kPoints, number - from);
          table.fill(points, reader, b, m, from, some, height, width, maps.stride(2), maps.stride(3), false, border);
          read_points(own, table, some, x);
          labels_at.read(room, b, m, from, some, y);
          slopes(x, y, some, of_bce, constant, of_label, slope);
          if (!plain) table.fill(points, reader, b, m, from, some, height, width, width, 1, false, border);
          add_at_points(table, some, slope, 1, into);
        }
      }
      store_cells(into, size, to);
    }
  });
}

void point_mask_losses_backward_(Tensor gradient, const Tensor maps, const Tensor index, const Tensor points,
                                 const Tensor labels, const Tensor sums, const Tensor factors, bool nearest,
                                 bool border, bool known) {
  check_map_points(maps, index, points);
  STD_TORCH_CHECK(is_floating(maps.scalar_type()), "maps: expected floating point");
  STD_TORCH_CHECK(has_shape(gradient, {maps.size(0), maps.size(1), maps.size(2), maps.size(3)}) &&
                      gradient.scalar_type() == maps.scalar_type() && gradient.is_contiguous(),
                  "gradient: expected a contiguous tensor of the maps' shape and dtype");
  STD_TORCH_CHECK(has_numbers(sums, {points.size(0), points.size(1), 2}), "sums: expected numbers of shape (B, M, 2)");
  STD_TORCH_CHECK(has_numbers(factors, {points.size(0), points.size(1), 2}),
                  "factors: expected numbers of shape (B, M, 2)");
  const auto run = [&](auto map, auto computed) {
    compute<decltype(map), decltype(computed)>(gradient, maps, index, points, labels, sums, factors, nearest, border,
                                               known);
  };
  switch (maps.scalar_type()) {
    case ScalarType::Float: return run(float(), float());
    case ScalarType::Double: return run(double(), double());
    case ScalarType::Half: return run(Half(), float());
    case ScalarType::BFloat16: return run(BFloat16(), float());
    default: STD_TORCH_CHECK(false, "maps: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) {
  m.impl("point_mask_losses_backward_", TORCH_BOX(&detops::point_mask_losses_backward_));
}
