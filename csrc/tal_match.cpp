// Task-aligned assignment for a batch: the CPU kernel of tal_match.
//
// Three steps, each divided among torch's threads: predictions as columns (by image), what each box takes (by box), and
// who keeps a point that several took, and its quality (by image). A box looks at the points in a window of each grid,
// by the IoU first, and computes the metric only where that could be among its best. Memory grows with images x points
// and with what is taken, never with boxes x points.
#include "class_logits.h"
#include "grid.h"
#include "labels.h"
#include "tal_metric.h"
#include "top_k.h"

#include <tuple>

namespace detops {
namespace {

constexpr int64_t kMostTop = 1000;

struct Settings {
  Metric metric;
  int64_t topk;
  bool all_points, all_boxes, fallback;
  float margin, reach, min_side, eps;
  int64_t most;  // points that one box takes, at most
};

// The points, as columns, and the grids that they form: a run of one stride is a grid, or is searched whole.
struct Points {
  std::vector<float> x, y, stride;
  std::vector<GridLevel> levels;

  explicit Points(const Tensor& points) : x(points.size(0)), y(x), stride(x) {
    const Reader reader(points);
    const int64_t count = points.size(0);
    for (int64_t a = 0; a < count; ++a) {
      x[a] = static_cast<float>(reader.at(a, 0)), y[a] = static_cast<float>(reader.at(a, 1));
      stride[a] = static_cast<float>(reader.at(a, 2));
    }
    for (int64_t start = 0, end = 0; start < count; start = end) {
      while (end < count && (end == start || stride[end] == stride[start])) ++end;
      levels.emplace_back(x.data(), y.data(), start, end - start);
    }
  }
};

struct Target {
  AlignedBox of;
  int64_t label;
  bool present;
};

class Match {
 public:
  Match(const std::vector<Tensor>& class_logits, const Tensor& pred_boxes, const Tensor& points, const Tensor& gt_boxes,
        const Tensor& gt_labels, const std::optional<Tensor>& sizes, const std::optional<Tensor>& valid,
        const Settings& settings)
      : batch_(pred_boxes.size(0)), count_(pred_boxes.size(1)), boxes_(gt_boxes.size(1)), settings_(settings),
        logits_(class_logits), pred_(pred_boxes), points_(points), gt_(gt_boxes), valid_(reader_of(valid)),
        labels_(gt_labels, sizes, boxes_),
        memory_{torch::stable::new_empty(pred_boxes, {batch_, AlignedColumns::kCount, count_}, ScalarType::Float),
                torch::stable::new_empty(pred_boxes, {batch_, boxes_, settings.most}, ScalarType::Int)},
        columns_(static_cast<float*>(memory_[0].mutable_data_ptr())),
        taken_(static_cast<int32_t*>(memory_[1].mutable_data_ptr())) {}

  void predictions(int64_t b) {
    const AlignedColumns c = columns(b);
    for (int64_t a = 0; a < count_; ++a) c.set(a, {read_box<float>(pred_, b, a), settings_.metric.ciou});
  }

  // Finds the points that one box takes.
  void take(int64_t b, int64_t n, std::vector<float>& scratch) {
    int32_t* taken = taken_ + (b * boxes_ + n) * settings_.most;
    std::fill(taken, taken + settings_.most, -1);
    const Target target = read(b, n);
    if (!target.present) return;
    TopK<std::greater<float>> best(settings_.topk);
    search(b, target, !settings_.all_points, best, scratch);
    int64_t found = 0;
    for (int64_t i = 0; i < best.size(); ++i) {
      if (!settings_.all_points || inside(target, best.indices()[i])) taken[found++] = best.indices()[i];
    }
    if (found > 0 || !settings_.fallback) return;
    TopK<std::greater<float>> anywhere(1);
    search(b, target, false, anywhere, scratch);
    if (anywhere.size() > 0) taken[0] = anywhere.indices()[0];
  }

  // Decides which box keeps each point of an image, and its quality.
  void resolve(int64_t b, int64_t* index, float* quality) {
    const AlignedColumns c = columns(b);
    const Metric& metric = settings_.metric;
    std::fill(index, index + count_, -1);
    std::vector<float> overlap(count_, 0.0f);
    std::vector<int32_t> times(count_, 0);
    for (int64_t n = 0; n < labels_.rows(b); ++n) {
      const int32_t* taken = taken_ + (b * boxes_ + n) * settings_.most;
      if (taken[0] < 0) continue;
      const AlignedBox of = read(b, n).of;
      for (int64_t i = 0; i < settings_.most && taken[i] >= 0; ++i) {
        const int64_t a = taken[i];
        const float u = metric.overlap(of, c.at(a));
        if (times[a]++ == 0 || u > overlap[a]) index[a] = n, overlap[a] = u;
      }
    }
    if (settings_.all_boxes) contest(b, times, index, overlap);
    std::vector<float> most_m(boxes_, 0.0f), most_u(boxes_, 0.0f);
    for (int64_t a = 0; a < count_; ++a) {
      const int64_t n = index[a];
      quality[a] = 0;
      if (n < 0) continue;
      quality[a] = metric(logits_.at(b, a, labels_.at(b, n, logits_.classes)), overlap[a]);
      most_m[n] = std::max(most_m[n], quality[a]), most_u[n] = std::max(most_u[n], overlap[a]);
    }
    for (int64_t a = 0; a < count_; ++a) {
      if (index[a] >= 0) quality[a] = quality[a] / (most_m[index[a]] + settings_.eps) * most_u[index[a]];
    }
  }

