// What a network predicts at each cell, wherever its numbers lie.
#pragma once

#include "boxes.h"
#include "class_logits.h"

#include <vector>

namespace detops {

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

}  // namespace detops
