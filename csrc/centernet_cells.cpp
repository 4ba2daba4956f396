// Where CenterNet trains boxes on its map: the CPU kernel of centernet_cells.
//
// Images are divided among torch's threads. Boxes of a cell are chained from the last to the first, so that the last of
// each, and those of a class that came already, are found without comparing all pairs.
#include "common.h"
#include "labels.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

// The numbers of the op; the names are those of the reference.
struct CellRule {
  int64_t height, width, image_height, image_width, classes;
  double min_overlap;
  int64_t min_radius;
  bool legacy;
  double elliptical;
};

// A radius as an integer; -1 for NaN.
template <class C>
int64_t whole(C radius, int64_t least) {
  if (!(radius == radius)) return -1;
  return static_cast<int64_t>(std::min(std::max(std::floor(radius), static_cast<C>(least)), static_cast<C>(1 << 30)));
}

// As detops.geometry.corners computes it; the factors of q are rounded once, as a tensor's scalars are.
template <class C>
C corner_radius(C h, C w, double o, bool legacy) {
  const C small = std::min(h, w), large = std::max(h, w);
  if (!(small >= 0) || !std::isfinite(large)) return std::numeric_limits<C>::quiet_NaN();
  const C q = large > 0 ? small / large : C(0), total = 1 + q, half = (1 - q) * (1 - q);
  const C same = std::sqrt(half + 4 * q * C(2 * o / (1 + o))), inward = 2 * std::sqrt(half + 4 * q * C(o));
  const C outward = C(2 * o) * std::sqrt(half + 4 * q / C(o)), apart = outward + C(2 * o) * total;
  if (legacy) {
    return large * std::min(std::min((total + same) / 2, total + inward / 2), C(8 * o * (1 - o)) * q / apart);
  }
  const C moved = 2 * q * C((1 - o) / (1 + o)) / (total + same);
  return large * std::min(moved, std::min(C(2 * (1 - o)) * q / (2 * total + inward), C(2 * (1 - o)) * q / apart));
}

// Where the results of one image go.
template <class C>
struct CellRows {
  int64_t *cell, *radius, *label;
  C *size, *offset;
  int64_t* index;
  uint8_t* last;
};

template <class C>
void place(const CellRule& rule, const Reader& boxes, const Labels& labels, int64_t b, int64_t rows, int64_t count,
           const CellRows<C>& to) {
  const int64_t sides[2] = {rule.width, rule.height}, pixels[2] = {rule.image_width, rule.image_height};
  for (int64_t n = 0; n < count; ++n) {
    int64_t label = n < rows ? labels.at(b, n, rule.classes) : -1;
    C low[2], high[2];
    for (int64_t d = 0; d < 2; ++d) {
      low[d] = static_cast<C>(boxes.at(b, n, d)), high[d] = static_cast<C>(boxes.at(b, n, d + 2));
      const bool finite = std::isfinite(low[d]) && std::isfinite(high[d]);
      if (!finite || high[d] < low[d] || !(high[d] > 0) || !(low[d] < static_cast<C>(pixels[d]))) label = -1;
    }
    for (int64_t d = 0; d < 2; ++d) {
      if (label < 0) low[d] = high[d] = 0;
      const C ratio = static_cast<C>(sides[d]) / static_cast<C>(pixels[d]);
      const C center = (low[d] + high[d]) * ratio / 2;
      const C cell = std::min(std::max(std::trunc(center), C(0)), static_cast<C>(sides[d]) - 1);
      to.cell[2 * n + d] = static_cast<int64_t>(cell);
      to.size[2 * n + d] = (high[d] - low[d]) * ratio;
      to.offset[2 * n + d] = center - cell;
      if (rule.elliptical > 0) {
        to.radius[2 * n + d] = whole(to.size[2 * n + d] / 2 * static_cast<C>(rule.elliptical), rule.min_radius);
      }
    }
    if (!(rule.elliptical > 0)) {
      const C radius = corner_radius(to.size[2 * n + 1], to.size[2 * n], rule.min_overlap, rule.legacy);
      to.radius[n] = whole(radius, rule.min_radius);
    }
    to.label[n] = label;
    to.index[n] = label < 0 ? rule.height * rule.width : to.cell[2 * n + 1] * rule.width + to.cell[2 * n];
  }
}

