// Draws Gaussians into maps, in place, by element-wise maximum: the CPU kernel of draw_gaussians_.
//
// All rows of all maps are one range that torch's threads share out; a thread draws, of every box, the rows
// that it owns. So nothing is written twice at once, the result does not depend on the number of threads, and
// one huge map is shared as well as a thousand small ones. A Gaussian is an outer product: one row and one
// column of exponentials a box, then multiply and compare.
#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace detops {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr int64_t kBlock = 16;  // exponentials are computed in whole vectors; buffers are padded to this
constexpr int64_t kSerialBoxes = 16;  // fewer boxes than this cost less than waking a second thread

// exp(x) for -87 <= x <= 0, relative error below 2e-7, exp(0) = 1 exactly. Written out because it must give
// the same bits at every position of a loop, vectorised or not. 2^n * p(r), r = x - n ln 2.
inline float exp_negative(float x) {
  const float n = std::nearbyint(x * 1.44269504088896341f);
  float r = x - n * 0.693145751953125f;  // the upper bits of ln 2: n * upper is exact
  r -= n * 1.42860682030941723e-6f;      // and the rest of ln 2
  float p = 1.0f / 720;                  // Taylor is within half an ulp of the minimax on |r| <= ln(2) / 2
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  static_assert(sizeof(scale) == sizeof(bits));
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// out[i] = exp(-((first + i - center) * inverse_sigma)^2 / 2), for `padded` (a multiple of kBlock) values.
inline void profile(float* out, double first, double center, double inverse_sigma, int64_t padded) {
  for (int64_t base = 0; base < padded; base += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const float t = static_cast<float>((first + static_cast<double>(base + i) - center) * inverse_sigma);
      const float e = -0.5f * t * t;
      out[base + i] = exp_negative(e > -87.0f ? e : -87.0f);
    }
  }
}

inline void profile(double* out, double first, double center, double inverse_sigma, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) {
    const double t = (first + static_cast<double>(i) - center) * inverse_sigma;
    out[i] = std::exp(-0.5 * t * t);
  }
}

// map[i] = max(map[i], value of the Gaussian); a NaN in the map stays, as torch.maximum keeps it.
template <class T, class Compute>
inline void draw_pixel(T& map, Compute gx, Compute gy, Compute k) {
  const Compute g = gx * gy;
  const Compute value = g >= static_cast<Compute>(kEps) ? g * k : Compute(0);
  const Compute held = static_cast<Compute>(map);
  map = static_cast<T>(value > held ? value : held);
}

#if defined(__GNUC__)
template <int Width>
struct Vector {
  typedef float Type __attribute__((vector_size(Width * sizeof(float))));
  static Type load(const float* from) {
    Type v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
};

// A row of Width to 2 * Width pixels as two vectors that may overlap, both read before either is written: a
// read of what was just written would stall. Left to itself, the compiler makes scalars of such short rows.
template <int Width>
inline void draw_two_vectors(float* map, const float* gx, float gy, float k, int64_t n) {
  using V = Vector<Width>;
  const int64_t shift = n - Width;
  const typename V::Type held[2] = {V::load(map), V::load(map + shift)};
  const typename V::Type row[2] = {V::load(gx), V::load(gx + shift)};
  typename V::Type drawn[2];
  for (int i = 0; i < 2; ++i) {
    const typename V::Type g = row[i] * gy;
    const typename V::Type value = g >= static_cast<float>(kEps) ? g * k : g * 0.0f;
    drawn[i] = value > held[i] ? value : held[i];
  }
  __builtin_memcpy(map, &drawn[0], sizeof(drawn[0]));
  __builtin_memcpy(map + shift, &drawn[1], sizeof(drawn[1]));
}
#endif

template <class T, class Compute>
inline void draw_row(T* map, const Compute* gx, Compute gy, Compute k, int64_t n) {
#if defined(__GNUC__)
  if constexpr (std::is_same_v<T, float>) {
    if (n >= 4 && n <= 8) return draw_two_vectors<4>(map, gx, gy, k, n);
    if (n > 8 && n <= 16) return draw_two_vectors<8>(map, gx, gy, k, n);
  }
#endif
  for (int64_t i = 0; i < n; ++i) draw_pixel(map[i], gx[i], gy, k);
}

struct Maps {
  void* data;
  int64_t batch, classes, height, width;
  int64_t strides[4];
};

// The pixels p of 0 .. size - 1 with |p - center| <= radius + 1/2: a Gaussian's diameter is 2 radius + 1.
struct Window {
  int64_t begin, end;
  Window(double center, double radius, int64_t size) {
    const double limit = static_cast<double>(size);
    begin = static_cast<int64_t>(std::clamp(std::ceil(center - radius - 0.5), 0.0, limit));
    end = static_cast<int64_t>(std::clamp(std::floor(center + radius + 0.5) + 1.0, 0.0, limit));
  }
  bool empty() const { return begin >= end; }
};

struct Boxes {
  Reader centers, radii;
  std::optional<Reader> labels, sizes;
  int64_t count;     // padded number of boxes of a sample
  bool elliptical;   // radii have an x and a y component

