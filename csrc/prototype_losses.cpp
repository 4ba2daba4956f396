// The mask loss of YOLO-seg and YOLACT within boxes, with its gradients: the CPU kernel of prototype_losses.
//
// The grid is cut into bands of rows. A band's prototypes are copied so that they lie together, and each positive whose
// box meets the band adds to the loss, to the band's gradient, and to a part of its own gradient. Parts are added in
// order, so the number of threads changes nothing.
#include "mask_terms.h"
#include "outputs.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kBand = 4;    // rows
constexpr int64_t kBlock = 16;  // cells that are computed together; those beyond a box count for nothing
constexpr int64_t kYolact = 1;
constexpr double kFar = 100;  // what a true cell costs where YOLACT's crop leaves a probability of 0

int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

// The cells of a box: columns [x1, x2) and rows [y1, y2).
struct Window {
  int64_t x1 = 0, y1 = 0, x2 = 0, y2 = 0;
  double weight = 0;  // one over the box's area

  Window(const Reader& cells, int64_t b, int64_t n, int64_t kind, int64_t height, int64_t width) {
    float side[4];
    for (int64_t i = 0; i < 4; ++i) side[i] = static_cast<float>(cells.at(b, n, i));
    const float area = std::fabs((side[2] - side[0]) * (side[3] - side[1]));
    if (!(area > 0) || !std::isfinite(area)) return;
    weight = 1 / static_cast<double>(area);
    for (int64_t axis = 0; axis < 2; ++axis) {
      float low = side[axis], high = side[axis + 2];
      if (kind == kYolact) {
        const float least = std::min(low, high), most = std::max(low, high);
        low = least - 1, high = most + 1;
      }
      const double size = static_cast<double>(axis == 0 ? width : height);
      const int64_t first = static_cast<int64_t>(std::ceil(std::min(std::max<double>(low, 0), size)));
      const int64_t end = static_cast<int64_t>(std::ceil(std::min(std::max<double>(high, 0), size)));
      (axis == 0 ? x1 : y1) = first, (axis == 0 ? x2 : y2) = end;
    }
  }

  bool empty() const { return x1 >= x2 || y1 >= y2; }
  int64_t first_band() const { return y1 / kBand; }
  int64_t bands() const { return empty() ? 0 : (y2 - 1) / kBand - first_band() + 1; }
};

struct Positive {
  int64_t point, box;
  Window window;
  int64_t parts;  // where the parts of its gradient lie
};

// What one thread needs for a positive's rows in a band, each as long as the blocks that cover its columns.
template <class C>
struct Room {
  std::vector<C> z, y, slope, loss, sum;

  explicit Room(int64_t width) : z(width), y(width), slope(kBand * width), loss(width), sum(width) {}
};

// out[i] = sum over k of row[k] values[k * apart + i].
template <class C>
DETOPS_INLINE void combine(const C* row, int64_t depth, const C* values, int64_t apart, int64_t count,
                           C* __restrict__ out) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    const C a = row[k], b = row[k + 1], c = row[k + 2], d = row[k + 3];
    const C *p = values + k * apart, *q = p + apart, *r = q + apart, *s = r + apart;
    for (int64_t i = 0; i < count; ++i) out[i] += (a * p[i] + b * q[i]) + (c * r[i] + d * s[i]);
  }
  for (; k < depth; ++k) {
    const C a = row[k], *p = values + k * apart;
    for (int64_t i = 0; i < count; ++i) out[i] += a * p[i];
  }
}

// The loss of a row of cells, and their slopes times `weight`; zero from `inside` on.
template <class C>
DETOPS_INLINE double cells_of_row(const C* __restrict__ z, const C* __restrict__ y, int64_t count, int64_t inside,
                                  C weight, C* __restrict__ loss, C* __restrict__ slope) {
  for (int64_t i = 0; i < count; ++i) {
    C up, p;
    softplus_and_sigmoid(z[i], up, p);
    const C there = i < inside ? C(1) : C(0);
    loss[i] = i < inside ? up - z[i] * y[i] : C(0);
    slope[i] = there != 0 ? (p - y[i]) * weight : C(0);
  }
  return sum_of(loss, count);
}