 private:
  AlignedColumns columns(int64_t b) const { return {columns_ + b * AlignedColumns::kCount * count_, count_}; }

  Target read(int64_t b, int64_t n) const {
    if (n >= labels_.rows(b)) return {{}, -1, false};
    const Box<float> g = read_box<float>(gt_, b, n);
    const int64_t label = labels_.at(b, n, logits_.classes);
    const bool finite = std::isfinite(g.x1) && std::isfinite(g.y1) && std::isfinite(g.x2) && std::isfinite(g.y2);
    return {{g, settings_.metric.ciou}, label, finite && label >= 0 && g.x2 >= g.x1 && g.y2 >= g.y1};
  }

  // How far each side of a box is moved out for points of a stride.
  void grown(const Box<float>& g, float stride, float& along_x, float& along_y) const {
    along_x = std::max((settings_.min_side * stride - (g.x2 - g.x1)) / 2, 0.0f);
    along_y = std::max((settings_.min_side * stride - (g.y2 - g.y1)) / 2, 0.0f);
  }

  bool inside(const Target& target, int64_t a) const {
    const Box<float>& g = target.of.box;
    const float x = points_.x[a], y = points_.y[a], stride = points_.stride[a];
    float dx, dy;
    grown(g, stride, dx, dy);
    const float least = std::min(std::min(x - (g.x1 - dx), g.x2 + dx - x), std::min(y - (g.y1 - dy), g.y2 + dy - y));
    const float most = std::max(std::max(x - g.x1, g.x2 - x), std::max(y - g.y1, g.y2 - y));
    return least >= settings_.margin && most / stride <= settings_.reach;
  }

  // Lines of a grid that lie from `low` to `high`.
  static Range lines_within(const float* line, int64_t count, int64_t step, float low, float high) {
    const auto first = [&](auto beyond) {
      int64_t from = 0, to = count;
      while (from < to) {
        const int64_t middle = (from + to) / 2;
        if (beyond(line[middle * step]))
          to = middle;
        else
          from = middle + 1;
      }
      return from;
    };
    const int64_t begin = first([&](float at) { return at >= low; });
    return {begin, std::max(begin, first([&](float at) { return at > high; }))};
  }

  // Offers the metric of the points of an image, those inside the box or all, to its best.
  void search(int64_t b, const Target& target, bool within, TopK<std::greater<float>>& best,
              std::vector<float>& scratch) const {
    const Box<float>& g = target.of.box;
    // The metric is above 0, so the overlap must be at least this.
    float least = settings_.metric.least_overlap(std::numeric_limits<float>::min());
    for (const GridLevel& level : points_.levels) {
      const bool grid = level.width > 0;
      Range columns{0, grid ? level.width : level.size}, rows{0, grid ? level.size / level.width : 1};
      if (within && grid) {
        float dx, dy;
        grown(g, points_.stride[level.start], dx, dy);
        columns = lines_within(&points_.x[level.start], columns.end, 1, g.x1 - dx, g.x2 + dx);
        rows = lines_within(&points_.y[level.start], rows.end, level.width, g.y1 - dy, g.y2 + dy);
      }
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t first = level.start + row * level.width + columns.begin;
        offer(b, target, first, columns.size(), within, best, least, scratch);
      }
    }
  }

  void offer(int64_t b, const Target& target, int64_t first, int64_t count, bool within,
             TopK<std::greater<float>>& best, float& least, std::vector<float>& iou) const {
    const AlignedColumns c = columns(b);
    iou_row(target.of, c, first, count, iou.data());
    for (int64_t i = 0; i < count; ++i) {
      if (iou[i] < least) continue;
      const int64_t a = first + i;
      if ((within && !inside(target, a)) || (valid_ && valid_->at(b, a) == 0)) continue;
      const float u = settings_.metric.overlap(target.of, c.at(a));
      if (u < least) continue;
      const float m = settings_.metric(logits_.at(b, a, target.label), u);
      if (m <= 0 || !best.takes(m)) continue;
      best.offer(m, a);
      if (best.full()) least = settings_.metric.least_overlap(best.worst());
    }
  }

