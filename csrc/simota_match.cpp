// SimOTA for a batch: the CPU kernel of simota_match.
//
// Four steps, each shared out among torch's threads: which cells are candidates (by image), what all classes cost
// there (by cell), what each box picks (by box), and who keeps a cell that several picked (by image). Memory grows
// with images x cells and with the picks, never with boxes x cells. Costs are only computed where they can matter: at
// the few best cells of a box, and at the others where those are fewer than it takes.
#include "simota_cost.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr uint8_t kOwn = 1, kBest = 2;
constexpr int64_t kMostTop = 1000;

struct Settings {
  float radius;
  bool center_only, own_candidates;
  int64_t topk;
  double k_scale;
  float iou_weight, class_weight;
  int64_t most;  // picks of one box, at most
};

struct Box {
  float cx, cy, x1, y1, x2, y2, area;
  int64_t label;
  bool present;  // valid, and with candidates of its own
};

// Columns of one number a cell: the candidates of an image, in ascending order of their index.
struct Columns {
  float *x, *y, *side;              // of the cell
  float *x1, *y1, *x2, *y2, *area;  // of the prediction
  float *objectness, *total;        // logit, and what all classes cost
};

// Where cells lie to a box, as bits.
DETOPS_CLONES void region_row(const Box& box, const float* x, const float* y, const float* side, float radius,
                              bool center_only, int64_t count, uint8_t* flags) {
  const float cx = box.cx, cy = box.cy, x1 = box.x1, y1 = box.y1, x2 = box.x2, y2 = box.y2;
  for (int64_t i = 0; i < count; ++i) {
    const float dx = x[i] > cx ? x[i] - cx : cx - x[i], dy = y[i] > cy ? y[i] - cy : cy - y[i];
    const bool near = (dx < radius * side[i]) & (dy < radius * side[i]);
    const bool in_box = (x[i] > x1) & (x[i] < x2) & (y[i] > y1) & (y[i] < y2);
    const bool own = center_only ? near : in_box | near, best = center_only ? near : in_box & near;
    flags[i] = static_cast<uint8_t>((own ? kOwn : 0) | (best ? kBest : 0));
  }
}

inline float pair_iou(const Box& g, float x1, float y1, float x2, float y2, float area) {
  const float left = g.x1 > x1 ? g.x1 : x1, right = g.x2 < x2 ? g.x2 : x2;
  const float top = g.y1 > y1 ? g.y1 : y1, bottom = g.y2 < y2 ? g.y2 : y2;
  const float inter = (right > left ? right - left : 0.0f) * (bottom > top ? bottom - top : 0.0f);
  const float iou = inter / (g.area + area - inter);
  return iou >= 0 && iou <= std::numeric_limits<float>::max() ? iou : 0.0f;  // NaN is 0
}

DETOPS_CLONES void iou_row(const Box& box, const Columns& c, int64_t count, float* iou) {
  for (int64_t i = 0; i < count; ++i) iou[i] = pair_iou(box, c.x1[i], c.y1[i], c.x2[i], c.y2[i], c.area[i]);
}

class Match {
 public:
  Match(const std::vector<Tensor>& class_logits, const Tensor& objectness, const Tensor& pred_boxes,
        const Tensor& cells, const Tensor& gt_boxes, const Tensor& gt_labels, const std::optional<Tensor>& sizes,
        const Settings& settings)
      : batch_(objectness.size(0)), cells_(objectness.size(1)), boxes_(gt_boxes.size(1)),
        classes_(class_logits[0].size(2)), settings_(settings), objectness_(objectness), pred_(pred_boxes),
        cell_(cells), counts_(batch_), box_(static_cast<size_t>(batch_ * boxes_)),
        memory_{torch::stable::new_empty(objectness, {batch_, 10, cells_}, ScalarType::Float),
                torch::stable::new_empty(objectness, {batch_, cells_}, ScalarType::Int),
                torch::stable::new_empty(objectness, {batch_, boxes_, settings.most}, ScalarType::Int)},
        columns_(static_cast<float*>(memory_[0].mutable_data_ptr())),
        ids_(static_cast<int32_t*>(memory_[1].mutable_data_ptr())),
        picks_(static_cast<int32_t*>(memory_[2].mutable_data_ptr())) {
    std::fill(picks_, picks_ + batch_ * boxes_ * settings.most, -1);
    for (const Tensor& level : class_logits) {
      levels_.push_back({level, Reader(level), level.size(1)});
    }
    read_boxes(Reader(gt_boxes), Reader(gt_labels), sizes);
  }

