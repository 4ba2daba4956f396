// The box that each point predicts: the CPU kernel of decode_distances. Runs of points are shared out among torch's
// threads; a vector holds one bin of one side of many points.
#include "box_distributions.h"

namespace detops {
namespace {

constexpr int kRow = 64;  // points that are computed together

// The means of the distributions of one side, which are the distances: of kRow columns of logits. A logit that is not
// finite makes its mean NaN.
DETOPS_CLONES void means_of_row(const float* x, int64_t bins, float* distance) {
  float top[kRow], sum[kRow] = {}, weighted[kRow] = {}, poison[kRow] = {};
  for (int i = 0; i < kRow; ++i) top[i] = x[i];
  for (int64_t j = 0; j < bins * kRow; j += kRow) {
    for (int i = 0; i < kRow; ++i) {
      poison[i] += x[j + i] * 0.0f;
      top[i] = x[j + i] > top[i] ? x[j + i] : top[i];
    }
  }
  for (int64_t j = 0; j < bins; ++j) {
    const float bin = static_cast<float>(j);
    for (int i = 0; i < kRow; ++i) {
      const float e = exp_negative(x[j * kRow + i] - top[i]);
      sum[i] += e, weighted[i] += bin * e;
    }
  }
  for (int i = 0; i < kRow; ++i) distance[i] = weighted[i] / sum[i] + poison[i];
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
    std::vector<float> logits(bins * kRow);
    float distance[4][kRow];
    for (int64_t i = begin; i < end; ++i) {
      const Run& run = runs[i];
      const int64_t width = bbox_preds[run.level].size(3);
      for (int64_t r = run.begin; r < run.end; r += kRow) {
        const int64_t size = std::min<int64_t>(kRow, run.end - r);
        for (int s = 0; s < 4; ++s) {
          float* to = bins == 1 ? distance[s] : logits.data();
          maps[run.level].read_row(run.b, s * bins, bins, r, size, width, kRow, to);
          if (bins > 1) means_of_row(to, bins, distance[s]);
        }
        for (int64_t k = 0; k < size; ++k) {
          const int64_t a = starts[run.level] + r + k;
          const float stride = static_cast<float>(point.at(a, 2));
          for (int s = 0; s < 4; ++s) {
            const float center = static_cast<float>(point.at(a, s % 2)), away = distance[s][k] * stride;
            data[(run.b * count + a) * 4 + s] = s < 2 ? center - away : center + away;
          }
        }
      }
    }
  });
  return boxes;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("decode_distances", TORCH_BOX(&detops::decode_distances)); }
