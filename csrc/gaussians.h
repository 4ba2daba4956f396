// Gaussians on a grid: the pixels that one covers, its row and column of exponentials, and drawing one of its rows.
#pragma once

#include "common.h"
#include "labels.h"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace detops {

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr int64_t kBlock = 16;  // exponentials are computed in whole vectors; buffers are padded to this

// out[i] = exp(-((first + i - center) * inverse_sigma)^2 / 2), for `padded` (a multiple of kBlock) values.
inline void profile(float* out, double first, double center, double inverse_sigma, int64_t padded) {
  for (int64_t base = 0; base < padded; base += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const float t = static_cast<float>((first + static_cast<double>(base + i) - center) * inverse_sigma);
      const float e = -0.5f * t * t;
      out[base + i] = exp_negative(e);
    }
  }
}

inline void profile(double* out, double first, double center, double inverse_sigma, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) {
    const double t = (first + static_cast<double>(i) - center) * inverse_sigma;
    out[i] = std::exp(-0.5 * t * t);
  }
}

// map[i] = max(map[i], value of the Gaussian); a NaN in the map stays, as with torch.maximum.
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

// A row of Width to 2 * Width pixels as two vectors that may overlap. Both are read before either is written, because
// a read of what was just written would stall. The compiler alone would not vectorise such short rows.
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

// The pixels p of 0 .. size - 1 with |p - center| <= radius + 1/2: a Gaussian's diameter is 2 radius + 1.
struct Window {
  int64_t begin, end;
  Window(double center, double radius, int64_t size) {
    const double limit = static_cast<double>(size);
    begin = static_cast<int64_t>(std::clamp(std::ceil(center - radius - 0.5), 0.0, limit));
    end = static_cast<int64_t>(std::clamp(std::floor(center + radius + 0.5) + 1.0, 0.0, limit));
  }
  bool empty() const { return begin >= end; }
  int64_t padded() const { return (end - begin + kBlock - 1) / kBlock * kBlock; }
};

// One box as read: centre, radii, and the class whose map it is drawn into.
struct Gaussian {
  double x, y, rx, ry;
  int64_t label;
};

// The boxes of a batch: centres (B, N, 2), and radii (B, N) or, where x and y differ, (B, N, 2).
struct Boxes {
  Reader centers, radii;
  Labels labels;
  int64_t count;    // padded number of boxes per image
  bool elliptical;  // radii have an x and a y component

  Boxes(const Tensor& centers, const Tensor& radii, const std::optional<Tensor>& labels,
        const std::optional<Tensor>& sizes)
      : centers(centers), radii(radii), labels(labels, sizes, centers.size(1)), count(centers.size(1)),
        elliptical(radii.dim() == 3) {}

  // Reads a box, whatever its label; returns false if it is to be skipped.
  bool read(int64_t b, int64_t n, Gaussian& g) const {
    g.x = centers.at(b, n, 0), g.y = centers.at(b, n, 1);
    g.rx = radii.at(b, n, 0), g.ry = elliptical ? radii.at(b, n, 1) : g.rx;
    return std::isfinite(g.x) && std::isfinite(g.y) && std::isfinite(g.rx) && std::isfinite(g.ry) && g.rx >= 0 &&
           g.ry >= 0;
  }
};

inline void check_boxes(int64_t batch, const Tensor& centers, const Tensor& radii, const std::optional<Tensor>& labels,
                        const std::optional<Tensor>& sizes) {
  STD_TORCH_CHECK(has_numbers(centers, {batch, -1, 2}), "centers: expected numbers of shape (B, N, 2)");
  const int64_t count = centers.size(1);
  STD_TORCH_CHECK(has_numbers(radii, {batch, count}) || has_numbers(radii, {batch, count, 2}),
                  "radii: expected numbers of shape (B, N) or (B, N, 2)");
  check_labels(labels, sizes, batch, count, "labels");
}

}  // namespace detops
