// The valuable localization region: the CPU kernel of vlr_weights.
//
// Runs of anchors are divided among torch's threads; each run visits only those boxes of its image that intersect
// it: without an intersection no DIoU is above 0.
#include "anchors.h"
#include "boxes.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kRun = 64;    // anchors per task
constexpr float kNear = 0.25f;  // lowest DIoU of an anchor of the region, as a fraction of the box's threshold

// A ground-truth box, and the threshold by which ATSS chose its positives.
struct Target {
  Box<float> box;
  float limit;
};

// Raises the weights of a run of anchors to their IoU with the box, for anchors in its region.
DETOPS_CLONES DETOPS_FLATTEN void visit(const Anchors& anchors, int64_t first, int64_t count, const Target target,
                                        float* __restrict worth) {
  const float *x1 = &anchors.x1[first], *y1 = &anchors.y1[first], *x2 = &anchors.x2[first], *y2 = &anchors.y2[first];
  const Box<float> g = target.box;
  const float limit = target.limit, low = kNear * limit, own_area = area(g), x = g.x1 + g.x2, y = g.y1 + g.y2;
  for (int64_t i = 0; i < count; ++i) {
    const Box<float> a{x1[i], y1[i], x2[i], y2[i]};
    // The intersection comes before the anchor's area: GCC fuses a product into a sum only if no branch lies between
    // them; in this order the vector loop and its scalar remainder round alike.
    const float inter = intersection(g, a), overlap = iou(inter, area(a), own_area);
    const float hull_x = greater(a.x2, g.x2) - lesser(a.x1, g.x1), hull_y = greater(a.y2, g.y2) - lesser(a.y1, g.y1);
    const float apart_x = (a.x1 + a.x2 - x) / 2, apart_y = (a.y1 + a.y2 - y) / 2;
    const float apart = apart_x * apart_x + apart_y * apart_y;
    const float diou = overlap - apart / (hull_x * hull_x + hull_y * hull_y);
    const bool inside = (diou >= low) & (diou < limit);  // false for a NaN
    worth[i] = greater(worth[i], inside ? overlap : 0.0f);
  }
}

Tensor vlr_weights(const Tensor anchors, const Tensor gt_boxes, const Tensor threshold,
                   const std::optional<Tensor> valid) {
  STD_TORCH_CHECK(has_numbers(anchors, {-1, 4}), "anchors: expected numbers of shape (A, 4)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {-1, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  const int64_t count = anchors.size(0), batch = gt_boxes.size(0), boxes = gt_boxes.size(1);
  STD_TORCH_CHECK(has_numbers(threshold, {batch, boxes}), "threshold: expected numbers of shape (B, N)");
  STD_TORCH_CHECK(!valid || has_booleans(*valid, {batch, count}), "valid: expected bool of shape (B, A)");
  Tensor worth = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Float);
  float* data = static_cast<float*>(worth.mutable_data_ptr());
  const Anchors columns(anchors, count);
  const Reader box_reader(gt_boxes), limit_reader(threshold);
  std::vector<Target> targets(batch * boxes);
  for (int64_t i = 0; i < batch * boxes; ++i) {
    const int64_t b = i / boxes, n = i % boxes;
    targets[i] = {read_box<float>(box_reader, b, n), static_cast<float>(limit_reader.at(b, n))};
  }
  const std::optional<Reader> exists = reader_of(valid);
  const int64_t runs = (count + kRun - 1) / kRun;
  torch::stable::parallel_for(0, batch * runs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / runs, first = task % runs * kRun, n = std::min(kRun, count - first);
      float* to = data + b * count + first;
      std::fill(to, to + n, 0.0f);
      const auto lowest = [&](const std::vector<float>& v) { return *std::min_element(&v[first], &v[first] + n); };
      const auto highest = [&](const std::vector<float>& v) { return *std::max_element(&v[first], &v[first] + n); };
      const Box<float> run{lowest(columns.x1), lowest(columns.y1), highest(columns.x2), highest(columns.y2)};
      for (int64_t i = b * boxes; i < (b + 1) * boxes; ++i) {
        const Box<float>& g = targets[i].box;
        if (!(targets[i].limit > 0) || g.x2 < run.x1 || g.x1 > run.x2 || g.y2 < run.y1 || g.y1 > run.y2) continue;
        visit(columns, first, n, targets[i], to);
      }
      for (int64_t i = 0; exists && i < n; ++i) {
        if (exists->at(b, first + i) == 0) to[i] = 0;
      }
    }
  });
  return worth;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("vlr_weights", TORCH_BOX(&detops::vlr_weights)); }
