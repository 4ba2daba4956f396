// SimOTA for a batch: the CPU kernel of simota_match.
//
// Four steps, each divided among torch's threads: which cells are candidates (by image), the class costs there (by
// cell), which cells each box picks (by box), and which box keeps a cell that several picked (by image). Memory
// grows with images x cells and with the picks, never with boxes x cells. Costs are computed only where they can
// matter: at the few best cells of a box, and at its others only if it picks more than those.
#include "class_logits.h"
#include "simota_candidates.h"
#include "simota_cost.h"
#include "top_k.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kMostTop = 1000;

struct Settings {
  float radius;
  bool center_only, own_candidates;
  int64_t topk;
  double k_scale;
  float iou_weight, class_weight;
  int64_t most;  // picks of one box, at most
};

constexpr int64_t kBoxColumns = 5;  // of a raw output, before its classes: x, y, w, h, objectness

// What the network predicts at each cell: its raw outputs (B, A_l, 5 + C), level by level, or class logits (B, A_l, C),
// and objectness and boxes beside them.
class Predictions {
 public:
  const ClassLogits logits;

  Predictions(const std::vector<Tensor>& outputs, const std::optional<Tensor>& objectness,
              const std::optional<Tensor>& boxes)
      : logits(boxes ? outputs : classes_of(outputs)), raw_(outputs), objectness_(reader_of(objectness)),
        boxes_(reader_of(boxes)) {}

  float objectness(int64_t b, int64_t a) const {
    return objectness_ ? static_cast<float>(objectness_->at(b, a)) : raw_.at(b, a, kBoxColumns - 1);
  }

  // Centre and size of the box that is predicted at a cell of this centre and side.
  Box<float> box(int64_t b, int64_t a, float x, float y, float side) const {
    if (boxes_) return read_box<float>(*boxes_, b, a);
    return {raw_.at(b, a, 0) * side + (x - side / 2), raw_.at(b, a, 1) * side + (y - side / 2),
            std::exp(raw_.at(b, a, 2)) * side, std::exp(raw_.at(b, a, 3)) * side};
  }

 private:
  static std::vector<Tensor> classes_of(const std::vector<Tensor>& outputs) {
    std::vector<Tensor> classes;
    for (Tensor output : outputs) {
      classes.push_back(torch::stable::narrow(output, 2, kBoxColumns, output.size(2) - kBoxColumns));
    }
    return classes;
  }

  ClassLogits raw_;
  std::optional<Reader> objectness_, boxes_;
};

constexpr int64_t kSkip = 16;  // IoUs that are passed over together
constexpr int64_t kFlags = 8;  // flags of one word

// Writes the highest of each run of kSkip numbers.
DETOPS_CLONES static void highest_of_runs(const float* values, int64_t count, float* out) {
  int64_t first = 0;
  for (; first + kSkip <= count; first += kSkip) {
    float top = values[first];
    for (int64_t i = 1; i < kSkip; ++i) top = values[first + i] > top ? values[first + i] : top;
    out[first / kSkip] = top;
  }
  if (first < count) out[first / kSkip] = *std::max_element(values + first, values + count);
}

// Whether no flag of a word, masked, is `wanted`: a byte that is 0 after the exclusive or borrows from above.
inline bool none_of(const uint8_t* flags, uint8_t mask, uint8_t wanted) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  uint64_t word;
  __builtin_memcpy(&word, flags, sizeof(word));
  word = (word & (kOnes * mask)) ^ (kOnes * wanted);
  return ((word - kOnes) & ~word & (kOnes << 7)) == 0;
}

class Match {
 public:
  Match(const Predictions& predictions, const Tensor& cells, const Tensor& gt_boxes, bool cxcywh,
        const Tensor& gt_labels, const std::optional<Tensor>& sizes, const Settings& settings)
      : batch_(gt_boxes.size(0)), cells_(cells.size(0)), boxes_(gt_boxes.size(1)), settings_(settings),
        logits_(predictions.logits), predictions_(predictions), cell_(cells),
        targets_(read_targets(GivenBoxes(gt_boxes, cxcywh), Labels(gt_labels, sizes, boxes_), batch_, boxes_,
                              logits_.classes)),
        counts_(batch_), memory_{torch::stable::new_empty(cells, {batch_, Columns::kCount, cells_}, ScalarType::Float),
                                 torch::stable::new_empty(cells, {batch_, cells_}, ScalarType::Int),
                                 torch::stable::new_empty(cells, {batch_, boxes_, settings.most}, ScalarType::Int)},
        columns_(static_cast<float*>(memory_[0].mutable_data_ptr())),
        ids_(static_cast<int32_t*>(memory_[1].mutable_data_ptr())),
        picks_(static_cast<int32_t*>(memory_[2].mutable_data_ptr())) {
    std::fill(picks_, picks_ + batch_ * boxes_ * settings.most, -1);
  }

