// The box that each point predicts: the CPU kernel of decode_distances. Runs of points are shared out among torch's
// threads. Where points lie one after the other in memory, a vector holds one bin of one side of many of them; else a few
// points are computed together, so that a vector holds one bin of all their sides.
#include "box_distributions.h"

namespace detops {
namespace {

constexpr int kRow = 64;  // points of a run that are computed together

DETOPS_SOFTMAX(softmax_of_row, float, kRow)

// The means of the distributions of a side, which are the distances.
DETOPS_CLONES void means_of_row(const float* p, int64_t bins, float* distance) {
  float sum[kRow] = {};
  for (int64_t j = 0; j < bins; ++j) {
    for (int i = 0; i < kRow; ++i) sum[i] += static_cast<float>(j) * p[j * kRow + i];
  }
  std::copy(sum, sum + kRow, distance);
}

// Boxes of points a .. a + count - 1, whose distances are `distance`, side by side.
void write_boxes(const Reader& points, const float* distance, int apart, int64_t a, int64_t count, float* boxes) {
  for (int64_t k = 0; k < count; ++k) {
    const float stride = static_cast<float>(points.at(a + k, 2));
    for (int s = 0; s < 4; ++s) {
      const float center = static_cast<float>(points.at(a + k, s % 2)), away = distance[s * apart + k] * stride;
      boxes[4 * k + s] = s < 2 ? center - away : center + away;
    }
  }
}

Tensor decode_distances(const std::vector<Tensor> bbox_preds, const Tensor points) {
  STD_TORCH_CHECK(!bbox_preds.empty() && bbox_preds[0].dim() == 4, "bbox_preds: expected levels (B, 4 * bins, H, W)");
  const int64_t batch = bbox_preds[0].size(0), channels = bbox_preds[0].size(1), bins = channels / 4;
  STD_TORCH_CHECK(channels % 4 == 0 && bins >= 1, "bbox_preds: expected 4 * bins channels, at least 4");
  struct Run {
    size_t level;
    int64_t b, begin, end;
  };
  std::vector<Map> maps;
  std::vector<int64_t> starts;
  std::vector<Run> runs;
  int64_t count = 0;
  for (size_t level = 0; level < bbox_preds.size(); ++level) {
    const Tensor& t = bbox_preds[level];
    STD_TORCH_CHECK(has_shape(t, {batch, channels, -1, -1}) && Map::holds(t.scalar_type()),
                    "bbox_preds: expected floating-point levels (B, 4 * bins, H, W)");
    const int64_t size = t.size(2) * t.size(3);
    maps.emplace_back(t);
    starts.push_back(count);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t r = 0; r < size; r += kTaskPoints) runs.push_back({level, b, r, std::min(size, r + kTaskPoints)});
    }
    count += size;
  }
  STD_TORCH_CHECK(has_numbers(points, {count, 3}), "points: expected numbers of shape (A, 3)");
  Tensor boxes = torch::stable::new_empty(bbox_preds[0], {batch, count, 4}, ScalarType::Float);
  float* data = static_cast<float*>(boxes.mutable_data_ptr());
  const Reader point(points);
  torch::stable::parallel_for(0, static_cast<int64_t>(runs.size()), 1, [&](int64_t begin, int64_t end) {
    Group<float> group(bins);
    std::vector<float> logits(bins * kRow), p(logits);
    float distance[4 * kRow], log_sum[kRow];
    for (int64_t i = begin; i < end; ++i) {
      const Run& run = runs[i];
      const Map& map = maps[run.level];
      const int64_t width = bbox_preds[run.level].size(3), first = starts[run.level];
      float* out = data + (run.b * count + first) * 4;
      if (map.has_runs(width)) {
        for (int64_t r = run.begin; r < run.end; r += kRow) {
          const int64_t size = std::min<int64_t>(kRow, run.end - r);
          for (int s = 0; s < 4; ++s) {
            float* side = distance + s * kRow;
            map.read_run(run.b, s * bins, bins, r, size, kRow, bins == 1 ? side : logits.data());
            if (bins == 1) continue;
            softmax_of_row(logits.data(), 1.0f, bins, p.data(), log_sum);
            means_of_row(p.data(), bins, side);
          }
          write_boxes(point, distance, kRow, first + r, size, out + 4 * r);
        }
        continue;
      }
      for (int64_t r = run.begin; r < run.end; r += kGroup) {
        int64_t rows[kGroup];
        for (int k = 0; k < kGroup; ++k) rows[k] = std::min(r + k, run.end - 1);
        group.read(map, run.b, rows, width, group.raw);
        group.distributions();
        write_boxes(point, group.distance, kGroup, first + r, std::min<int64_t>(kGroup, run.end - r), out + 4 * r);
      }
    }
  });
  return boxes;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("decode_distances", TORCH_BOX(&detops::decode_distances)); }
