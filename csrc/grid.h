// The points of one level of a feature pyramid, and windows of them where they form a grid.
#pragma once

#include <algorithm>
#include <cstdint>

namespace detops {

// Points start .. start + size - 1 of columns of coordinates. `width` is the number of columns if they form a grid, row
// by row, else 0.
struct GridLevel {
  int64_t start, size, width;

  GridLevel(const float* x_of_all, const float* y_of_all, int64_t start, int64_t size)
      : start(start), size(size), width(0) {
    const float *x = x_of_all + start, *y = y_of_all + start;
    int64_t columns = 0;
    while (columns < size && y[columns] == y[0] && (columns == 0 || x[columns] > x[columns - 1])) ++columns;
    if (columns == 0 || size % columns != 0) return;
    for (int64_t row = columns; row < size; row += columns) {
      if (!(y[row] > y[row - columns])) return;
      for (int64_t i = 0; i < columns; ++i) {
        if (y[row + i] != y[row] || x[row + i] != x[i]) return;
      }
    }
    width = columns;
  }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The lines of a grid around a coordinate: its columns, whose x are line[0 .. count - 1], or its rows, whose y are
// `step` (the number of columns) apart. At least `half` of them lie on either side, if there are so many. `beyond` is
// lowered to the squared distance of the nearest line outside.
inline Range lines_around(const float* line, int64_t count, int64_t step, float center, int64_t half, float& beyond) {
  int64_t low = 0, high = count - 1;  // the coordinate lies between these two: a grid's lines are in order
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (line[middle * step] <= center ? low : high) = middle;
  }
  const Range range{std::max<int64_t>(low - half, 0), std::min(low + half + 2, count)};
  for (int64_t outside : {range.begin - 1, range.end}) {
    if (outside < 0 || outside >= count) continue;
    const float apart = line[outside * step] - center;
    beyond = std::min(beyond, apart * apart);
  }
  return range;
}

}  // namespace detops