// Marks the last box of each cell, and counts pairs of class and cell. `head` has -1 for each cell, and again
// afterwards.
int64_t distinct(const int64_t* label, const int64_t* index, int64_t count, uint8_t* last, std::vector<int64_t>& head,
                 std::vector<int64_t>& next) {
  int64_t found = 0;
  for (int64_t n = count; n-- > 0;) {
    last[n] = label[n] >= 0 && head[index[n]] < 0;
    if (label[n] < 0) continue;
    int64_t m = head[index[n]];
    while (m >= 0 && label[m] != label[n]) m = next[m];
    if (m >= 0) continue;
    ++found;
    next[n] = head[index[n]], head[index[n]] = n;
  }
  for (int64_t n = 0; n < count; ++n) {
    if (label[n] >= 0) head[index[n]] = -1;
  }
  return found;
}

using Cells = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class C>
Cells compute(const Tensor& boxes, const Tensor& labels, const std::optional<Tensor>& sizes, const CellRule& rule,
              ScalarType type) {
  const int64_t batch = boxes.size(0), count = boxes.size(1), axes = rule.elliptical > 0 ? 2 : 1;
  const auto made = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(boxes, std::vector<int64_t>(shape), dtype);
  };
  Tensor cell = made({batch, count, 2}, ScalarType::Long), label = made({batch, count}, ScalarType::Long);
  Tensor radius = axes == 2 ? made({batch, count, 2}, ScalarType::Long) : made({batch, count}, ScalarType::Long);
  Tensor size = made({batch, count, 2}, type), offset = made({batch, count, 2}, type);
  Tensor index = made({batch, count}, ScalarType::Long), last = made({batch, count}, ScalarType::Bool);
  Tensor total = made({}, ScalarType::Long);
  const auto data = [](Tensor& tensor) { return tensor.mutable_data_ptr(); };
  const CellRows<C> all{static_cast<int64_t*>(data(cell)),  static_cast<int64_t*>(data(radius)),
                        static_cast<int64_t*>(data(label)), static_cast<C*>(data(size)),
                        static_cast<C*>(data(offset)),      static_cast<int64_t*>(data(index)),
                        static_cast<uint8_t*>(data(last))};
  const Reader box_reader(boxes);
  const Labels classes(labels, sizes, count);
  std::vector<int64_t> found(batch);
  torch::stable::parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> head(rule.height * rule.width, -1), next(count);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * count;
      const CellRows<C> to{all.cell + 2 * first,   all.radius + axes * first, all.label + first, all.size + 2 * first,
                           all.offset + 2 * first, all.index + first,         all.last + first};
      place(rule, box_reader, classes, b, std::min(classes.rows(b), count), count, to);
      found[b] = distinct(to.label, to.index, count, to.last, head, next);
    }
  });
  int64_t sum = 0;
  for (const int64_t one : found) sum += one;
  *static_cast<int64_t*>(data(total)) = sum;
  return {cell, radius, label, size, offset, index, last, total};
}

Cells centernet_cells(const Tensor boxes, const Tensor labels, const std::optional<Tensor> sample_sizes,
                      const std::vector<int64_t> map_size, const std::vector<int64_t> image_size, int64_t num_classes,
                      double min_overlap, int64_t min_radius, bool legacy, double elliptical) {
  STD_TORCH_CHECK(has_numbers(boxes, {-1, -1, 4}), "boxes: expected numbers of shape (B, N, 4)");
  STD_TORCH_CHECK(has_numbers(labels, {boxes.size(0), boxes.size(1)}), "labels: expected numbers of shape (B, N)");
  check_labels(labels, sample_sizes, boxes.size(0), boxes.size(1), "labels");
  STD_TORCH_CHECK(map_size.size() == 2 && map_size[0] > 0 && map_size[1] > 0, "map_size: expected two sides");
  STD_TORCH_CHECK(image_size.size() == 2 && image_size[0] > 0 && image_size[1] > 0, "image_size: expected two sides");
  const CellRule rule{map_size[0], map_size[1], image_size[0], image_size[1], num_classes,
                      min_overlap, min_radius,  legacy,        elliptical};
  if (boxes.scalar_type() == ScalarType::Double) {
    return compute<double>(boxes, labels, sample_sizes, rule, ScalarType::Double);
  }
  return compute<float>(boxes, labels, sample_sizes, rule, ScalarType::Float);
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("centernet_cells", TORCH_BOX(&detops::centernet_cells)); }