  // Finds the candidates of an image, and which of its boxes have own candidates.
  void candidates(int64_t b) {
    std::vector<float> x(cells_), y(cells_), side(cells_);
    for (int64_t a = 0; a < cells_; ++a) {
      x[a] = static_cast<float>(cell_.at(a, 0));
      y[a] = static_cast<float>(cell_.at(a, 1));
      side[a] = static_cast<float>(cell_.at(a, 2));
    }
    std::vector<uint8_t> any(cells_, 0), flags(cells_);
    for (int64_t n = 0; n < boxes_; ++n) {
      Target& target = targets_[b * boxes_ + n];
      if (!target.present) continue;
      region_row(target, x.data(), y.data(), side.data(), settings_.radius, settings_.center_only, cells_,
                 flags.data());
      uint8_t own = 0;
      for (int64_t a = 0; a < cells_; ++a) {
        own |= flags[a];
        any[a] |= flags[a];
      }
      target.present = (own & kOwn) != 0;
    }
    const Columns c = columns(b);
    int64_t count = 0;
    for (int64_t a = 0; a < cells_; ++a) {
      if (any[a] == 0) continue;
      const auto [cx, cy, w, h] = predictions_.box(b, a, x[a], y[a], side[a]);
      const Box<float> box = box_around(cx, cy, w, h);
      c.x[count] = x[a], c.y[count] = y[a], c.side[count] = side[a];
      c.x1[count] = box.x1, c.y1[count] = box.y1, c.x2[count] = box.x2, c.y2[count] = box.y2;
      c.area[count] = w * h;
      c.objectness[count] = predictions_.objectness(b, a);
      ids_[b * cells_ + count++] = static_cast<int32_t>(a);
    }
    counts_[b] = count;
  }

