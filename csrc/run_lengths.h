// COCO's run lengths: written from the positions at which a mask changes, and read again as runs of ones.
#pragma once

#include "common.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

namespace detops {

// Takes the positions at which a mask changes, in order, and keeps its run lengths: as COCO's compressed string or as
// int32.
class Runs {
 public:
  explicit Runs(bool compress) : compress_(compress) {}

  void change(int64_t position) {
    const int64_t run = position - last_;
    last_ = position;
    if (compress_) {
      put(count_ > 2 ? run - before_[count_ & 1] : run);  // from the fourth on, minus the last run of its kind
      before_[count_ & 1] = run;
    } else {
      const int32_t value = static_cast<int32_t>(run);
      const size_t end = bytes.size();
      bytes.resize(end + sizeof(value));
      std::memcpy(bytes.data() + end, &value, sizeof(value));
    }
    ++count_;
  }

  std::vector<uint8_t> bytes;

 private:
  // Groups of five bits, the lowest first; the fifth is the sign if no group follows, and a sixth bit is set if one
  // does.
  void put(int64_t value) {
    for (bool more = true; more;) {
      uint8_t group = value & 31;
      value >>= 5;
      more = value != ((group & 16) ? -1 : 0);
      bytes.push_back(48 + (group | (more ? 32 : 0)));
    }
  }

  bool compress_;
  int64_t last_ = 0, count_ = 0, before_[2] = {0, 0};
};

// Traces `count` masks by trace(n, runs), divided among torch's threads, and joins their runs: those of all masks, and
// where those of each begin. `like` is a tensor of the same device.
template <class Trace>
std::tuple<Tensor, Tensor> traced(const Tensor& like, int64_t count, bool compress, const Trace& trace) {
  std::vector<Runs> runs(count, Runs(compress));
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) trace(n, runs[n]);
  });
  Tensor offsets = torch::stable::new_empty(like, {count + 1}, ScalarType::Long);
  int64_t* offset = static_cast<int64_t*>(offsets.mutable_data_ptr());
  const int64_t item = compress ? 1 : sizeof(int32_t);
  offset[0] = 0;
  for (int64_t n = 0; n < count; ++n) offset[n + 1] = offset[n] + static_cast<int64_t>(runs[n].bytes.size()) / item;
  Tensor counts = torch::stable::new_empty(like, {offset[count]}, compress ? ScalarType::Byte : ScalarType::Int);
  char* out = static_cast<char*>(counts.mutable_data_ptr());
  for (int64_t n = 0; n < count; ++n) {
    if (!runs[n].bytes.empty()) std::memcpy(out + offset[n] * item, runs[n].bytes.data(), runs[n].bytes.size());
  }
  return {counts, offsets};
}

// Uncompressed run lengths of several masks, joined.
class RunLengths {
 public:
  RunLengths(const Tensor& counts, const Tensor& offsets)
      : counts_(static_cast<const int32_t*>(counts.const_data_ptr())),
        offsets_(static_cast<const int64_t*>(offsets.const_data_ptr())), count(offsets.size(0) - 1) {}

  static void check(const char* name, const Tensor& counts, const Tensor& offsets) {
    STD_TORCH_CHECK(counts.dim() == 1 && counts.scalar_type() == ScalarType::Int && counts.is_contiguous(), name,
                    "counts: expected contiguous int32 of shape (T,)");
    STD_TORCH_CHECK(offsets.dim() == 1 && offsets.scalar_type() == ScalarType::Long && offsets.is_contiguous() &&
                        offsets.size(0) > 0,
                    name, "offsets: expected contiguous int64 of shape (N + 1,)");
    const int64_t* offset = static_cast<const int64_t*>(offsets.const_data_ptr());
    int64_t last = 0;
    for (int64_t n = 0; n < offsets.size(0); ++n) {
      STD_TORCH_CHECK(offset[n] >= last && offset[n] <= counts.size(0), name,
                      "offsets: expected ascending places in counts");
      last = offset[n];
    }
  }

  const int32_t* begin(int64_t n) const { return counts_ + offsets_[n]; }
  const int32_t* end(int64_t n) const { return counts_ + offsets_[n + 1]; }

  // Calls run(first, end) for each run of ones of mask n, in order; cut to the image, whatever the counts are.
  template <class Run>
  void each(int64_t n, int64_t pixels, const Run& run) const {
    int64_t position = 0;
    bool one = false;
    for (const int32_t* c = begin(n); c < end(n); ++c, one = !one) {
      const int64_t next = std::min(position + std::max<int64_t>(*c, 0), pixels);
      if (one && position < next) run(position, next);
      position = next;
    }
  }

 private:
  const int32_t* counts_;
  const int64_t* offsets_;

 public:
  const int64_t count;
};

// Number of ones of a mask, and the smallest box that holds them: the far edges are exclusive, and it is 0 where there
// are none.
struct Measures {
  int64_t area = 0, x1 = 0, y1 = 0, x2 = 0, y2 = 0;

  Measures() = default;
  Measures(const RunLengths& masks, int64_t n, int64_t height, int64_t pixels) {
    int64_t column = 0, top = 0;  // of a run, and the position of the column's first pixel: followed, not divided
    masks.each(n, pixels, [&](int64_t first, int64_t end) {
      for (; first - top >= height; ++column) top += height;
      if (area == 0) x1 = column, y1 = height;
      y1 = std::min(y1, end - top > height ? 0 : first - top);
      y2 = std::max(y2, std::min(end - top, height));
      for (; end - top > height; ++column) top += height;
      x2 = column + 1;
      area += end - first;
    });
  }
};

}  // namespace detops
