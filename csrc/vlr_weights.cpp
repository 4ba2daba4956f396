// The valuable localization region: the CPU kernel of vlr_weights.
//
// Runs of anchors are shared out among torch's threads; each goes over its image's boxes, of which those that do not
// reach the run are passed over: without an overlap there is no DIoU above 0.
#include "anchors.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kRun = 64;    // anchors of a task
constexpr float kNear = 0.25f;  // share of a box's threshold from which an anchor is near

struct Box {
  float x1, y1, x2, y2, limit;
};

float least(float a, float b) { return a < b ? a : b; }
float most(float a, float b) { return a > b ? a : b; }

DETOPS_CLONES DETOPS_FLATTEN void visit(const Anchors& anchors, int64_t first, int64_t count, const Box box,
                                        float* __restrict worth) {
  const float *x1 = &anchors.x1[first], *y1 = &anchors.y1[first], *x2 = &anchors.x2[first], *y2 = &anchors.y2[first];
  const auto [left, top, right, bottom, limit] = box;
  const float area = (right - left) * (bottom - top), x = left + right, y = top + bottom, low = kNear * limit;
  for (int64_t i = 0; i < count; ++i) {
    const float width = least(x2[i], right) - most(x1[i], left), height = least(y2[i], bottom) - most(y1[i], top);
    const float inter = most(width, 0) * most(height, 0);
    const float iou = inter / ((x2[i] - x1[i]) * (y2[i] - y1[i]) + area - inter);
    const float around_x = most(x2[i], right) - least(x1[i], left), around_y = most(y2[i], bottom) - least(y1[i], top);
    const float apart_x = (x1[i] + x2[i] - x) / 2, apart_y = (y1[i] + y2[i] - y) / 2;
    const float apart = apart_x * apart_x + apart_y * apart_y;
    const float diou = iou - apart / (around_x * around_x + around_y * around_y);
    const bool inside = (diou >= low) & (diou < limit);  // false for a NaN
    worth[i] = most(worth[i], inside ? iou : 0);
  }
}

Tensor vlr_weights(const Tensor anchors, const Tensor gt_boxes, const Tensor threshold,
                           const std::optional<Tensor> valid) {
  STD_TORCH_CHECK(anchors.dim() == 2 && anchors.size(1) == 4 && Reader::reads(anchors.scalar_type()),
                  "anchors: expected shape (A, 4)");
  STD_TORCH_CHECK(gt_boxes.dim() == 3 && gt_boxes.size(2) == 4 && Reader::reads(gt_boxes.scalar_type()),
                  "gt_boxes: expected shape (B, N, 4)");
  const int64_t count = anchors.size(0), batch = gt_boxes.size(0), boxes = gt_boxes.size(1);
  STD_TORCH_CHECK(threshold.dim() == 2 && threshold.size(0) == batch && threshold.size(1) == boxes &&
                      Reader::reads(threshold.scalar_type()),
                  "threshold: expected shape (B, N)");
  STD_TORCH_CHECK(!valid || (valid->dim() == 2 && valid->size(0) == batch && valid->size(1) == count &&
                             valid->scalar_type() == ScalarType::Bool),
                  "valid: expected bool of shape (B, A)");
  Tensor worth = torch::stable::new_empty(gt_boxes, {batch, count}, ScalarType::Float);
  float* data = static_cast<float*>(worth.mutable_data_ptr());
  const Anchors columns(anchors, count);
  const Reader box_reader(gt_boxes), limit_reader(threshold);
  std::vector<Box> all(batch * boxes);
  for (int64_t i = 0; i < batch * boxes; ++i) {
    const auto side = [&](int64_t k) { return static_cast<float>(box_reader.at(i / boxes, i % boxes, k)); };
    all[i] = {side(0), side(1), side(2), side(3), static_cast<float>(limit_reader.at(i / boxes, i % boxes))};
  }
  std::optional<Reader> exists;
  if (valid) exists.emplace(*valid);
  const int64_t runs = (count + kRun - 1) / kRun;
  torch::stable::parallel_for(0, batch * runs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / runs, first = task % runs * kRun, n = std::min(kRun, count - first);
      float* to = data + b * count + first;
      std::fill(to, to + n, 0.0f);
      const auto lowest = [&](const std::vector<float>& v) { return *std::min_element(&v[first], &v[first] + n); };
      const auto highest = [&](const std::vector<float>& v) { return *std::max_element(&v[first], &v[first] + n); };
      const Box run{lowest(columns.x1), lowest(columns.y1), highest(columns.x2), highest(columns.y2), 0};
      for (int64_t i = b * boxes; i < (b + 1) * boxes; ++i) {
        const Box& g = all[i];
        if (!(g.limit > 0) || g.x2 < run.x1 || g.x1 > run.x2 || g.y2 < run.y1 || g.y1 > run.y2) continue;
        visit(columns, first, n, g, to);
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
