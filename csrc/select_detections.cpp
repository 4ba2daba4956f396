// Candidates of a batch to detections: the CPU kernel of select_detections. Images are shared out among torch's
// threads. A candidate is compared with the detections before it, and an image is done when it has enough of them.
#include "boxes.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace detops {
namespace {

struct Detections {
  std::vector<float> x1, y1, x2, y2, area, inter;
  std::vector<double> label;

  explicit Detections(size_t most) : x1(most), y1(most), x2(most), y2(most), area(most), inter(most), label(most) {}
};

// Two loops with a buffer between them, and areas computed beforehand: so no product is fused into a sum, and all
// implementations round alike.
DETOPS_CLONES void intersect(Detections& found, const Box<float> box, int64_t count) {
  const float *x1 = found.x1.data(), *y1 = found.y1.data(), *x2 = found.x2.data(), *y2 = found.y2.data();
  float* inter = found.inter.data();
  for (int64_t k = 0; k < count; ++k) inter[k] = intersection(box, Box<float>{x1[k], y1[k], x2[k], y2[k]});
}

DETOPS_CLONES bool overlaps(const Detections& found, float own, double label, int64_t count, float threshold) {
  const float *area = found.area.data(), *inter = found.inter.data();
  const double* labels = found.label.data();
  int any = 0;
  for (int64_t k = 0; k < count; ++k) any |= (iou(inter[k], area[k], own) > threshold) & (labels[k] == label);
  return any != 0;
}

bool is_box(const Box<float>& box) {  // false for NaN
  return box.x2 > box.x1 && box.y2 > box.y1 && std::isfinite(box.x1) && std::isfinite(box.y1) &&
         std::isfinite(box.x2) && std::isfinite(box.y2);
}

float clipped(float x, float limit) {  // NaN stays
  const float low = x < 0 ? 0.0f : x;
  return low > limit ? limit : low;
}

std::tuple<Tensor, Tensor, Tensor> select_detections(const Tensor boxes, const Tensor labels, const Tensor scores,
                                                     const std::optional<Tensor> image_sizes, double least,
                                                     double iou_threshold, int64_t max_detections) {
  STD_TORCH_CHECK(has_numbers(boxes, {-1, -1, 4}), "boxes: expected numbers of shape (B, M, 4)");
  const int64_t batch = boxes.size(0), count = boxes.size(1);
  STD_TORCH_CHECK(has_numbers(labels, {batch, count}), "labels: expected numbers of shape (B, M)");
  STD_TORCH_CHECK(has_numbers(scores, {batch, count}), "scores: expected numbers of shape (B, M)");
  STD_TORCH_CHECK(!image_sizes || has_numbers(*image_sizes, {batch, 2}),
                  "image_sizes: expected numbers of shape (B, 2)");
  STD_TORCH_CHECK(!std::isnan(iou_threshold), "iou_threshold: expected a number, got NaN");
  STD_TORCH_CHECK(max_detections >= 1, "max_detections: expected at least 1");
  Tensor found_boxes = torch::stable::new_empty(boxes, {batch, max_detections, 4}, ScalarType::Float);
  Tensor found_labels = torch::stable::new_empty(boxes, {batch, max_detections}, ScalarType::Long);
  Tensor found_scores = torch::stable::new_empty(boxes, {batch, max_detections}, ScalarType::Float);
  float* box_out = static_cast<float*>(found_boxes.mutable_data_ptr());
  int64_t* label_out = static_cast<int64_t*>(found_labels.mutable_data_ptr());
  float* score_out = static_cast<float*>(found_scores.mutable_data_ptr());
  const Reader box_in(boxes), label_in(labels), score_in(scores);
  const std::optional<Reader> sizes = reader_of(image_sizes);
  const float lowest = static_cast<float>(least), threshold = static_cast<float>(iou_threshold);
  const bool suppresses = iou_threshold < HUGE_VAL;
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    Detections found(static_cast<size_t>(std::min(max_detections, count)));
    for (int64_t b = begin; b < end; ++b) {
      int64_t k = 0;
      for (int64_t m = 0; m < count && k < max_detections; ++m) {
        const float score = static_cast<float>(score_in.at(b, m));
        if (!(score >= lowest)) continue;
        Box<float> box = read_box<float>(box_in, b, m);
        if (sizes) {
          const float height = static_cast<float>(sizes->at(b, 0)), width = static_cast<float>(sizes->at(b, 1));
          box = {clipped(box.x1, width), clipped(box.y1, height), clipped(box.x2, width), clipped(box.y2, height)};
        }
        if (!is_box(box)) continue;
        const double label = label_in.at(b, m);
        const float own = area(box);
        if (suppresses) {
          intersect(found, box, k);
          if (overlaps(found, own, label, k, threshold)) continue;
        }
        found.x1[k] = box.x1, found.y1[k] = box.y1, found.x2[k] = box.x2, found.y2[k] = box.y2;
        found.area[k] = own, found.label[k] = label;
        const int64_t at = b * max_detections + k++;
        box_out[at * 4] = box.x1, box_out[at * 4 + 1] = box.y1;
        box_out[at * 4 + 2] = box.x2, box_out[at * 4 + 3] = box.y2;
        label_out[at] = static_cast<int64_t>(label), score_out[at] = score;
      }
      for (; k < max_detections; ++k) {
        const int64_t at = b * max_detections + k;
        for (int64_t s = 0; s < 4; ++s) box_out[at * 4 + s] = 0;
        label_out[at] = -1, score_out[at] = 0;
      }
    }
  });
  return {found_boxes, found_labels, found_scores};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("select_detections", TORCH_BOX(&detops::select_detections)); }
