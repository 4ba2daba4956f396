// Maps read at points, where they are and whatever their dtype: the CPU kernel of maps_at_points.
#include "map_points.h"
#include "outputs.h"

#include <algorithm>
#include <limits>

namespace detops {
namespace {

constexpr int64_t kPoints = 1024;    // whose places are held at once
constexpr int64_t kRows = 4;         // that share their points, per task: so many maps fit the cache
constexpr int64_t kAhead = 1 << 16;  // numbers of a map that is fetched ahead
constexpr int64_t kLines = 2;        // of the cache that a point reads

template <class T, class C>
Tensor compute(const Tensor& maps, const std::optional<Tensor>& index, const Tensor& points, bool nearest, bool border,
               ScalarType wide) {
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t count = maps.size(1), height = maps.size(2), width = maps.size(3);
  Tensor result = in_huge_pages(torch::stable::new_empty(maps, {batch, rows, number}, wide));
  C* out = static_cast<C*>(result.mutable_data_ptr());
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const std::optional<Reader> chosen = reader_of(index);
  const Reader reader(points);
  const bool empty = count == 0 || height == 0 || width == 0;
  const bool dense = maps.stride(3) == 1 && maps.stride(2) == width && height * width <= kAhead &&
                     number * kLines * 64 >= height * width * static_cast<int64_t>(sizeof(T));
  const auto map_of = [&](int64_t b, int64_t m) -> const T* {
    const int64_t q = chosen ? static_cast<int64_t>(chosen->at(b, m)) : m;
    return q < 0 || q >= count ? nullptr : data + b * maps.stride(0) + q * maps.stride(1);
  };
  // Rows that share their points are read with one table.
  const int64_t each = points.stride(1) == 0 ? kRows : 1, tasks = (rows + each - 1) / each;
  torch::stable::parallel_for(0, batch * tasks, 1, [&](int64_t begin, int64_t end) {
    PointTable<C> table;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks, first = task % tasks * each, last = std::min(rows, first + each);
      for (int64_t from = 0; from < number; from += kPoints) {
        const int64_t some = std::min(kPoints, number - from);
        if (!empty) {
          table.fill(points, reader, b, first, from, some, height, width, maps.stride(2), maps.stride(3), nearest,
                     border);
        }
        for (int64_t m = first; m < last; ++m) {
          C* values = out + (b * rows + m) * number + from;
          const T* map = empty ? nullptr : map_of(b, m);
          if (map == nullptr) {
            std::fill(values, values + some, C(0));
            continue;
          }
          const T* next = dense && from == 0 && m + 1 < rows ? map_of(b, m + 1) : nullptr;
          if (next != nullptr) prefetch(next, height * width);
          read_points(map, table, some, values);
        }
      }
    }
  });
  return result;
}

Tensor maps_at_points(const Tensor maps, const std::optional<Tensor> index, const Tensor points, bool nearest,
                      bool border) {
  STD_TORCH_CHECK(has_shape(maps, {-1, -1, -1, -1}), "maps: expected shape (B, Q, h, w)");
  STD_TORCH_CHECK(has_numbers(points, {maps.size(0), -1, -1, 2}), "points: expected numbers of shape (B, M, P, 2)");
  STD_TORCH_CHECK(index || points.size(1) == maps.size(1), "points: expected as many rows as maps, without an index");
  STD_TORCH_CHECK(!index || has_numbers(*index, {maps.size(0), points.size(1)}),
                  "index: expected numbers of shape (B, M)");
  STD_TORCH_CHECK(maps.size(2) * maps.stride(2) + maps.size(3) * maps.stride(3) <= std::numeric_limits<int32_t>::max(),
                  "maps: expected a map that spans fewer than 2^31 numbers");
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
