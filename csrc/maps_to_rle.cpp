// COCO's run lengths of low-resolution maps of an image: the CPU kernel of maps_to_rle. No pixel is ever stored.
//
// Down one column of the image, the value between two cells of a map is a a w0 + b w1. Where the threshold is 0,
// rounding keeps the order of that sum's signs: the first and the last pixel of such a piece say what lies between,
// nothing or one crossing, which is guessed by a division and settled by the arithmetic itself. Elsewhere rounding can
// make a value go to and fro within a few ulps of the threshold: a piece that is flat enough for that is read row by
// row. Cells that are not above the threshold make no pixel that is, so that only what lies around the others is looked
// at.
#include "run_lengths.h"
#include "unfused.h"

#include <limits>

namespace detops {
namespace {

constexpr float kUlps = 0x1p-20f;  // 16 ulps of float32: more than rounding adds to a value

inline float between(float first, float second, float near, float far) {
  const float a = first * near, b = second * far;
  return a + b;
}

// How far pixels lie from the cells before and after them: the weight of each. A map has one more cell than it was
// given, equal to its last.
struct Axis {
  std::vector<int32_t> cell;
  std::vector<float> near, far;
  int64_t cells;
  float step = 0;  // cells per pixel

  Axis(const Tensor& positions, int64_t count, const char* name) : cells(count) {
    const Reader reader(positions);
    const int64_t length = positions.size(0);
    cell.resize(length), near.resize(length), far.resize(length);
    for (int64_t i = 0; i < length; ++i) {
      const float limit = static_cast<float>(count), where = static_cast<float>(reader.at(i));
      const float at = where > 0 ? (where < limit ? where : limit) : 0;  // 0 for NaN
      cell[i] = static_cast<int32_t>(std::min<float>(std::floor(at), limit - 1));
      far[i] = std::min(at - static_cast<float>(cell[i]), 1.0f);
      near[i] = 1 - far[i];
      STD_TORCH_CHECK(i == 0 || cell[i] > cell[i - 1] || (cell[i] == cell[i - 1] && far[i] >= far[i - 1]), name,
                      ": expected ascending positions");
    }
    step = length > 1 ? (static_cast<float>(cell[length - 1]) + far[length - 1] - cell[0] - far[0]) / (length - 1) : 0;
  }

  int64_t length() const { return static_cast<int64_t>(cell.size()); }
};

// For each cell, the pixels that lie between it and the next, and the weights of the first and of the last of them.
struct Pieces {
  std::vector<int32_t> first, end;
  std::vector<float> near_first, far_first, near_last, far_last;

  Pieces(const Axis& axis, int64_t from, int64_t to)
      : first(axis.cells, 0), end(axis.cells, 0), near_first(axis.cells), far_first(axis.cells), near_last(axis.cells),
        far_last(axis.cells) {
    for (int64_t i = from; i < to; ++i) {
      const int32_t c = axis.cell[i];
      if (end[c] == 0) first[c] = static_cast<int32_t>(i), near_first[c] = axis.near[i], far_first[c] = axis.far[i];
      end[c] = static_cast<int32_t>(i + 1), near_last[c] = axis.near[i], far_last[c] = axis.far[i];
    }
  }
};

// Values column by column, and for each column the first and the last row above a limit; `low` exceeds `high` where
// there is none. Rows and columns are one more than cells: the last one twice.
struct Grid {
  std::vector<float> values;
  std::vector<int32_t> low, high;
  int64_t rows = 0, columns = 0;

  void resize(int64_t height, int64_t width) {
    rows = height, columns = width;
    values.resize((rows + 1) * (columns + 1));
    low.assign(columns + 1, std::numeric_limits<int32_t>::max());
    high.assign(columns + 1, -1);
  }

  float* column(int64_t c) { return values.data() + c * (rows + 1); }
  const float* column(int64_t c) const { return values.data() + c * (rows + 1); }
};

struct Rectangle {
  int64_t x1, y1, x2, y2;
};

DETOPS_CLONES void find_above(const float* row, int32_t r, float limit, int32_t* low, int32_t* high, int64_t count) {
  for (int64_t c = 0; c < count; ++c) {
    const bool above = row[c] > limit;
    low[c] = above && r < low[c] ? r : low[c];
    high[c] = above ? r : high[c];
  }
}

DETOPS_CLONES void blend(const float* left, const float* right, float near, float far, float* out, int64_t begin,
                         int64_t end) {
  for (int64_t r = begin; r < end; ++r) out[r] = between(left[r], right[r], near, far);
}

DETOPS_CLONES void pick(const float* column, const int32_t* cell, const float* near, const float* far, float* out,
                        int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) out[r] = between(column[cell[r]], column[cell[r] + 1], near[r], far[r]);
}

// For each piece whether its first pixel is above the threshold (bit 0), and its last (bit 1).
DETOPS_CLONES void ends_of(const float* column, const float* near_first, const float* far_first, const float* near_last,
                           const float* far_last, float threshold, uint8_t* states, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const float above = column[p], below = column[p + 1];
    const uint8_t first = between(above, below, near_first[p], far_first[p]) > threshold;
    const uint8_t last = between(above, below, near_last[p], far_last[p]) > threshold;
    states[p] = static_cast<uint8_t>(first | last << 1);
  }
}

