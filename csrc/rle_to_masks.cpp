// Pixels of a window of the image from run lengths: the CPU kernel of rle_to_masks.
#include "outputs.h"
#include "run_lengths.h"

namespace detops {
namespace {

struct Window {
  int64_t x, y, rows, columns;
};

// Calls pixels(column, first row, end row) for the parts of a run that lie in the window, column by column.
template <class Pixels>
inline void columns_of(int64_t first, int64_t end, int64_t height, const Window& window, const Pixels& pixels) {
  const int64_t last = std::min((end - 1) / height, window.x + window.columns - 1);
  for (int64_t x = std::max(first / height, window.x); x <= last; ++x) {
    const int64_t top = std::max(std::max(first - x * height, int64_t{0}), window.y);
    const int64_t bottom = std::min(std::min(end - x * height, height), window.y + window.rows);
    if (top < bottom) pixels(x - window.x, top - window.y, bottom - window.y);
  }
}

Tensor rle_to_masks(const Tensor counts, const Tensor offsets, int64_t height, int64_t width, int64_t x, int64_t y,
                    int64_t rows, int64_t columns, bool packed) {
  RunLengths::check("", counts, offsets);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX / width,
                  "height, width: expected at least 1, and less than 2^31 pixels");
  STD_TORCH_CHECK(x >= 0 && y >= 0 && rows >= 0 && columns >= 0 && rows <= height && columns <= width &&
                      y <= height - rows && x <= width - columns,
                  "x, y, rows, columns: expected a window within the image");
  const RunLengths masks(counts, offsets);
  const Window window{x, y, rows, columns};
  const int64_t stride = packed ? (columns + 7) / 8 : columns, size = rows * stride;
  Tensor out = in_huge_pages(
      torch::stable::new_empty(counts, {masks.count, rows, stride}, packed ? ScalarType::Byte : ScalarType::Bool));
  uint8_t* data = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, masks.count, 1, [&](int64_t begin, int64_t end) {
    if (size > 0) std::memset(data + begin * size, 0, (end - begin) * size);
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* mask = data + n * size;
      masks.each(n, height * width, [&](int64_t first, int64_t stop) {
        columns_of(first, stop, height, window, [&](int64_t column, int64_t top, int64_t bottom) {
          if (packed) {
            const uint8_t bit = static_cast<uint8_t>(128 >> (column & 7));
            for (int64_t r = top; r < bottom; ++r) mask[r * stride + (column >> 3)] |= bit;
          } else {
            for (int64_t r = top; r < bottom; ++r) mask[r * stride + column] = 1;
          }
        });
      });
    }
  });
  return out;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("rle_to_masks", TORCH_BOX(&detops::rle_to_masks)); }
