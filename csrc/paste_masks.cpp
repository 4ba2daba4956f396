// Enlarges each mask to its box and cuts it at a threshold: the CPU kernel of paste_masks.
//
// The rows of all images form one range, which is divided among torch's threads. A mask is first interpolated along x,
// which gives one row of the box's width for each of its own few rows; each row of the image lies between two of those.
#include "mask_sampling.h"
#include "outputs.h"

#include <cstring>

namespace detops {
namespace {

DETOPS_CLONES void widen(const float* row, const int32_t* index, const float* fraction, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = between(row[index[i]], row[index[i] + 1], fraction[i]);
}

DETOPS_CLONES void cut(const float* above, const float* below, float fraction, float threshold, uint8_t* out,
                       int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = between(above[i], below[i], fraction) >= threshold;
}

class Paster {
 public:
  Paster(const Masks& masks, int64_t height, int64_t width, float threshold, uint8_t* out)
      : masks_(masks), height_(height), width_(width), threshold_(threshold), out_(out) {}

  // Writes the rows [begin, end) of the N * height rows of all images.
  void operator()(int64_t begin, int64_t end) const {
    std::memset(out_ + begin * width_, 0, (end - begin) * width_);
    Axis x, y;
    std::vector<float> wide, row(masks_.columns + 2, 0.0f);
    for (int64_t n = begin / height_; n * height_ < end; ++n) {
      if (!masks_.place(n, height_, width_, x, y)) continue;
      const int64_t first = std::max(y.begin, begin - n * height_), last = std::min(y.end, end - n * height_);
      if (first >= last) continue;
      const int64_t count = x.end - x.begin;
      wide.assign((masks_.rows + 2) * count, 0.0f);
      for (int64_t r = y.index[first - y.begin]; r <= y.index[last - 1 - y.begin] + 1; ++r) {
        if (r == 0 || r > masks_.rows) continue;  // the border
        for (int64_t c = 0; c < masks_.columns; ++c) row[c + 1] = masks_.at(n, r - 1, c);
        widen(row.data(), x.index.data(), x.fraction.data(), wide.data() + r * count, count);
      }
      for (int64_t r = first; r < last; ++r) {
        const float* above = wide.data() + y.index[r - y.begin] * count;
        cut(above, above + count, y.fraction[r - y.begin], threshold_, out_ + (n * height_ + r) * width_ + x.begin,
            count);
      }
    }
  }

 private:
  const Masks& masks_;
  int64_t height_, width_;
  float threshold_;
  uint8_t* out_;
};

Tensor paste_masks(const Tensor masks, const Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_masks(masks, boxes, height, width, threshold);
  Tensor out = in_huge_pages(torch::stable::new_empty(masks, {masks.size(0), height, width}, ScalarType::Bool));
  const Masks input(masks, boxes);
  const Paster paster(input, height, width, static_cast<float>(threshold),
                      static_cast<uint8_t*>(out.mutable_data_ptr()));
  torch::stable::parallel_for(0, input.count * height, 64, paster);
  return out;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("paste_masks", TORCH_BOX(&detops::paste_masks)); }
