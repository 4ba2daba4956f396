// SimOTA for a batch: the CPU kernel of simota_match.
//
// Four steps, each divided among torch's threads: which cells are candidates (by image), the class costs there (by
// run of cells), which cells each box picks (by box), and which box keeps a cell that several picked (by image).
// Memory grows with images x cells and with the picks, never with boxes x cells. A box looks at the runs of cells whose
// hulls it meets, and at others only as long as their cells may be among the cheapest.
#include "simota_candidates.h"
#include "simota_cost.h"
#include "simota_predictions.h"
#include "top_k.h"
#include "top_keys.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kMostTop = 1000;

struct Settings {
  Region region;
  bool own_candidates;
  int64_t topk;
  double k_scale;
  Weights weights;
  int64_t most;  // picks of one box, at most
};

class Match {
 public:
  Match(const Predictions& predictions, const Tensor& cells, const Tensor& gt_boxes, bool cxcywh,
        const Tensor& gt_labels, const std::optional<Tensor>& sizes, const Settings& settings)
      : batch_(gt_boxes.size(0)), cells_(cells.size(0)), runs_(runs_of(cells_)), boxes_(gt_boxes.size(1)),
        settings_(settings), logits_(predictions.logits), predictions_(predictions),
        targets_(read_targets(GivenBoxes(gt_boxes, cxcywh), Labels(gt_labels, sizes, boxes_), batch_, boxes_,
                              logits_.classes)),
        counts_(batch_), numbers_(CellColumns::numbers(runs_), std::numeric_limits<float>::quiet_NaN()),
        cell_(numbers_.data(), runs_),
        memory_{torch::stable::new_empty(cells, {batch_, Columns::numbers(runs_)}, ScalarType::Float),
                torch::stable::new_empty(cells, {batch_, cells_}, ScalarType::Int),
                torch::stable::new_empty(cells, {batch_, boxes_, settings.most}, ScalarType::Int)},
        columns_(static_cast<float*>(memory_[0].mutable_data_ptr())),
        ids_(static_cast<int32_t*>(memory_[1].mutable_data_ptr())),
        picks_(static_cast<int32_t*>(memory_[2].mutable_data_ptr())) {
    std::fill(picks_, picks_ + batch_ * boxes_ * settings.most, -1);
    const Reader cell(cells);
    for (int64_t a = 0; a < cells_; ++a) {
      cell_.x[a] = static_cast<float>(cell.at(a, 0));
      cell_.y[a] = static_cast<float>(cell.at(a, 1));
      cell_.side[a] = static_cast<float>(cell.at(a, 2));
    }
    cell_.set_hulls(settings.region.radius, runs_);
  }

  int64_t runs() const { return runs_; }