// Sets bit 2 of the pieces in which rounding could cross the threshold twice.
DETOPS_CLONES void find_flat(const float* column, float threshold, float step, uint8_t* states, int64_t begin,
                             int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const float above = column[p], below = column[p + 1];
    const float a = std::fabs(above), b = std::fabs(below), margin = (a > b ? a : b) * kUlps;
    const bool apart = (above > threshold + margin) & (below > threshold + margin);
    const bool under = (above < threshold - margin) & (below < threshold - margin);
    const bool flat = std::fabs(below - above) * step <= margin;
    states[p] = static_cast<uint8_t>(states[p] | (flat & !apart & !under) << 2);
  }
}

class Tracer {
 public:
  Tracer(const Tensor& maps, const Axis& y, const Axis& x, const Axis* via_y, const Axis* via_x,
         const std::optional<Tensor>& windows, float threshold)
      : maps_(maps), reader_(maps), windows_(reader_of(windows)), y_(y), x_(x), via_y_(via_y), via_x_(via_x),
        threshold_(threshold), limit_(threshold - std::fabs(threshold) * kUlps), whole_(y, 0, y.length()),
        contiguous_(maps.scalar_type() == ScalarType::Float && maps.stride(2) == 1) {}

  void operator()(int64_t n, Runs& runs) const {
    Grid cells, inner;
    const bool any = read(n, cells);
    if (any && via_y_ != nullptr) enlarge(cells, inner);
    if (any) trace(n, via_y_ == nullptr ? cells : inner, runs);
    runs.change(y_.length() * x_.length());
  }

