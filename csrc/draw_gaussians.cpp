// Draws Gaussians into maps, in place, by element-wise maximum: the CPU kernel of draw_gaussians_.
//
// The rows of all maps form one range, which is divided among torch's threads; each thread draws the part of every box
// that lies in its rows. So no two threads write to one place, the result does not depend on their number, and one huge
// map is divided as evenly as a thousand small ones. A Gaussian is an outer product: one row and one column of
// exponentials per box, then a multiplication and a comparison per pixel.
#include "gaussians.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kSerialBoxes = 16;  // fewer boxes than this cost less than waking a second thread

struct Maps {
  void* data;
  int64_t batch, classes, height, width;
  int64_t strides[4];
};

template <class T, class Compute>
class Drawer {
 public:
  Drawer(const Maps& maps, const Boxes& boxes, double factor, double k_scale)
      : maps_(maps), boxes_(boxes), factor_(factor), k_(static_cast<Compute>(k_scale)) {}

  // Draws the part that lies in the rows [row_begin, row_end) of the batch * classes * height rows of all maps.
  void operator()(int64_t row_begin, int64_t row_end) const {
    std::vector<Compute> gx(maps_.width + kBlock), gy(maps_.height + kBlock);
    const int64_t sample_rows = maps_.classes * maps_.height;
    for (int64_t b = row_begin / sample_rows; b * sample_rows < row_end; ++b) {
      const int64_t count = boxes_.labels.rows(b);
      for (int64_t n = 0; n < count; ++n) draw(b, n, row_begin, row_end, gx.data(), gy.data());
    }
  }

 private:
  void draw(int64_t b, int64_t n, int64_t row_begin, int64_t row_end, Compute* gx, Compute* gy) const {
    const int64_t c = boxes_.labels.at(b, n, maps_.classes);
    if (c < 0) return;
    const int64_t map_row = (b * maps_.classes + c) * maps_.height;
    if (map_row + maps_.height <= row_begin || map_row >= row_end) return;
    Gaussian box;
    if (!boxes_.read(b, n, box)) return;
    const Window columns(box.x, box.rx, maps_.width), rows(box.y, box.ry, maps_.height);
    if (columns.empty() || rows.empty()) return;
    const int64_t first = std::max(rows.begin, row_begin - map_row), last = std::min(rows.end, row_end - map_row);
    if (first >= last) return;

    // Over the whole window, not only the owned rows, so that the bits do not depend on how the rows are divided.
    profile(gx, static_cast<double>(columns.begin), box.x, factor_ / (2 * box.rx + 1), columns.padded());
    profile(gy, static_cast<double>(rows.begin), box.y, factor_ / (2 * box.ry + 1), rows.padded());
    T* map = static_cast<T*>(maps_.data) + b * maps_.strides[0] + c * maps_.strides[1];
    for (int64_t row = first; row < last; ++row) {
      T* start = map + row * maps_.strides[2] + columns.begin * maps_.strides[3];
      const Compute g = gy[row - rows.begin];
      const int64_t width = columns.end - columns.begin, stride = maps_.strides[3];
      if (stride == 1) {
        draw_row(start, gx, g, k_, width);
      } else {
        for (int64_t i = 0; i < width; ++i) draw_pixel(start[i * stride], gx[i], g, k_);
      }
    }
  }

  const Maps& maps_;
  const Boxes& boxes_;
  double factor_;
  Compute k_;
};

// Flattened, so that all of a thread's work is compiled for each instruction set.
#define DETOPS_DRAW_ROWS(T, Compute)                                                                          \
  DETOPS_CLONES DETOPS_FLATTEN void draw_rows(const Drawer<T, Compute>& drawer, int64_t begin, int64_t end) { \
    drawer(begin, end);                                                                                       \
  }
DETOPS_DRAW_ROWS(float, float)
DETOPS_DRAW_ROWS(Half, float)
DETOPS_DRAW_ROWS(BFloat16, float)
DETOPS_DRAW_ROWS(double, double)

template <class T, class Compute>
void draw_all(const Maps& maps, const Boxes& boxes, double factor, double k_scale) {
  const int64_t rows = maps.batch * maps.classes * maps.height;
  const Drawer<T, Compute> drawer(maps, boxes, factor, k_scale);
  const bool serial = maps.batch * boxes.count < kSerialBoxes;
  torch::stable::parallel_for(0, rows, serial ? rows : 1,
                              [&](int64_t begin, int64_t end) { draw_rows(drawer, begin, end); });
}

void draw_gaussians_(Tensor maps, const Tensor centers, const Tensor radii, const std::optional<Tensor> labels,
                     const std::optional<Tensor> sample_sizes, double factor, double k_scale) {
  STD_TORCH_CHECK(maps.dim() == 4, "heatmap: expected 4 dimensions (B, C, H, W), got ", maps.dim());
  STD_TORCH_CHECK(labels || maps.size(1) == 1, "labels: expected, unless there is one map per image");
  check_boxes(maps.size(0), centers, radii, labels, sample_sizes);
  if (maps.numel() == 0 || centers.numel() == 0) return;
  const Boxes boxes(centers, radii, labels, sample_sizes);
  const Maps target{maps.mutable_data_ptr(),
                    maps.size(0),
                    maps.size(1),
                    maps.size(2),
                    maps.size(3),
                    {maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)}};
  switch (maps.scalar_type()) {
    case ScalarType::Float: return draw_all<float, float>(target, boxes, factor, k_scale);
    case ScalarType::Half: return draw_all<Half, float>(target, boxes, factor, k_scale);
    case ScalarType::BFloat16: return draw_all<BFloat16, float>(target, boxes, factor, k_scale);
    case ScalarType::Double: return draw_all<double, double>(target, boxes, factor, k_scale);
    default: STD_TORCH_CHECK(false, "heatmap: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("draw_gaussians_", TORCH_BOX(&detops::draw_gaussians_)); }