  // Finds the candidates of an image, and which of its boxes have own candidates.
  void candidates(int64_t b) {
    std::vector<uint8_t> any(runs_ * kRun, 0), flags(runs_ * kRun);
    Runs near(runs_);
    for (int64_t n = 0; n < boxes_; ++n) {
      Target& target = targets_[b * boxes_ + n];
      if (!target.present) continue;
      region(target, cell_, runs_, near, flags.data());
      uint8_t own = 0;
      for (const int32_t r : near) {
        for (int64_t a = r * kRun; a < (r + 1) * kRun; ++a) {
          own |= flags[a];
          any[a] |= flags[a];
        }
      }
      target.present = (own & kOwn) != 0;
    }
    const Columns c = columns(b);
    int64_t count = 0;
    for (int64_t a = 0; a < cells_; ++a) {
      if (any[a] == 0) continue;
      const float x = cell_.x[a], y = cell_.y[a], side = cell_.side[a];
      const auto [cx, cy, w, h] = predictions_.box(b, a, x, y, side);
      c.set(count, x, y, side, cx, cy, w, h, predictions_.objectness(b, a));
      ids_[b * cells_ + count++] = static_cast<int32_t>(a);
    }
    counts_[b] = count;
    const int64_t runs = runs_of(count);
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = count; i < runs * kRun; ++i) c.set(i, kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone);
    c.cell.set_hulls(settings_.region.radius, runs);
    c.hulls.set(c.x1, c.y1, c.x2, c.y2, runs);
  }

  // Computes the class cost, if no class is the label, at the candidates in a range of images x runs.
  void class_costs(int64_t begin, int64_t end) {
    const int64_t classes = logits_.classes, padded = (classes + kWide - 1) / kWide * kWide;
    std::vector<float> row(padded, -1e4f);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / runs_, first = i % runs_ * kRun, last = std::min(counts_[b], first + kRun);
      if (first >= last) {
        i = std::min(end, (b + 1) * runs_) - 1;
        continue;
      }
      const Columns c = columns(b);
      for (int64_t place = first; place < last; ++place) {
        logits_.read(b, ids_[b * cells_ + place], row.data());
        const float o = c.objectness[place];
        c.total[place] = static_cast<float>(o <= 30.0f ? all_classes(row.data(), padded, o)
                                                       : all_classes_confident(row.data(), classes, o));
      }
      if (settings_.own_candidates) continue;  // then no box looks beyond its own
      c.least[i % runs_] = least_cost(&c.objectness[first], &c.total[first], last - first, settings_.weights);
    }
  }

  // Finds the cells that one box picks.
  void pick(int64_t b, int64_t n, Search& search) {
    const Target& target = targets_[b * boxes_ + n];
    if (!target.present) return;
    const Columns c = columns(b);
    const int64_t runs = runs_of(counts_[b]);
    region(target, c.cell, runs, search.near, search.flags.data());
    mark_intersecting(target.box, c.hulls, runs, search.met.marks.data());
    if (settings_.own_candidates) {
      for (int64_t r = 0; r < runs; ++r) search.met.marks[r] &= search.near.marks[r];
    }
    search.met.list(runs);
    const int32_t* met = search.met.begin();
    iou_runs(target, c, met, search.met.size, search.iou.data());
    if (settings_.own_candidates) keep_own(search.flags.data(), met, search.met.size, search.iou.data());
    const int64_t k = how_many(search);
    int32_t* picked = &picks_[(b * boxes_ + n) * settings_.most];
    TopKeys best(k);
    gather(b, target.label, search.near.begin(), search.near.end(), kBest, kBest, search);
    offer(search, best);
    const int64_t found = best.write(picked);
    if (found < k) {
      TopKeys others(k - found);
      if (settings_.own_candidates) {
        gather(b, target.label, search.near.begin(), search.near.end(), kBest | kOwn, kOwn, search);
        offer(search, others);
      } else {
        offer_all(b, target.label, runs, search, others);
      }
      others.write(picked + found);
    }
    search.clear();
  }

  // Decides which box keeps each cell of an image; returns how many cells have a box.
  int64_t resolve(int64_t b, int64_t* index, float* iou) {
    std::fill(index, index + cells_, -1);
    std::fill(iou, iou + cells_, 0.0f);
    const Columns c = columns(b);
    std::vector<int32_t> first(counts_[b], -1);
    std::vector<std::vector<int32_t>> contenders;  // the boxes of each cell that several picked
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
        contenders[contest[place]].push_back(static_cast<int32_t>(n));
      }
    }
    settle(b, place_of, contenders, first);
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
  Columns columns(int64_t b) { return {columns_ + b * Columns::numbers(runs_), runs_}; }

  // Lists the runs that may hold own candidates of a box, and sets the flags of their cells.
  void region(const Target& target, const CellColumns& c, int64_t runs, Runs& near, uint8_t* flags) const {
    mark_region(target, c, settings_.region.center_only, runs, near.marks.data());
    near.list(runs);
    region_runs(target, c, settings_.region, near.begin(), near.size, flags);
  }

  // How many cells a box picks: the truncated sum of the highest IoUs.
  int64_t how_many(Search& search) const {
    const float* iou = search.iou.data();
    const int32_t* met = search.met.begin();
    const int64_t size = search.met.size;
    const float least =
        std::max(bound_of_top(iou, met, size, settings_.topk), std::numeric_limits<float>::denorm_min());
    mark_from(iou, met, size, least, search.top.marks.data());
    search.top.list(size);
    TopK<std::greater<float>> highest(settings_.topk);
    for (const int32_t j : search.top) {
      for (int64_t i = met[j] * kRun; i < (met[j] + 1) * kRun; ++i) {
        if (iou[i] >= least) highest.offer(iou[i], i);
      }
    }
    float sum = 0;
    for (int64_t i = 0; i < highest.size(); ++i) sum += highest.keys()[i];
    const double k = settings_.k_scale * static_cast<double>(sum);
    return std::clamp<int64_t>(static_cast<int64_t>(k), 1, settings_.most);
  }

  // Adds the candidates of some runs whose flags, masked, are `wanted` to those whose costs are looked at.
  void gather(int64_t b, int64_t label, const int32_t* begin, const int32_t* end, int32_t mask, int32_t wanted,
              Search& search) {
    const Columns c = columns(b);
    const int64_t before = search.size;
    int32_t* place = search.place.data();
    for (const int32_t* r = begin; r != end; ++r) {
      if (wanted != 0 && none_of(&search.flags[*r * kRun], wanted)) continue;
      for (int64_t i = *r * kRun; i < std::min(counts_[b], (*r + 1) * kRun); ++i) {
        place[search.size] = static_cast<int32_t>(i);  // kept if the size grows
        search.size += (search.flags[i] & mask) == wanted;
      }
    }
    for (int64_t j = before; j < search.size; ++j) {
      const int64_t i = place[j];
      search.logits[j] = logits_.at(b, ids_[b * cells_ + i], label);
      search.objectness[j] = c.objectness[i], search.total[j] = c.total[i], search.overlap[j] = search.iou[i];
    }
  }

  // Offers what was gathered.
  void offer(Search& search, TopKeys& cheapest) const {
    cost_row(search.logits.data(), search.objectness.data(), search.total.data(), search.overlap.data(),
             settings_.weights, search.size, search.cost.data());
    for (int64_t i = 0; i < search.size; ++i) cheapest.offer(key_of(-search.cost[i], search.place[i]));
    search.size = 0;
  }

  // Offers all candidates that are not the best, as far as they may be among the cheapest: first those near the box.
  void offer_all(int64_t b, int64_t label, int64_t runs, Search& search, TopKeys& cheapest) {
    const Columns c = columns(b);
    const auto offer_run = [&](int32_t r, float iou_cost) {
      if (cheapest.full() && c.least[r] + iou_cost > -number_of(cheapest.lowest())) return;
      gather(b, label, &r, &r + 1, kBest, 0, search);
      offer(search, cheapest);
    };
    for (const int32_t r : search.met) {
      offer_run(r, iou_cost(highest_of_run(search.iou.data(), r), settings_.weights));
    }
    const float apart = iou_cost(0, settings_.weights);
    for (int32_t r = 0; r < runs; ++r) {
      if (search.met.marks[r] == 0) offer_run(r, apart);
    }
  }

  // Gives each contested place of an image to a box: to the cheapest of those for which it is among the best, if there
  // are such, or else of all that may have it.
  void settle(int64_t b, const std::vector<int64_t>& places, const std::vector<std::vector<int32_t>>& contenders,
              std::vector<int32_t>& first) {
    if (places.empty()) return;
    const Target* targets = &targets_[b * boxes_];
    const TargetColumns as_columns(targets, boxes_);
    std::vector<uint8_t> marks(boxes_);
    std::vector<int32_t> all(boxes_), rivals(boxes_);
    for (int64_t n = 0; n < boxes_; ++n) marks[n] = targets[n].present;
    all.resize(list_marked(marks.data(), boxes_, all.data()));
    const Columns c = columns(b);
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t place = places[i];
      mark_best(as_columns, boxes_, c.cell.x[place], c.cell.y[place], c.cell.side[place], settings_.region,
                marks.data());
      rivals.clear();
      for (const int32_t n : settings_.own_candidates ? contenders[i] : all) {
        if (marks[n] != 0) rivals.push_back(n);
      }
      if (rivals.empty()) rivals = settings_.own_candidates ? contenders[i] : all;
      first[place] = cheapest(b, targets, c, place, rivals);
    }
  }

  // The box that is cheapest at a place. The sum over all classes there is the same for each of them.
  int32_t cheapest(int64_t b, const Target* targets, const Columns& c, int64_t place,
                   const std::vector<int32_t>& boxes) const {
    const size_t size = boxes.size();
    std::vector<float> logits(size), objectness(size, c.objectness[place]), total(size, 0.0f), iou(size), cost(size);
    for (size_t i = 0; i < size; ++i) {
      const Target& target = targets[boxes[i]];
      logits[i] = logits_.at(b, ids_[b * cells_ + place], target.label);
      iou[i] = pair_iou(target, c, place);
    }
    cost_row(logits.data(), objectness.data(), total.data(), iou.data(), settings_.weights, static_cast<int64_t>(size),
             cost.data());
    return boxes[std::min_element(cost.begin(), cost.end()) - cost.begin()];
  }

  int64_t batch_, cells_, runs_, boxes_;
  Settings settings_;
  const ClassLogits& logits_;
  const Predictions& predictions_;
  std::vector<Target> targets_;
  std::vector<int64_t> counts_;  // how many candidates each image has
  std::vector<float> numbers_;
  CellColumns cell_;
  Tensor memory_[3];  // allocated by PyTorch, so that its profiler sees it
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
  Settings settings{{static_cast<float>(radius), center_only},
                    own_candidates,
                    topk,
                    k_scale,
                    {static_cast<float>(iou_weight), static_cast<float>(class_weight)},
                    0};
  settings.most = std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(topk) * k_scale), 1, count);
  const Predictions predictions(outputs, objectness, pred_boxes);
  Match match(predictions, cells, gt_boxes, cxcywh, gt_labels, sample_sizes, settings);
  const int64_t boxes = gt_boxes.size(1);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) match.candidates(b);
  });
  torch::stable::parallel_for(0, batch * match.runs(), 16,
                              [&](int64_t begin, int64_t end) { match.class_costs(begin, end); });
  torch::stable::parallel_for(0, batch * boxes, 4, [&](int64_t begin, int64_t end) {
    Search search(match.runs());
    for (int64_t i = begin; i < end; ++i) match.pick(i / boxes, i % boxes, search);
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