 private:
  // Reads map n; false where no cell is above the threshold.
  bool read(int64_t n, Grid& cells) const {
    const int64_t rows = maps_.size(1), columns = maps_.size(2);
    cells.resize(rows, columns);
    std::vector<float> copy;
    const float* map = nullptr;
    int64_t stride = columns;
    if (contiguous_) {
      stride = maps_.stride(1);
      map = static_cast<const float*>(maps_.const_data_ptr()) + n * maps_.stride(0);
    } else {
      copy.resize(rows * columns);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) copy[r * columns + c] = static_cast<float>(reader_.at(n, r, c));
      }
      map = copy.data();
    }
    for (int64_t r = 0; r < rows; ++r) {
      find_above(map + r * stride, static_cast<int32_t>(r), limit_, cells.low.data(), cells.high.data(), columns);
    }
    Rectangle found{columns, rows, 0, 0};
    for (int64_t c = 0; c < columns; ++c) {
      if (cells.high[c] < 0) continue;
      found.x1 = std::min(found.x1, c), found.x2 = c + 1;
      found.y1 = std::min<int64_t>(found.y1, cells.low[c]), found.y2 = std::max<int64_t>(found.y2, cells.high[c] + 1);
    }
    if (found.x2 == 0) return false;
    // One cell more on each side takes part; all do where pixels of a first resize lie further than that.
    const bool all = via_y_ != nullptr;
    const int64_t left = all ? 0 : std::max<int64_t>(found.x1 - 1, 0),
                  right = all ? columns : std::min(found.x2 + 1, columns);
    const int64_t top = all ? 0 : std::max<int64_t>(found.y1 - 1, 0),
                  bottom = all ? rows : std::min(found.y2 + 1, rows);
    for (int64_t c = left; c < right; ++c) {
      float* column = cells.column(c);
      for (int64_t r = top; r < bottom; ++r) column[r] = map[r * stride + c];
    }
    close(cells, left, right, top, bottom);
    return true;
  }

  // Repeats the last row and the last column where they are part of [left, right) and [top, bottom).
  static void close(Grid& grid, int64_t left, int64_t right, int64_t top, int64_t bottom) {
    if (bottom == grid.rows) {
      for (int64_t c = left; c < right; ++c) grid.column(c)[grid.rows] = grid.column(c)[grid.rows - 1];
      ++bottom;
    }
    if (right < grid.columns) return;
    std::copy(grid.column(grid.columns - 1) + top, grid.column(grid.columns - 1) + bottom,
              grid.column(grid.columns) + top);
    grid.low[grid.columns] = grid.low[grid.columns - 1];
    grid.high[grid.columns] = grid.high[grid.columns - 1];
  }

  // The first resize: as much of it as lies around cells above the threshold.
  void enlarge(const Grid& cells, Grid& inner) const {
    const int64_t height = via_y_->length(), width = via_x_->length();
    inner.resize(height, width);
    const auto reaches = [&](int64_t x) {
      const int32_t c = via_x_->cell[x];
      return cells.high[c] >= 0 || cells.high[c + 1] >= 0;
    };
    int32_t top = std::numeric_limits<int32_t>::max(), bottom = -1;
    for (int64_t c = 0; c < cells.columns; ++c)
      top = std::min(top, cells.low[c]), bottom = std::max(bottom, cells.high[c]);
    const auto& row = via_y_->cell;
    int64_t first = std::lower_bound(row.begin(), row.end(), top - 1) - row.begin();
    int64_t end = std::upper_bound(row.begin(), row.end(), bottom) - row.begin();
    first = std::max<int64_t>(first - 1, 0), end = std::min(end + 1, height);
    std::vector<float> wide(cells.rows + 1);
    for (int64_t x = 0; x < width; ++x) {
      if (!reaches(x) && !(x > 0 && reaches(x - 1)) && !(x + 1 < width && reaches(x + 1))) continue;
      const int32_t c = via_x_->cell[x];
      blend(cells.column(c), cells.column(c + 1), via_x_->near[x], via_x_->far[x], wide.data(), 0, cells.rows + 1);
      float* column = inner.column(x);
      pick(wide.data(), row.data(), via_y_->near.data(), via_y_->far.data(), column, first, end);
      int64_t low = first, high = end - 1;
      while (low <= high && !(column[low] > limit_)) ++low;
      while (high >= low && !(column[high] > limit_)) --high;
      if (low <= high) inner.low[x] = static_cast<int32_t>(low), inner.high[x] = static_cast<int32_t>(high);
      if (end == height) column[height] = column[height - 1];
    }
    close(inner, width, width, first, end);
  }

  void trace(int64_t n, const Grid& grid, Runs& runs) const {
    const int64_t height = y_.length(), width = x_.length();
    Rectangle window{0, 0, width, height};
    if (windows_) {
      const auto cut = [&](int64_t side, int64_t most) {
        return static_cast<int64_t>(std::clamp(windows_->at(n, side), 0.0, static_cast<double>(most)));
      };
      window = {cut(0, width), cut(1, height), cut(2, width), cut(3, height)};
      if (window.x1 >= window.x2 || window.y1 >= window.y2) return;
    }
    std::optional<Pieces> own;
    if (window.y1 > 0 || window.y2 < height) own.emplace(y_, window.y1, window.y2);
    const Pieces& pieces = own ? *own : whole_;
    std::vector<float> column(grid.rows + 1);
    std::vector<uint8_t> states(grid.rows);
    bool inside = false;
    int64_t last = -2;  // the column before, whose run may go on
    for (int64_t x = window.x1; x < window.x2; ++x) {
      const int32_t c = x_.cell[x];
      const int64_t low = std::min(grid.low[c], grid.low[c + 1]), high = std::max(grid.high[c], grid.high[c + 1]);
      if (low > high) continue;
      const int64_t begin = std::max<int64_t>(low - 1, 0), end = std::min<int64_t>(high + 1, grid.rows);
      blend(grid.column(c), grid.column(c + 1), x_.near[x], x_.far[x], column.data(), begin, end + 1);
      ends_of(column.data(), pieces.near_first.data(), pieces.far_first.data(), pieces.near_last.data(),
              pieces.far_last.data(), threshold_, states.data(), begin, end);
      if (threshold_ != 0) find_flat(column.data(), threshold_, y_.step, states.data(), begin, end);
      walk(x, last, begin, end, pieces, column.data(), states.data(), inside, runs);
      last = x;
    }
    if (inside && (last + 1) * height < width * height) runs.change((last + 1) * height);
  }

  // Down one column, through the pieces [begin, end); all other pixels of it are 0.
  void walk(int64_t x, int64_t last, int64_t begin, int64_t end, const Pieces& pieces, const float* column,
            const uint8_t* states, bool& inside, Runs& runs) const {
    const int64_t height = y_.length(), top = x * height;
    int64_t bottom = 0;  // row where the last piece ends
    for (int64_t p = begin; p < end; ++p) {
      if (inside && bottom == 0 && pieces.end[p] > 0 && (last + 1 != x || pieces.first[p] > 0)) {
        runs.change((last + 1) * height);  // the run of the column before ended with that
        inside = false;
      }
      if (pieces.end[p] == 0) continue;
      bottom = pieces.end[p];
      if (states[p] == (inside ? 3 : 0)) continue;
      if (states[p] & 4) {
        for (int32_t r = pieces.first[p]; r < pieces.end[p]; ++r) {
          if (above(column, p, r) != inside) {
            runs.change(top + r);
            inside = !inside;
          }
        }
        continue;
      }
      const bool first = states[p] & 1, second = states[p] & 2;
      if (first != inside) runs.change(top + pieces.first[p]);
      if (first != second) runs.change(top + crossing(column, p, pieces, second));
      inside = second;
    }
    if (inside && bottom > 0 && bottom < height) {
      runs.change(top + bottom);
      inside = false;
    } else if (inside && bottom == 0) {  // no pixel of this column lies between those cells
      runs.change((last + 1) * height);
      inside = false;
    }
  }

  bool above(const float* column, int64_t p, int32_t row) const {
    return between(column[p], column[p + 1], y_.near[row], y_.far[row]) > threshold_;
  }

  // The first row of a piece from which on the state is that of its last row: guessed from the weight at which the line
  // meets the threshold, then settled by the pixels around it.
  int32_t crossing(const float* column, int64_t p, const Pieces& pieces, bool state) const {
    const int32_t first = pieces.first[p], end = pieces.end[p];
    const float where = (threshold_ - column[p]) / (column[p + 1] - column[p]);
    const float slope = (pieces.far_last[p] - pieces.far_first[p]) / static_cast<float>(end - 1 - first);
    const float low = static_cast<float>(first + 1), high = static_cast<float>(end - 1);
    const float guess = static_cast<float>(first) + std::ceil((where - pieces.far_first[p]) / slope);
    int32_t row = guess > low ? (guess < high ? static_cast<int32_t>(guess) : end - 1) : first + 1;  // also for NaN
    while (row > first + 1 && above(column, p, row - 1) == state) --row;
    while (row < end - 1 && above(column, p, row) != state) ++row;
    return row;
  }

  const Tensor maps_;
  const Reader reader_;
  const std::optional<Reader> windows_;
  const Axis &y_, &x_;
  const Axis *via_y_, *via_x_;
  const float threshold_, limit_;  // no pixel is above the threshold unless a cell is above the limit
  const Pieces whole_;
  const bool contiguous_;
};

