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

// Adds values, `step` apart, at the points of a table.
template <class T, class C>
void add_at_points(const PointTable<C>& table, int64_t count, const T* values, int64_t step, C* sums) {
  for (int64_t p = 0; p < count; ++p) {
    const C value = static_cast<C>(values[p * step]);
    const C above = value * table.y.before[p], below = value * table.y.after[p];
    const C left = table.x.before[p], right = table.x.after[p];
    C* top = sums + table.y.first[p];
    C* bottom = sums + table.y.second[p];
    // A cell of no weight may be another's: it is not touched, lest a NaN spreads.
    if (table.y.before[p] != 0 && left != 0) top[table.x.first[p]] += above * left;
    if (table.y.before[p] != 0 && right != 0) top[table.x.second[p]] += above * right;
    if (table.y.after[p] != 0 && left != 0) bottom[table.x.first[p]] += below * left;
    if (table.y.after[p] != 0 && right != 0) bottom[table.x.second[p]] += below * right;
  }
}

}  // namespace detops