// All rows of a positive in a band: `rows` rows, the first at `values` and `gradient` (K, apart) and `labels`. Adds to
// the gradient, sets its part, and returns the loss without its weight and the number of true cells.
template <class C>
DETOPS_INLINE std::tuple<double, double> rows_of_band(const C* row, int64_t depth, const C* values, C* gradient,
                                                      int64_t apart, const uint8_t* labels, int64_t label_row,
                                                      int64_t rows, int64_t inside, C weight, C* part, Room<C>& room) {
  const int64_t count = blocks_of(inside) * kBlock, next = depth * apart;
  double loss = 0, ones = 0;
  for (int64_t r = 0; r < rows; ++r) {
    C* y = room.y.data();
    for (int64_t i = 0; i < inside; ++i) y[i] = static_cast<C>(labels[r * label_row + i] != 0);
    for (int64_t i = inside; i < count; ++i) y[i] = 0;
    ones += sum_of(y, count);
    combine(row, depth, values + r * next, apart, count, room.z.data());
    loss += cells_of_row(room.z.data(), y, count, inside, weight, room.loss.data(), room.slope.data() + r * count);
  }
  for (int64_t k = 0; gradient != nullptr && k < depth; ++k) {
    C* __restrict__ sum = room.sum.data();
    for (int64_t i = 0; i < count; ++i) sum[i] = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const C* slope = room.slope.data() + r * count;
      const C* own = values + r * next + k * apart;
      C* __restrict__ to = gradient + r * next + k * apart;
      const C c = row[k];
      for (int64_t i = 0; i < count; ++i) sum[i] += slope[i] * own[i], to[i] += c * slope[i];
    }
    part[k] = static_cast<C>(sum_of(sum, count));
  }
  return {loss, ones};
}

#define DETOPS_BAND(C)                                                                                             \
  DETOPS_CLONES DETOPS_FLATTEN std::tuple<double, double> add_band(                                                \
      const C* row, int64_t depth, const C* values, C* gradient, int64_t apart, const uint8_t* labels,             \
      int64_t label_row, int64_t rows, int64_t inside, C weight, C* part, Room<C>& room) {                         \
    return rows_of_band(row, depth, values, gradient, apart, labels, label_row, rows, inside, weight, part, room); \
  }
DETOPS_BAND(float)
DETOPS_BAND(double)
#undef DETOPS_BAND

// A row of a prototype, of any floating dtype.
template <class C>
void read_line(const Tensor& prototypes, const Reader& reader, int64_t b, int64_t k, int64_t y, int64_t width, C* to) {
  if (prototypes.scalar_type() == ScalarType::Float && prototypes.stride(3) == 1) {
    const float* from = static_cast<const float*>(prototypes.const_data_ptr()) + b * prototypes.stride(0) +
                        k * prototypes.stride(1) + y * prototypes.stride(2);
    for (int64_t x = 0; x < width; ++x) to[x] = static_cast<C>(from[x]);
  } else {
    for (int64_t x = 0; x < width; ++x) to[x] = static_cast<C>(reader.at(b, k, y, x));
  }
}

