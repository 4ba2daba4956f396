// Adding values at points to the cells of maps, for the ops that hand gradients back to maps.
#pragma once

#include "map_points.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace detops {

// The rows of points of each map, in order: `first` of a map, and `next` of a row; -1 for none.
struct RowsOfMaps {
  std::vector<int64_t> first, next;

  RowsOfMaps(const std::optional<Tensor>& index, int64_t batch, int64_t rows, int64_t count)
      : first(batch * count, -1), next(batch * rows, -1) {
    const std::optional<Reader> chosen = reader_of(index);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t m = rows - 1; m >= 0; --m) {
        const int64_t q = chosen ? static_cast<int64_t>(chosen->at(b, m)) : m;
        if (q < 0 || q >= count) continue;
        next[b * rows + m] = first[b * count + q];
        first[b * count + q] = m;
      }
    }
  }
};

// Zeros to add to: the map itself, or `room` where it has another dtype than sums have.
template <class C, class T>
C* cells_to_add_to(T* map, int64_t size, std::vector<C>& room) {
  if constexpr (std::is_same_v<T, C>) {
    std::fill(map, map + size, C(0));
    return map;
  } else {
    room.assign(size, C(0));
    return room.data();
  }
}

template <class C, class T>
void store_cells(const C* sums, int64_t size, T* map) {
  if constexpr (!std::is_same_v<T, C>) {
    for (int64_t i = 0; i < size; ++i) map[i] = static_cast<T>(sums[i]);
  }
}

// Adds to two cells that are neighbours; read and written as one.
template <class C>
DETOPS_INLINE void add_pair(C* cells, C left, C right) {
  C pair[2];
  __builtin_memcpy(pair, cells, sizeof(pair));
  pair[0] += left, pair[1] += right;
  __builtin_memcpy(cells, pair, sizeof(pair));
}

// Adds values, `step` apart, at the points of a table.
template <class T, class C>
void add_at_points(const PointTable<C>& table, int64_t count, const T* values, int64_t step, C* sums) {
  const PointAxis<C>&x = table.x, &y = table.y;
  int32_t broken = 0;  // whether a value is not finite
  for (int64_t p = 0; p < count; ++p) {
    const C value = static_cast<C>(values[p * step]);
    broken |= value - value != 0;
  }
  if (broken == 0 && table.paired) {
    for (int64_t p = 0; p < count; ++p) {
      const C value = static_cast<C>(values[p * step]), above = value * y.before[p], below = value * y.after[p];
      add_pair(sums + y.first[p] + table.place[p], above * table.left[p], above * table.right[p]);
      add_pair(sums + y.second[p] + table.place[p], below * table.left[p], below * table.right[p]);
    }
    return;
  }
  // A cell of no weight may be another's: it is not touched, lest a NaN spreads.
  for (int64_t p = 0; p < count; ++p) {
    const C value = static_cast<C>(values[p * step]), above = value * y.before[p], below = value * y.after[p];
    C *top = sums + y.first[p], *bottom = sums + y.second[p];
    if (y.before[p] != 0 && x.before[p] != 0) top[x.first[p]] += above * x.before[p];
    if (y.before[p] != 0 && x.after[p] != 0) top[x.second[p]] += above * x.after[p];
    if (y.after[p] != 0 && x.before[p] != 0) bottom[x.first[p]] += below * x.before[p];
    if (y.after[p] != 0 && x.after[p] != 0) bottom[x.second[p]] += below * x.after[p];
  }
}

}  // namespace detops
