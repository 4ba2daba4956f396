// Ground-truth boxes, read as centre and size whichever way they are given.
#pragma once

#include "boxes.h"

namespace detops {

class GivenBoxes {
 public:
  // Boxes (B, N, 4), as centre and size or as corners.
  GivenBoxes(const Tensor& boxes, bool cxcywh) : reader_(boxes), cxcywh_(cxcywh) {}

  // Centre and size of box n of image b, in place of its corners.
  template <class T>
  Box<T> at(int64_t b, int64_t n) const {
    const Box<T> box = read_box<T>(reader_, b, n);
    if (cxcywh_) return box;
    return {(box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, box.x2 - box.x1, box.y2 - box.y1};
  }

 private:
  Reader reader_;
  bool cxcywh_;
};

}  // namespace detops