  // Gives each point that several boxes took to the highest overlap of all boxes of the image.
  void contest(int64_t b, const std::vector<int32_t>& times, int64_t* index, std::vector<float>& overlap) const {
    std::vector<float> memory, iou;
    std::vector<int64_t> numbers;
    for (int64_t a = 0; a < count_; ++a) {
      if (times[a] < 2) continue;
      if (numbers.empty()) {  // the boxes of the image as columns
        memory.resize(AlignedColumns::kCount * boxes_), iou.resize(boxes_);
        for (int64_t n = 0; n < labels_.rows(b); ++n) {
          const Target target = read(b, n);
          if (!target.present) continue;
          AlignedColumns(memory.data(), boxes_).set(static_cast<int64_t>(numbers.size()), target.of);
          numbers.push_back(n);
        }
      }
      const AlignedColumns all(memory.data(), boxes_);
      const AlignedBox at = columns(b).at(a);
      const int64_t size = static_cast<int64_t>(numbers.size());
      iou_row(at, all, 0, size, iou.data());
      index[a] = -1, overlap[a] = 0;
      float least = 0;
      for (int64_t i = 0; i < size; ++i) {
        if (iou[i] < least) continue;
        const float u = settings_.metric.overlap(all.at(i), at);
        if (index[a] < 0 || u > overlap[a]) index[a] = numbers[i], overlap[a] = u, least = (1 - 1e-4f) * u;
      }
    }
  }

  int64_t batch_, count_, boxes_;
  Settings settings_;
  ClassLogits logits_;
  Reader pred_;
  Points points_;
  Reader gt_;
  std::optional<Reader> valid_;
  Labels labels_;
  Tensor memory_[2];  // PyTorch's, so that its profiler sees it
  float* columns_;    // the predictions of each image
  int32_t* taken_;    // for each box: points, then -1
};

std::tuple<Tensor, Tensor> tal_match(const std::vector<Tensor> class_logits, const Tensor pred_boxes,
                                     const Tensor points, const Tensor gt_boxes, const Tensor gt_labels,
                                     const std::optional<Tensor> sample_sizes, const std::optional<Tensor> valid,
                                     double alpha, double beta, int64_t topk, bool ciou, bool all_points,
                                     bool all_boxes, bool fallback, double margin, double reach, double min_side,
                                     double eps) {
  STD_TORCH_CHECK(has_numbers(pred_boxes, {-1, -1, 4}), "pred_boxes: expected numbers of shape (B, A, 4)");
  const int64_t batch = pred_boxes.size(0), count = pred_boxes.size(1);
  int64_t rows = 0;
  STD_TORCH_CHECK(!class_logits.empty(), "class_logits: expected at least one level");
  for (const Tensor& level : class_logits) {
    STD_TORCH_CHECK(has_numbers(level, {batch, -1, -1}) && level.size(2) == class_logits[0].size(2),
                    "class_logits: expected levels (B, A_l, C)");
    rows += level.size(1);
  }
  STD_TORCH_CHECK(rows == count, "class_logits: expected as many points as pred_boxes has");
  STD_TORCH_CHECK(has_numbers(points, {count, 3}), "points: expected numbers of shape (A, 3)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {batch, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  check_labels(gt_labels, sample_sizes, batch, gt_boxes.size(1), "gt_labels");
  STD_TORCH_CHECK(!valid || has_booleans(*valid, {batch, count}), "valid: expected bool of shape (B, A)");
  STD_TORCH_CHECK(topk >= 1 && topk <= kMostTop, "topk: expected 1 .. 1000");
  STD_TORCH_CHECK(alpha >= 0, "alpha: expected at least 0");
  STD_TORCH_CHECK(beta >= 0, "beta: expected at least 0");

  Tensor index = torch::stable::new_empty(pred_boxes, {batch, count}, ScalarType::Long);
  Tensor quality = torch::stable::new_empty(pred_boxes, {batch, count}, ScalarType::Float);
  if (batch == 0 || count == 0) return {index, quality};
  const Metric metric{static_cast<float>(alpha), static_cast<float>(beta), ciou};
  const Settings settings{metric,
                          topk,
                          all_points,
                          all_boxes,
                          fallback,
                          static_cast<float>(margin),
                          static_cast<float>(reach),
                          static_cast<float>(min_side),
                          static_cast<float>(eps),
                          std::min(topk, count)};
  Match match(class_logits, pred_boxes, points, gt_boxes, gt_labels, sample_sizes, valid, settings);
  const int64_t boxes = gt_boxes.size(1);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.predictions(b);
  });
  torch::stable::parallel_for(0, batch * boxes, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(count);
    for (int64_t i = begin; i < end; ++i) match.take(i / boxes, i % boxes, scratch);
  });
  int64_t* index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  float* quality_data = static_cast<float*>(quality.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.resolve(b, index_data + b * count, quality_data + b * count);
  });
  return {index, quality};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("tal_match", TORCH_BOX(&detops::tal_match)); }