  void candidates(int64_t b) {
    std::vector<float> x(cells_), y(cells_), side(cells_);
    for (int64_t a = 0; a < cells_; ++a) {
      x[a] = static_cast<float>(cell_.at(a, 0));
      y[a] = static_cast<float>(cell_.at(a, 1));
      side[a] = static_cast<float>(cell_.at(a, 2));
    }
    std::vector<uint8_t> any(cells_, 0), flags(cells_);
    for (int64_t n = 0; n < boxes_; ++n) {
      Box& box = box_[b * boxes_ + n];
      if (!box.present) continue;
      region_row(box, x.data(), y.data(), side.data(), settings_.radius, settings_.center_only, cells_, flags.data());
      uint8_t own = 0;
      for (int64_t a = 0; a < cells_; ++a) {
        own |= flags[a];
        any[a] |= flags[a];
      }
      box.present = (own & kOwn) != 0;
    }
    const Columns c = columns(b);
    int64_t count = 0;
    for (int64_t a = 0; a < cells_; ++a) {
      if (any[a] == 0) continue;
      const float cx = number(pred_, b, a, 0), cy = number(pred_, b, a, 1);
      const float w = number(pred_, b, a, 2), h = number(pred_, b, a, 3);
      c.x[count] = x[a], c.y[count] = y[a], c.side[count] = side[a];
      c.x1[count] = cx - 0.5f * w, c.y1[count] = cy - 0.5f * h;
      c.x2[count] = cx + 0.5f * w, c.y2[count] = cy + 0.5f * h;
      c.area[count] = w * h;
      c.objectness[count] = number(objectness_, b, a);
      ids_[b * cells_ + count++] = static_cast<int32_t>(a);
    }
    counts_[b] = count;
  }

