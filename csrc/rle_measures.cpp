// Areas and extents of masks from their run lengths: the CPU kernel of rle_measures.
#include "run_lengths.h"

namespace detops {
namespace {

std::tuple<Tensor, Tensor> rle_measures(const Tensor counts, const Tensor offsets, int64_t height, int64_t width) {
  RunLengths::check("", counts, offsets);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX / width,
                  "height, width: expected at least 1, and less than 2^31 pixels");
  const RunLengths masks(counts, offsets);
  Tensor areas = torch::stable::new_empty(counts, {masks.count}, ScalarType::Long);
  Tensor extents = torch::stable::new_empty(counts, {masks.count, 4}, ScalarType::Long);
  int64_t* area = static_cast<int64_t*>(areas.mutable_data_ptr());
  int64_t* extent = static_cast<int64_t*>(extents.mutable_data_ptr());
  torch::stable::parallel_for(0, masks.count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Measures found(masks, n, height, height * width);
      area[n] = found.area;
      const int64_t box[4] = {found.x1, found.y1, found.x2, found.y2};
      std::copy(box, box + 4, extent + 4 * n);
    }
  });
  return {areas, extents};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("rle_measures", TORCH_BOX(&detops::rle_measures)); }
