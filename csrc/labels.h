// Which rows of a padded batch are boxes, and of which class.
#pragma once

#include "common.h"

#include <algorithm>

namespace detops {

inline void check_labels(const std::optional<Tensor>& labels, const std::optional<Tensor>& sizes, int64_t batch,
                         int64_t count, const char* name) {
  STD_TORCH_CHECK(!labels || has_numbers(*labels, {batch, count}), name, ": expected numbers of shape (B, N)");
  STD_TORCH_CHECK(!sizes || has_numbers(*sizes, {batch}), "sample_sizes: expected numbers of shape (B,)");
}

// Labels (B, N), or none if there is only one class; and how many of its N rows each image uses (B,), or none for all.
class Labels {
 public:
  Labels(const std::optional<Tensor>& labels, const std::optional<Tensor>& sizes, int64_t count)
      : labels_(reader_of(labels)), sizes_(reader_of(sizes)), count_(count) {}

  // How many rows image b uses; the others are padding. Row n is used if n < size, where size may have a fraction.
  int64_t rows(int64_t b) const {
    if (!sizes_) return count_;
    const double size = sizes_->at(b);
    return size > 0 ? static_cast<int64_t>(std::ceil(std::min(size, static_cast<double>(count_)))) : 0;
  }

  // The class of a row, or -1 if its label is not in 0 .. classes - 1: the box is then skipped.
  int64_t at(int64_t b, int64_t n, int64_t classes) const {
    const double label = labels_ ? labels_->at(b, n) : 0.0;
    return label >= 0 && label < static_cast<double>(classes) ? static_cast<int64_t>(label) : -1;
  }

 private:
  std::optional<Reader> labels_, sizes_;
  int64_t count_;
};

}  // namespace detops