  // What all classes cost at the candidates of a range of images x cells.
  void class_costs(int64_t begin, int64_t end) {
    const int64_t padded = (classes_ + kWide - 1) / kWide * kWide;
    std::vector<float> row(padded, -1e4f);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / cells_, place = i % cells_;
      if (place >= counts_[b]) {
        i = std::min(end, (b + 1) * cells_) - 1;
        continue;
      }
      const Columns c = columns(b);
      read_row(b, ids_[i], row.data());
      const float o = c.objectness[place];
      c.total[place] = static_cast<float>(o <= 30.0f ? all_classes(row.data(), padded, o)
                                                     : all_classes_confident(row.data(), classes_, o));
    }
  }

  // What one box picks.
  void pick(int64_t b, int64_t n, std::vector<float>& scratch, std::vector<uint8_t>& flags) {
    const Box& box = box_[b * boxes_ + n];
    if (!box.present) return;
    const Columns c = columns(b);
    const int64_t count = counts_[b];
    scratch.resize(6 * cells_);
    flags.resize(cells_);
    float* iou = scratch.data();
    iou_row(box, c, count, iou);
    region_row(box, c.x, c.y, c.side, settings_.radius, settings_.center_only, count, flags.data());
    const uint8_t allowed = settings_.own_candidates ? kOwn : 0;
    const int64_t k = how_many(iou, flags.data(), allowed, count);
    int32_t* picked = &picks_[(b * boxes_ + n) * settings_.most];
    const int64_t found = cheapest(b, box, c, flags.data(), kBest, kBest, iou, count, k, picked, &scratch[cells_]);
    if (found < k) {
      const uint8_t mask = static_cast<uint8_t>(kBest | allowed);
      cheapest(b, box, c, flags.data(), mask, allowed, iou, count, k - found, picked + found, &scratch[cells_]);
    }
  }

  // Who keeps each cell of an image.
  void resolve(int64_t b, int64_t* index, float* iou) {
    std::fill(index, index + cells_, -1);
    std::fill(iou, iou + cells_, 0.0f);
    const Columns c = columns(b);
    std::vector<int32_t> first(counts_[b], -1);
    std::vector<std::vector<int64_t>> contenders;  // of the cells that several boxes picked
    std::vector<int64_t> place_of;
    std::vector<int32_t> contest(counts_[b], -1);
    for (int64_t n = 0; n < boxes_; ++n) {
      const int32_t* picked = &picks_[(b * boxes_ + n) * settings_.most];
      for (int64_t j = 0; j < settings_.most && picked[j] >= 0; ++j) {
        const int64_t place = picked[j];
        if (first[place] < 0) {
          first[place] = static_cast<int32_t>(n);
          continue;
        }
        if (contest[place] < 0) {
          contest[place] = static_cast<int32_t>(contenders.size());
          contenders.push_back({first[place]});
          place_of.push_back(place);
        }
        contenders[contest[place]].push_back(n);
      }
    }
    std::vector<int64_t> all;
    for (int64_t n = 0; n < boxes_; ++n) {
      if (box_[b * boxes_ + n].present) all.push_back(n);
    }
    for (size_t i = 0; i < contenders.size(); ++i) {
      first[place_of[i]] = static_cast<int32_t>(winner(b, c, place_of[i], settings_.own_candidates ? contenders[i] : all));
    }
    for (int64_t place = 0; place < counts_[b]; ++place) {
      if (first[place] < 0) continue;
      const int64_t a = ids_[b * cells_ + place];
      index[a] = first[place];
      iou[a] = pair_iou(box_[b * boxes_ + first[place]], c.x1[place], c.y1[place], c.x2[place], c.y2[place], c.area[place]);
    }
  }

 private:
  struct Level {
    Tensor tensor;
    Reader reader;
    int64_t count;
  };

  static float number(const Reader& reader, int64_t i, int64_t j, int64_t k = 0) {
    return static_cast<float>(reader.at(i, j, k));
  }

  Columns columns(int64_t b) {
    float* p = columns_ + b * cells_ * 10;
    const auto next = [&] { return (p += cells_) - cells_; };
    Columns c;
    for (float** column : {&c.x, &c.y, &c.side, &c.x1, &c.y1, &c.x2, &c.y2, &c.area, &c.objectness, &c.total}) {
      *column = next();
    }
    return c;
  }

  void read_boxes(const Reader& boxes, const Reader& labels, const std::optional<Tensor>& sizes) {
    std::optional<Reader> size;
    if (sizes) size.emplace(*sizes);
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t count = size ? std::clamp<int64_t>(static_cast<int64_t>(size->at(b)), 0, boxes_) : boxes_;
      for (int64_t n = 0; n < boxes_; ++n) {
        Box& box = box_[b * boxes_ + n];
        const double label = labels.at(b, n);
        const float w = number(boxes, b, n, 2), h = number(boxes, b, n, 3);
        box.cx = number(boxes, b, n, 0), box.cy = number(boxes, b, n, 1);
        box.x1 = box.cx - 0.5f * w, box.x2 = box.cx + 0.5f * w;
        box.y1 = box.cy - 0.5f * h, box.y2 = box.cy + 0.5f * h;
        box.area = w * h;
        box.present = n < count && label >= 0 && label < static_cast<double>(classes_) && w >= 0 && h >= 0 &&
                      std::isfinite(box.cx) && std::isfinite(box.cy) && std::isfinite(w) && std::isfinite(h);
        box.label = box.present ? static_cast<int64_t>(label) : 0;
      }
    }
  }

  // The level of a cell, and its row there.
  const Level& locate(int64_t& a) const {
    size_t l = 0;
    while (a >= levels_[l].count) a -= levels_[l++].count;
    return levels_[l];
  }

  float logit(int64_t b, int64_t a, int64_t label) const {
    const Level& level = locate(a);
    return number(level.reader, b, a, label);
  }

  void read_row(int64_t b, int64_t a, float* row) const {
    const Level& level = locate(a);
    const Tensor& t = level.tensor;
    if (t.scalar_type() == ScalarType::Float && t.stride(2) == 1) {
      const float* from = static_cast<const float*>(t.const_data_ptr()) + b * t.stride(0) + a * t.stride(1);
      std::copy(from, from + classes_, row);
      return;
    }
    for (int64_t c = 0; c < classes_; ++c) row[c] = number(level.reader, b, a, c);
  }

  // Truncated sum of the highest IoUs among cells that have all bits of `allowed`.
  int64_t how_many(const float* iou, const uint8_t* flags, uint8_t allowed, int64_t count) const {
    std::vector<float> top(settings_.topk, 0.0f);  // descending
    for (int64_t i = 0; i < count; ++i) {
      if (!(iou[i] > top.back()) || (flags[i] & allowed) != allowed) continue;
      size_t j = top.size() - 1;
      for (; j > 0 && iou[i] > top[j - 1]; --j) top[j] = top[j - 1];
      top[j] = iou[i];
    }
    float sum = 0;
    for (float value : top) sum += value;
    const double k = settings_.k_scale * static_cast<double>(sum);
    return std::clamp<int64_t>(static_cast<int64_t>(k), 1, settings_.most);
  }

  // The `k` cheapest places whose flags, masked, are `wanted`; returns how many there are.
  int64_t cheapest(int64_t b, const Box& box, const Columns& c, const uint8_t* flags, uint8_t mask, uint8_t wanted,
                   const float* iou, int64_t count, int64_t k, int32_t* picked, float* scratch) {
    float *logits = scratch, *objectness = scratch + cells_, *total = objectness + cells_, *overlap = total + cells_;
    float* cost = overlap + cells_;
    thread_local std::vector<int32_t> place;
    place.clear();
    for (int64_t i = 0; i < count; ++i) {
      if ((flags[i] & mask) != wanted) continue;
      const size_t j = place.size();
      logits[j] = logit(b, ids_[b * cells_ + i], box.label);
      objectness[j] = c.objectness[i], total[j] = c.total[i], overlap[j] = iou[i];
      place.push_back(static_cast<int32_t>(i));
    }
    const int64_t size = static_cast<int64_t>(place.size());
    cost_row(logits, objectness, total, overlap, settings_.iou_weight, settings_.class_weight, size, cost);
    std::vector<float> lowest(k);
    int64_t found = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (found == k && !(cost[i] < lowest[k - 1])) continue;
      int64_t j = found < k ? found++ : k - 1;
      for (; j > 0 && cost[i] < lowest[j - 1]; --j) lowest[j] = lowest[j - 1], picked[j] = picked[j - 1];
      lowest[j] = cost[i], picked[j] = place[i];
    }
    return found;
  }

  // The cheapest of `boxes` at a place; what all classes cost there is the same for each.
  int64_t winner(int64_t b, const Columns& c, int64_t place, const std::vector<int64_t>& boxes) {
    const float x = c.x[place], y = c.y[place], side = c.side[place];
    const size_t size = boxes.size();
    std::vector<float> logits(size), objectness(size, c.objectness[place]), total(size, 0.0f), iou(size), cost(size);
    std::vector<uint8_t> best(size);
    for (size_t i = 0; i < size; ++i) {
      const Box& box = box_[b * boxes_ + boxes[i]];
      region_row(box, &x, &y, &side, settings_.radius, settings_.center_only, 1, &best[i]);
      logits[i] = logit(b, ids_[b * cells_ + place], box.label);
      iou[i] = pair_iou(box, c.x1[place], c.y1[place], c.x2[place], c.y2[place], c.area[place]);
    }
    cost_row(logits.data(), objectness.data(), total.data(), iou.data(), settings_.iou_weight, settings_.class_weight,
             static_cast<int64_t>(size), cost.data());
    size_t first = 0;
    for (size_t i = 1; i < size; ++i) {
      const bool better = (best[i] & kBest) > (best[first] & kBest);
      const bool same = (best[i] & kBest) == (best[first] & kBest);
      if (better || (same && cost[i] < cost[first])) first = i;
    }
    return boxes[first];
  }

  int64_t batch_, cells_, boxes_, classes_;
  Settings settings_;
  Reader objectness_, pred_, cell_;
  std::vector<Level> levels_;
  std::vector<int64_t> counts_;  // how many candidates an image has
  std::vector<Box> box_;
  Tensor memory_[3];  // PyTorch's, so that its profiler sees it
  float* columns_;
  int32_t* ids_;    // candidates of each image
  int32_t* picks_;  // of each box: places among the candidates, then -1
};

