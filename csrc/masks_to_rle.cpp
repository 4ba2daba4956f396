// COCO's run lengths of masks in boxes: the CPU kernel of masks_to_rle. No pixel is ever stored.
//
// Down one column of the image, the value between two rows of the mask is a straight line. Rounding keeps it monotone,
// so the first and the last pixel of such a piece tell whether there is a crossing between them. Its row is estimated
// by a division and then decided by the arithmetic of paste_masks. So a column costs as much as the mask has rows,
// however high the box is.
#include "mask_sampling.h"
#include "run_lengths.h"

namespace detops {
namespace {

// The rows of an image that lie between the same two rows of a mask.
struct Pieces {
  std::vector<int32_t> index, first, end;  // row of the mask; rows of the image, from the axis' first
  std::vector<float> from, to;             // fraction at the first row, and at the last

  explicit Pieces(const Axis& y) {
    const int32_t count = static_cast<int32_t>(y.end - y.begin);
    for (int32_t r = 0; r < count; ++r) {
      if (r == 0 || y.index[r] != y.index[r - 1]) {
        index.push_back(y.index[r]);
        first.push_back(r);
        from.push_back(y.fraction[r]);
        end.push_back(r + 1);
        to.push_back(y.fraction[r]);
      } else {
        end.back() = r + 1;
        to.back() = y.fraction[r];
      }
    }
  }
};

// One column of the mask between two of its own, and for each piece whether its first and last pixel are above.
DETOPS_CLONES void evaluate(const float* left, const float* right, float fraction, float* column, int64_t rows,
                            const int32_t* index, const float* from, const float* to, float threshold, uint8_t* states,
                            int64_t pieces) {
  for (int64_t r = 0; r < rows; ++r) column[r] = between(left[r], right[r], fraction);
  for (int64_t p = 0; p < pieces; ++p) {
    const float above = column[index[p]], below = column[index[p] + 1];
    const uint8_t first = between(above, below, from[p]) >= threshold;
    const uint8_t last = between(above, below, to[p]) >= threshold;
    states[p] = static_cast<uint8_t>(first | last << 1);
  }
}

// The first row of a piece from which on the state is that of its last row: estimated from the fraction at which the
// line meets the threshold, then decided by the pixels around it.
inline int32_t crossing(const Axis& y, int32_t first, int32_t end, float above, float below, float threshold,
                        bool last) {
  const double rows = ((threshold - above) / (below - above) - y.fraction[first]) * (y.side / y.cells);
  const double low = first + 1, high = end - 1;
  const double guess = first + std::ceil(rows);
  int32_t row = static_cast<int32_t>(guess > low ? (guess < high ? guess : high) : low);  // low for NaN
  const auto state = [&](int32_t r) { return between(above, below, y.fraction[r]) >= threshold; };
  while (row > first + 1 && state(row - 1) == last) --row;
  while (row < end - 1 && state(row) != last) ++row;
  return row;
}

class Tracer {
 public:
  Tracer(const Masks& masks, int64_t height, int64_t width, float threshold)
      : masks_(masks), height_(height), width_(width), threshold_(threshold) {}

  void operator()(int64_t n, Runs& runs) const {
    Axis x, y;
    if (masks_.place(n, height_, width_, x, y)) trace(n, x, y, runs);
    runs.change(height_ * width_);
  }

 private:
  void trace(int64_t n, const Axis& x, const Axis& y, Runs& runs) const {
    const int64_t rows = masks_.rows + 2;
    std::vector<float> mask((masks_.columns + 2) * rows, 0.0f), column(rows);  // column by column
    for (int64_t c = 0; c < masks_.columns; ++c) {
      for (int64_t r = 0; r < masks_.rows; ++r) mask[(c + 1) * rows + r + 1] = masks_.at(n, r, c);
    }
    const Pieces pieces(y);
    const int64_t count = static_cast<int64_t>(pieces.index.size());
    std::vector<uint8_t> states(count);
    const bool whole = y.begin == 0 && y.end == height_;  // else every column ends with a 0
    bool inside = false;
    for (int64_t i = 0; i < x.end - x.begin; ++i) {
      const float* left = mask.data() + x.index[i] * rows;
      evaluate(left, left + rows, x.fraction[i], column.data(), rows, pieces.index.data(), pieces.from.data(),
               pieces.to.data(), threshold_, states.data(), count);
      const int64_t top = (x.begin + i) * height_ + y.begin;
      for (int64_t p = 0; p < count; ++p) {
        const bool first = states[p] & 1, last = states[p] >> 1;
        if (first != inside) runs.change(top + pieces.first[p]);
        if (first != last) {
          const int32_t r = pieces.index[p];
          runs.change(top + crossing(y, pieces.first[p], pieces.end[p], column[r], column[r + 1], threshold_, last));
        }
        inside = last;
      }
      const int64_t bottom = (x.begin + i) * height_ + y.end;
      if (inside && (!whole || i + 1 == x.end - x.begin) && bottom < height_ * width_) {
        runs.change(bottom);
        inside = false;
      }
    }
  }

  const Masks& masks_;
  int64_t height_, width_;
  float threshold_;
};

std::tuple<Tensor, Tensor> masks_to_rle(const Tensor masks, const Tensor boxes, int64_t height, int64_t width,
                                        double threshold, bool compress) {
  check_masks(masks, boxes, height, width, threshold);
  const Masks input(masks, boxes);
  const Tracer tracer(input, height, width, static_cast<float>(threshold));
  return traced(masks, input.count, compress, tracer);
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("masks_to_rle", TORCH_BOX(&detops::masks_to_rle)); }