std::tuple<Tensor, Tensor> maps_to_rle(const Tensor maps, const Tensor y, const Tensor x,
                                       const std::optional<Tensor> via_y, const std::optional<Tensor> via_x,
                                       const std::optional<Tensor> windows, double threshold, bool compress) {
  STD_TORCH_CHECK(has_numbers(maps, {-1, -1, -1}) && maps.size(1) > 0 && maps.size(2) > 0 && maps.size(1) < (1 << 24) &&
                      maps.size(2) < (1 << 24),
                  "maps: expected numbers of shape (N, h, w)");
  for (const Tensor* axis : {&y, &x}) {
    STD_TORCH_CHECK(has_numbers(*axis, {-1}) && axis->size(0) > 0, axis == &y ? "y" : "x",
                    ": expected numbers, one per pixel");
  }
  STD_TORCH_CHECK(y.size(0) <= INT32_MAX / x.size(0), "y, x: expected less than 2^31 pixels");
  STD_TORCH_CHECK(via_y.has_value() == via_x.has_value(), "via_y, via_x: expected both or neither");
  for (const std::optional<Tensor>* axis : {&via_y, &via_x}) {
    STD_TORCH_CHECK(!*axis || (has_numbers(**axis, {-1}) && (*axis)->size(0) > 0 && (*axis)->size(0) < (1 << 24)),
                    axis == &via_y ? "via_y" : "via_x", ": expected numbers, one per pixel");
  }
  STD_TORCH_CHECK(!windows || has_numbers(*windows, {maps.size(0), 4}), "windows: expected numbers of shape (N, 4)");
  STD_TORCH_CHECK(std::isfinite(static_cast<float>(threshold)), "threshold: expected a finite number");
  std::optional<Axis> inner_y, inner_x;
  if (via_y) inner_y.emplace(*via_y, maps.size(1), "via_y"), inner_x.emplace(*via_x, maps.size(2), "via_x");
  const Axis rows(y, via_y ? inner_y->length() : maps.size(1), "y");
  const Axis columns(x, via_x ? inner_x->length() : maps.size(2), "x");
  const Tracer tracer(maps, rows, columns, inner_y ? &*inner_y : nullptr, inner_x ? &*inner_x : nullptr, windows,
                      static_cast<float>(threshold));
  return traced(maps, maps.size(0), compress, tracer);
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("maps_to_rle", TORCH_BOX(&detops::maps_to_rle)); }