// Coefficients and prototypes of any floating dtype, computed as C.
template <class C>
std::tuple<Tensor, Tensor, Tensor> compute(const Tensor& coefficients, const Tensor& prototypes, const Tensor& labels,
                                           const Tensor& index, const Tensor& cells, double scale, int64_t kind,
                                           bool with_gradient, ScalarType wide) {
  const int64_t batch = coefficients.size(0), points = coefficients.size(1), depth = coefficients.size(2);
  const int64_t height = prototypes.size(2), width = prototypes.size(3), boxes = cells.size(1);
  const Reader box_of(index), cell(cells), coefficient(coefficients), prototype(prototypes);
  const uint8_t* label = static_cast<const uint8_t*>(labels.const_data_ptr());
  const int64_t apart = (blocks_of(width) + 1) * kBlock, bands = (height + kBand - 1) / kBand;
  std::vector<std::vector<Positive>> found(batch);
  int64_t parts = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t a = 0; a < points; ++a) {
      const int64_t n = static_cast<int64_t>(box_of.at(b, a));
      if (n < 0 || n >= boxes) continue;
      const Window window(cell, b, n, kind, height, width);
      if (window.weight == 0) continue;
      found[b].push_back({a, n, window, parts});
      parts += window.bands();
    }
  }
  const std::vector<int64_t> none = {0}, of_row = {batch, points, depth}, of_map = {batch, depth, height, width};
  Tensor of_rows = torch::stable::new_empty(coefficients, with_gradient ? of_row : none, wide);
  Tensor of_maps = in_huge_pages(torch::stable::new_empty(prototypes, with_gradient ? of_map : none, wide));
  C* to_rows = static_cast<C*>(of_rows.mutable_data_ptr());
  C* to_maps = static_cast<C*>(of_maps.mutable_data_ptr());
  std::vector<C> partial(with_gradient ? parts * depth : 0);
  std::vector<double> sums(batch * bands, 0);
  torch::stable::parallel_for(0, batch * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<C> values(kBand * depth * apart), gradient(with_gradient ? values.size() : 0), row(depth);
    Room<C> room(apart);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / bands, band = task % bands, top = band * kBand, bottom = std::min(top + kBand, height);
      for (int64_t y = top; y < bottom; ++y) {
        for (int64_t k = 0; k < depth; ++k) {
          C* to = values.data() + ((y - top) * depth + k) * apart;
          read_line(prototypes, prototype, b, k, y, width, to);
          std::fill(to + width, to + apart, C(0));
        }
      }
      std::fill(gradient.begin(), gradient.end(), C(0));
      for (const Positive& positive : found[b]) {
        const Window& w = positive.window;
        const int64_t first = std::max(w.y1, top), last = std::min(w.y2, bottom);
        if (w.empty() || first >= last) continue;
        for (int64_t k = 0; k < depth; ++k) row[k] = static_cast<C>(coefficient.at(b, positive.point, k));
        const int64_t offset = (first - top) * depth * apart + w.x1;
        C* part = with_gradient ? partial.data() + (positive.parts + band - w.first_band()) * depth : nullptr;
        const auto [loss, ones] =
            add_band(row.data(), depth, values.data() + offset, with_gradient ? gradient.data() + offset : nullptr,
                     apart, label + ((b * boxes + positive.box) * height + first) * width + w.x1, width, last - first,
                     w.x2 - w.x1, static_cast<C>(w.weight * scale), part, room);
        sums[task] += w.weight * (loss - (kind == kYolact ? kFar * ones : 0));
      }
      for (int64_t k = 0; with_gradient && k < depth; ++k) {
        for (int64_t y = top; y < bottom; ++y) {
          const C* from = gradient.data() + ((y - top) * depth + k) * apart;
          std::copy(from, from + width, to_maps + ((b * depth + k) * height + y) * width);
        }
      }
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  for (int64_t b = 0; kind == kYolact && b < batch; ++b) {
    std::vector<int64_t> ones(boxes, -1);
    for (const Positive& positive : found[b]) {
      const uint8_t* mask = label + (b * boxes + positive.box) * height * width;
      int64_t& count = ones[positive.box];
      if (count < 0) count = std::count_if(mask, mask + height * width, [](uint8_t v) { return v != 0; });
      total += positive.window.weight * kFar * static_cast<double>(count);
    }
  }
  if (with_gradient) {
    std::fill(to_rows, to_rows + batch * points * depth, C(0));
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (const Positive& positive : found[b]) {
          C* to = to_rows + (b * points + positive.point) * depth;
          for (int64_t band = 0; band < positive.window.bands(); ++band) {
            for (int64_t k = 0; k < depth; ++k) to[k] += partial[(positive.parts + band) * depth + k];
          }
        }
      }
    });
  }
  Tensor result = torch::stable::new_empty(coefficients, {}, wide);
  torch::stable::fill_(result, total * scale);
  return {result, of_rows, of_maps};
}

std::tuple<Tensor, Tensor, Tensor> prototype_losses(const Tensor coefficients, const Tensor prototypes,
                                                    const Tensor labels, const Tensor index, const Tensor cells,
                                                    const std::optional<Tensor> scale, int64_t kind,
                                                    bool with_gradient) {
  STD_TORCH_CHECK(has_numbers(coefficients, {-1, -1, -1}), "coefficients: expected numbers of shape (B, A, K)");
  const int64_t batch = coefficients.size(0);
  STD_TORCH_CHECK(has_numbers(prototypes, {batch, coefficients.size(2), -1, -1}),
                  "prototypes: expected numbers of shape (B, K, h, w)");
  STD_TORCH_CHECK(has_numbers(cells, {batch, -1, 4}), "cells: expected numbers of shape (B, N, 4)");
  STD_TORCH_CHECK(
      has_booleans(labels, {batch, cells.size(1), prototypes.size(2), prototypes.size(3)}) && labels.is_contiguous(),
      "labels: expected contiguous bool of shape (B, N, h, w)");
  STD_TORCH_CHECK(has_numbers(index, {batch, coefficients.size(1)}), "index: expected numbers of shape (B, A)");
  STD_TORCH_CHECK(!scale || (scale->numel() == 1 && Reader::reads(scale->scalar_type())), "scale: expected one number");
  STD_TORCH_CHECK(kind == 0 || kind == kYolact, "kind: expected 0 or 1");
  const double factor = scale ? Reader(*scale).at(0) : 1;
  if (coefficients.scalar_type() == ScalarType::Double) {
    return compute<double>(coefficients, prototypes, labels, index, cells, factor, kind, with_gradient,
                           ScalarType::Double);
  }
  return compute<float>(coefficients, prototypes, labels, index, cells, factor, kind, with_gradient, ScalarType::Float);
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("prototype_losses", TORCH_BOX(&detops::prototype_losses)); }