  // Computes the class cost, if no class is the label, at the candidates in a range of images x cells.
  void class_costs(int64_t begin, int64_t end) {
    const int64_t classes = logits_.classes, padded = (classes + kWide - 1) / kWide * kWide;
    std::vector<float> row(padded, -1e4f);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / cells_, place = i % cells_;
      if (place >= counts_[b]) {
        i = std::min(end, (b + 1) * cells_) - 1;
        continue;
      }
      const Columns c = columns(b);
      logits_.read(b, ids_[i], row.data());
      const float o = c.objectness[place];
      c.total[place] = static_cast<float>(o <= 30.0f ? all_classes(row.data(), padded, o)
                                                     : all_classes_confident(row.data(), classes, o));
    }
  }

  // Finds the cells that one box picks.
  void pick(int64_t b, int64_t n, std::vector<float>& scratch, std::vector<uint8_t>& flags) {
    const Target& target = targets_[b * boxes_ + n];
    if (!target.present) return;
    const Columns c = columns(b);
    const int64_t count = counts_[b];
    scratch.resize(6 * cells_);
    flags.resize(cells_);
    float* iou = scratch.data();
    iou_row(target, c, count, iou);
    region_row(target, c.x, c.y, c.side, settings_.radius, settings_.center_only, count, flags.data());
    const uint8_t allowed = settings_.own_candidates ? kOwn : 0;
    const int64_t k = how_many(iou, flags.data(), allowed, count);
    int32_t* picked = &picks_[(b * boxes_ + n) * settings_.most];
    const int64_t found =
        cheapest(b, target.label, c, flags.data(), kBest, kBest, iou, count, k, picked, &scratch[cells_]);
    if (found < k) {
      const uint8_t mask = static_cast<uint8_t>(kBest | allowed);
      cheapest(b, target.label, c, flags.data(), mask, allowed, iou, count, k - found, picked + found,
               &scratch[cells_]);
    }
  }

  // Decides which box keeps each cell of an image; returns how many cells have a box.
  int64_t resolve(int64_t b, int64_t* index, float* iou) {
    std::fill(index, index + cells_, -1);
    std::fill(iou, iou + cells_, 0.0f);
    const Columns c = columns(b);
    std::vector<int32_t> first(counts_[b], -1);
    std::vector<std::vector<int64_t>> contenders;  // the boxes of each cell that several picked
    std::vector<int64_t> place_of;                 // the place of that cell among the candidates
    std::vector<int32_t> contest(counts_[b], -1);  // for each candidate: its number in these lists, or -1
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
      if (targets_[b * boxes_ + n].present) all.push_back(n);
    }
    for (size_t i = 0; i < contenders.size(); ++i) {
      const std::vector<int64_t>& rivals = settings_.own_candidates ? contenders[i] : all;
      first[place_of[i]] = static_cast<int32_t>(winner(b, c, place_of[i], rivals));
    }
    int64_t positives = 0;
    for (int64_t place = 0; place < counts_[b]; ++place) {
      if (first[place] < 0) continue;
      ++positives;
      const int64_t a = ids_[b * cells_ + place];
      index[a] = first[place];
      iou[a] = pair_iou(targets_[b * boxes_ + first[place]], c, place);
    }
    return positives;
  }

 private:
  Columns columns(int64_t b) { return {columns_ + b * Columns::kCount * cells_, cells_}; }

  // How many cells a box picks: the truncated sum of the highest IoUs at cells that have all bits of `allowed`.
  int64_t how_many(const float* iou, const uint8_t* flags, uint8_t allowed, int64_t count) const {
    TopK<std::greater<float>> highest(settings_.topk);
    thread_local std::vector<float> tops;
    tops.resize((count + kSkip - 1) / kSkip);
    highest_of_runs(iou, count, tops.data());
    for (size_t run = 0; run < tops.size(); ++run) {
      if (!(tops[run] > 0) || !highest.takes(tops[run])) continue;
      const int64_t first = static_cast<int64_t>(run) * kSkip;
      for (int64_t i = first; i < std::min(count, first + kSkip); ++i) {
        if (highest.takes(iou[i]) && iou[i] > 0 && (flags[i] & allowed) == allowed) highest.offer(iou[i], i);
      }
    }
    float sum = 0;
    for (int64_t i = 0; i < highest.size(); ++i) sum += highest.keys()[i];
    const double k = settings_.k_scale * static_cast<double>(sum);
    return std::clamp<int64_t>(static_cast<int64_t>(k), 1, settings_.most);
  }

  // Writes the `k` cheapest places whose flags, masked, are `wanted`; returns how many there are.
  int64_t cheapest(int64_t b, int64_t label, const Columns& c, const uint8_t* flags, uint8_t mask, uint8_t wanted,
                   const float* iou, int64_t count, int64_t k, int32_t* picked, float* scratch) {
    float *logits = scratch, *objectness = scratch + cells_, *total = objectness + cells_, *overlap = total + cells_;
    float* cost = overlap + cells_;
    thread_local std::vector<int32_t> place;
    place.clear();
    for (int64_t i = 0; i < count; ++i) {
      if (i % kFlags == 0 && i + kFlags <= count && none_of(flags + i, mask, wanted)) {
        i += kFlags - 1;
        continue;
      }
      if ((flags[i] & mask) != wanted) continue;
      const size_t j = place.size();
      logits[j] = logits_.at(b, ids_[b * cells_ + i], label);
      objectness[j] = c.objectness[i], total[j] = c.total[i], overlap[j] = iou[i];
      place.push_back(static_cast<int32_t>(i));
    }
    const int64_t size = static_cast<int64_t>(place.size());
    cost_row(logits, objectness, total, overlap, settings_.iou_weight, settings_.class_weight, size, cost);
    TopK<> lowest(k);
    for (int64_t i = 0; i < size; ++i) lowest.offer(cost[i], place[i]);
    std::copy(lowest.indices(), lowest.indices() + lowest.size(), picked);
    return lowest.size();
  }

  // The box among `boxes` that is cheapest at a place. The sum over all classes there is the same for each of them.
  int64_t winner(int64_t b, const Columns& c, int64_t place, const std::vector<int64_t>& boxes) {
    const float x = c.x[place], y = c.y[place], side = c.side[place];
    const size_t size = boxes.size();
    std::vector<float> logits(size), objectness(size, c.objectness[place]), total(size, 0.0f), iou(size), cost(size);
    std::vector<uint8_t> best(size);
    for (size_t i = 0; i < size; ++i) {
      const Target& target = targets_[b * boxes_ + boxes[i]];
      region_row(target, &x, &y, &side, settings_.radius, settings_.center_only, 1, &best[i]);
      logits[i] = logits_.at(b, ids_[b * cells_ + place], target.label);
      iou[i] = pair_iou(target, c, place);
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

  int64_t batch_, cells_, boxes_;
  Settings settings_;
  const ClassLogits& logits_;
  const Predictions& predictions_;
  Reader cell_;
  std::vector<Target> targets_;
  std::vector<int64_t> counts_;  // how many candidates each image has
  Tensor memory_[3];             // allocated by PyTorch, so that its profiler sees it
  float* columns_;
  int32_t* ids_;    // the candidates of each image
  int32_t* picks_;  // for each box: places among the candidates, then -1
};

std::tuple<Tensor, Tensor, Tensor> simota_match(const std::vector<Tensor> outputs,
                                                const std::optional<Tensor> objectness,
                                                const std::optional<Tensor> pred_boxes, const Tensor cells,
                                                const Tensor gt_boxes, const Tensor gt_labels,
                                                const std::optional<Tensor> sample_sizes, double radius,
                                                bool center_only, bool own_candidates, int64_t topk, double k_scale,
                                                double iou_weight, double class_weight, bool cxcywh) {
  STD_TORCH_CHECK(!outputs.empty() && outputs[0].dim() == 3, "outputs: expected levels of shape (B, A_l, columns)");
  const int64_t batch = outputs[0].size(0), columns = outputs[0].size(2);
  STD_TORCH_CHECK(pred_boxes || columns >= kBoxColumns, "outputs: expected at least 5 columns");
  int64_t count = 0;
  for (const Tensor& level : outputs) {
    STD_TORCH_CHECK(has_numbers(level, {batch, -1, columns}),
                    "outputs: expected levels, numbers of shape (B, A_l, columns)");
    count += level.size(1);
  }
  STD_TORCH_CHECK(has_numbers(cells, {count, 3}), "cells: expected numbers of shape (A, 3)");
  STD_TORCH_CHECK(objectness.has_value() == pred_boxes.has_value(), "objectness: expected just if pred_boxes is given");
  STD_TORCH_CHECK(!objectness || has_numbers(*objectness, {batch, count}),
                  "objectness: expected numbers of shape (B, A)");
  STD_TORCH_CHECK(!pred_boxes || has_numbers(*pred_boxes, {batch, count, 4}),
                  "pred_boxes: expected numbers of shape (B, A, 4)");
  STD_TORCH_CHECK(has_numbers(gt_boxes, {batch, -1, 4}), "gt_boxes: expected numbers of shape (B, N, 4)");
  check_labels(gt_labels, sample_sizes, batch, gt_boxes.size(1), "gt_labels");
  STD_TORCH_CHECK(topk >= 1 && topk <= kMostTop, "topk: expected 1 .. 1000");
  STD_TORCH_CHECK(k_scale >= 0 && k_scale <= kMostTop, "k_scale: expected 0 .. 1000");

  Tensor index = torch::stable::new_empty(outputs[0], {batch, count}, ScalarType::Long);
  Tensor iou = torch::stable::new_empty(outputs[0], {batch, count}, ScalarType::Float);
  Tensor positives = torch::stable::new_empty(outputs[0], {}, ScalarType::Long);
  int64_t& total = *static_cast<int64_t*>(positives.mutable_data_ptr());
  total = 0;
  if (batch == 0 || count == 0) return {index, iou, positives};
  Settings settings{static_cast<float>(radius),
                    center_only,
                    own_candidates,
                    topk,
                    k_scale,
                    static_cast<float>(iou_weight),
                    static_cast<float>(class_weight),
                    0};
  settings.most = std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(topk) * k_scale), 1, count);
  const Predictions predictions(outputs, objectness, pred_boxes);
  Match match(predictions, cells, gt_boxes, cxcywh, gt_labels, sample_sizes, settings);
  const int64_t boxes = gt_boxes.size(1);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.candidates(b);
  });
  torch::stable::parallel_for(0, batch * count, 256,
                              [&](int64_t begin, int64_t end) { match.class_costs(begin, end); });
  torch::stable::parallel_for(0, batch * boxes, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    std::vector<uint8_t> flags;
    for (int64_t i = begin; i < end; ++i) match.pick(i / boxes, i % boxes, scratch, flags);
  });
  int64_t* index_data = static_cast<int64_t*>(index.mutable_data_ptr());
  float* iou_data = static_cast<float*>(iou.mutable_data_ptr());
  std::vector<int64_t> found(batch);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) found[b] = match.resolve(b, index_data + b * count, iou_data + b * count);
  });
  for (int64_t n : found) total += n;
  return {index, iou, positives};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("simota_match", TORCH_BOX(&detops::simota_match)); }