  int64_t size(int64_t b) const {
    if (!sizes) return count;
    return static_cast<int64_t>(std::clamp(sizes->at(b), 0.0, static_cast<double>(count)));
  }
};

template <class T, class Compute>
class Drawer {
 public:
  Drawer(const Maps& maps, const Boxes& boxes, double factor, double k_scale)
      : maps_(maps), boxes_(boxes), factor_(factor), k_(static_cast<Compute>(k_scale)) {}

  // Draws what falls into the rows [row_begin, row_end) of the batch * classes * height rows of all maps.
  void operator()(int64_t row_begin, int64_t row_end) const {
    std::vector<Compute> gx(maps_.width + kBlock), gy(maps_.height + kBlock);
    const int64_t sample_rows = maps_.classes * maps_.height;
    for (int64_t b = row_begin / sample_rows; b * sample_rows < row_end; ++b) {
      for (int64_t n = 0, size = boxes_.size(b); n < size; ++n) draw(b, n, row_begin, row_end, gx.data(), gy.data());
    }
  }

 private:
  void draw(int64_t b, int64_t n, int64_t row_begin, int64_t row_end, Compute* gx, Compute* gy) const {
    const double label = boxes_.labels ? boxes_.labels->at(b, n) : 0.0;
    if (!(label >= 0.0 && label < static_cast<double>(maps_.classes))) return;
    const int64_t c = static_cast<int64_t>(label);
    const int64_t map_row = (b * maps_.classes + c) * maps_.height;
    if (map_row + maps_.height <= row_begin || map_row >= row_end) return;

    const double x = boxes_.centers.at(b, n, 0), y = boxes_.centers.at(b, n, 1);
    const double rx = boxes_.radii.at(b, n, 0), ry = boxes_.elliptical ? boxes_.radii.at(b, n, 1) : rx;
    if (!(std::isfinite(x) && std::isfinite(y) && std::isfinite(rx) && std::isfinite(ry) && rx >= 0 && ry >= 0)) return;
    const Window columns(x, rx, maps_.width), rows(y, ry, maps_.height);
    if (columns.empty() || rows.empty()) return;
    const int64_t first = std::max(rows.begin, row_begin - map_row), last = std::min(rows.end, row_end - map_row);
    if (first >= last) return;

    // Over the whole window, not only the owned rows, so that the bits do not depend on who owns what.
    profile(gx, static_cast<double>(columns.begin), x, factor_ / (2 * rx + 1), padded(columns));
    profile(gy, static_cast<double>(rows.begin), y, factor_ / (2 * ry + 1), padded(rows));
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

  static int64_t padded(const Window& w) { return (w.end - w.begin + kBlock - 1) / kBlock * kBlock; }

  const Maps& maps_;
  const Boxes& boxes_;
  double factor_;
  Compute k_;
};

// `flatten` puts all of a thread's work into each clone, so that all of it is compiled for that machine.
#define DETOPS_DRAW_ROWS(T, Compute)                                                               \
  DETOPS_CLONES DETOPS_FLATTEN void draw_rows(const Drawer<T, Compute>& drawer, int64_t begin, int64_t end) { \
    drawer(begin, end);                                                                            \
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

void check_shapes(const Tensor& maps, const Tensor& centers, const Tensor& radii, const std::optional<Tensor>& labels,
                  const std::optional<Tensor>& sizes) {
  STD_TORCH_CHECK(maps.dim() == 4, "heatmap: expected 4 dimensions (B, C, H, W), got ", maps.dim());
  const int64_t batch = maps.size(0);
  STD_TORCH_CHECK(centers.dim() == 3 && centers.size(0) == batch && centers.size(2) == 2,
                  "centers: expected shape (B, N, 2)");
  const int64_t count = centers.size(1);
  STD_TORCH_CHECK((radii.dim() == 2 || (radii.dim() == 3 && radii.size(2) == 2)) && radii.size(0) == batch &&
                      radii.size(1) == count,
                  "radii: expected shape (B, N) or (B, N, 2)");
  STD_TORCH_CHECK(labels ? labels->dim() == 2 && labels->size(0) == batch && labels->size(1) == count
                         : maps.size(1) == 1,
                  "labels: expected shape (B, N), or None with one map a sample");
  STD_TORCH_CHECK(!sizes || (sizes->dim() == 1 && sizes->size(0) == batch), "sample_sizes: expected shape (B,)");
  STD_TORCH_CHECK(Reader::reads(centers.scalar_type()) && Reader::reads(radii.scalar_type()) &&
                      (!labels || Reader::reads(labels->scalar_type())) &&
                      (!sizes || Reader::reads(sizes->scalar_type())),
                  "centers, radii, labels, sample_sizes: expected integers or floats");
}

void draw_gaussians_(Tensor maps, const Tensor centers, const Tensor radii, const std::optional<Tensor> labels,
                     const std::optional<Tensor> sample_sizes, double factor, double k_scale) {
  check_shapes(maps, centers, radii, labels, sample_sizes);
  if (maps.numel() == 0 || centers.numel() == 0) return;
  Boxes boxes{Reader(centers), Reader(radii), std::nullopt, std::nullopt, centers.size(1), radii.dim() == 3};
  if (labels) boxes.labels.emplace(*labels);
  if (sample_sizes) boxes.sizes.emplace(*sample_sizes);
  const Maps target{maps.mutable_data_ptr(), maps.size(0), maps.size(1), maps.size(2), maps.size(3),
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
