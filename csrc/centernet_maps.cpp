// CenterNet's dense maps of sizes and offsets: the CPU kernel of centernet_maps. Images are divided among torch's
// threads; each image's maps are cleared, and then written at the cells of its boxes.
#include "common.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kMaps = 5;  // width, height, both offsets, and whether there is a box

template <class T>
void fill(const Reader& wh, const Reader& offset, const Reader& index, const Reader& used, int64_t b, int64_t count,
          int64_t cells, T* maps) {
  std::fill(maps, maps + kMaps * cells, static_cast<T>(0.0f));
  for (int64_t n = 0; n < count; ++n) {
    const double cell = index.at(b, n);
    if (used.at(b, n) == 0 || !(cell >= 0) || !(cell < static_cast<double>(cells))) continue;
    T* at = maps + static_cast<int64_t>(cell);
    for (int64_t axis = 0; axis < 2; ++axis) {
      at[axis * cells] = static_cast<T>(wh.at(b, n, axis));
      at[(2 + axis) * cells] = static_cast<T>(offset.at(b, n, axis));
    }
    at[4 * cells] = static_cast<T>(1.0f);
  }
}

Tensor centernet_maps(const Tensor wh, const Tensor offset, const Tensor index, const Tensor used, int64_t height,
                      int64_t width, ScalarType dtype) {
  STD_TORCH_CHECK(has_numbers(index, {-1, -1}), "index: expected numbers of shape (B, N)");
  const int64_t batch = index.size(0), count = index.size(1), cells = height * width;
  STD_TORCH_CHECK(has_numbers(wh, {batch, count, 2}), "wh: expected numbers of shape (B, N, 2)");
  STD_TORCH_CHECK(has_numbers(offset, {batch, count, 2}), "offset: expected numbers of shape (B, N, 2)");
  STD_TORCH_CHECK(has_booleans(used, {batch, count}), "used: expected bool of shape (B, N)");
  STD_TORCH_CHECK(height > 0, "height: expected at least 1");
  STD_TORCH_CHECK(width > 0, "width: expected at least 1");
  STD_TORCH_CHECK(is_floating(dtype), "dtype: expected float32, float16, bfloat16 or float64");
  Tensor maps = torch::stable::new_empty(index, {batch, kMaps, height, width}, dtype);
  void* data = maps.mutable_data_ptr();
  const Reader sizes(wh), shifts(offset), places(index), counts(used);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const auto run = [&](auto* all) {
        fill(sizes, shifts, places, counts, b, count, cells, all + b * kMaps * cells);
      };
      switch (dtype) {
        case ScalarType::Float: run(static_cast<float*>(data)); break;
        case ScalarType::Half: run(static_cast<Half*>(data)); break;
        case ScalarType::BFloat16: run(static_cast<BFloat16*>(data)); break;
        default: run(static_cast<double*>(data));
      }
    }
  });
  return maps;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("centernet_maps", TORCH_BOX(&detops::centernet_maps)); }