std::tuple<Tensor, Tensor> simota_match(const std::vector<Tensor> class_logits, const Tensor objectness,
                                        const Tensor pred_boxes, const Tensor cells, const Tensor gt_boxes,
                                        const Tensor gt_labels, const std::optional<Tensor> sample_sizes,
                                        double radius, bool center_only, bool own_candidates, int64_t topk,
                                        double k_scale, double iou_weight, double class_weight) {
  STD_TORCH_CHECK(objectness.dim() == 2, "objectness: expected shape (B, A)");
  const int64_t batch = objectness.size(0), count = objectness.size(1);
  const auto fits = [](const Tensor& t, std::initializer_list<int64_t> shape) {
    int64_t d = 0;
    bool same = t.dim() == static_cast<int64_t>(shape.size()) && Reader::reads(t.scalar_type());
    for (int64_t side : shape) same = same && (side < 0 || t.size(d) == side), ++d;
    return same;
  };
  int64_t rows = 0;
  STD_TORCH_CHECK(!class_logits.empty(), "class_logits: expected at least one level");
  for (const Tensor& level : class_logits) {
    STD_TORCH_CHECK(fits(level, {batch, -1, class_logits[0].dim() == 3 ? class_logits[0].size(2) : 0}),
                    "class_logits: expected levels of shape (B, A_l, C)");
    rows += level.size(1);
  }
  STD_TORCH_CHECK(rows == count, "class_logits: expected as many cells as objectness has");
  STD_TORCH_CHECK(fits(pred_boxes, {batch, count, 4}), "pred_boxes: expected shape (B, A, 4)");
  STD_TORCH_CHECK(fits(cells, {count, 3}), "cells: expected shape (A, 3)");
  STD_TORCH_CHECK(fits(gt_boxes, {batch, -1, 4}), "gt_boxes: expected shape (B, N, 4)");
  STD_TORCH_CHECK(fits(gt_labels, {batch, gt_boxes.size(1)}), "gt_labels: expected shape (B, N)");
  STD_TORCH_CHECK(!sample_sizes || fits(*sample_sizes, {batch}), "sample_sizes: expected shape (B,)");
  STD_TORCH_CHECK(topk >= 1 && topk <= kMostTop, "topk: expected 1 .. 1000");
  STD_TORCH_CHECK(k_scale >= 0 && k_scale <= kMostTop, "k_scale: expected 0 .. 1000");

  Tensor index = torch::stable::new_empty(objectness, {batch, count}, ScalarType::Long);
  Tensor iou = torch::stable::new_empty(objectness, {batch, count}, ScalarType::Float);
  if (batch == 0 || count == 0) return {index, iou};
  Settings settings{static_cast<float>(radius), center_only, own_candidates, topk, k_scale,
                    static_cast<float>(iou_weight), static_cast<float>(class_weight), 0};
  settings.most = std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(topk) * k_scale), 1, count);
  Match match(class_logits, objectness, pred_boxes, cells, gt_boxes, gt_labels, sample_sizes, settings);
  const int64_t boxes = gt_boxes.size(1);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.candidates(b);
  });
  torch::stable::parallel_for(0, batch * count, 256, [&](int64_t begin, int64_t end) { match.class_costs(begin, end); });
  torch::stable::parallel_for(0, batch * boxes, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    std::vector<uint8_t> flags;
    for (int64_t i = begin; i < end; ++i) match.pick(i / boxes, i % boxes, scratch, flags);
  });
  int64_t* index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  float* iou_data = static_cast<float*>(iou.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.resolve(b, index_data + b * count, iou_data + b * count);
  });
  return {index, iou};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("simota_match", TORCH_BOX(&detops::simota_match)); }
