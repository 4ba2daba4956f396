// The highest local maxima of a heatmap and the box at each: the CPU kernel of decode_peaks.
//
// Nearly all logits are below the lowest that counts, and one comparison of a run of them says so. Only those that are
// not are compared with the cells around them, and become keys.
#include "common.h"
#include "top_keys.h"

#include <limits>
#include <tuple>

namespace detops {
namespace {

constexpr int64_t kRun = 256;       // logits that are compared together
constexpr int64_t kTask = 1 << 16;  // logits of a task
constexpr size_t kSpare = 256;      // keys beyond those wanted, before the rest is dropped

// An image's maps in memory: how far apart two classes, rows and columns lie.
struct Maps {
  int64_t classes, height, width;
  int64_t by_class, by_row, by_column;

  int64_t size() const { return classes * height * width; }
};

struct Cell {
  int64_t label, y, x;
};

inline Cell cell_at(const Maps& maps, int64_t place) {
  return {place / maps.by_class % maps.classes, place / maps.by_row % maps.height, place / maps.by_column % maps.width};
}

// Whether no cell within `reach` is higher, or NaN.
template <class T>
bool is_peak(const T* at, const Maps& maps, const Cell& cell, int64_t reach) {
  const float x = static_cast<float>(*at);
  const int64_t top = std::max(-reach, -cell.y), bottom = std::min(reach, maps.height - 1 - cell.y);
  const int64_t left = std::max(-reach, -cell.x), right = std::min(reach, maps.width - 1 - cell.x);
  for (int64_t dy = top; dy <= bottom; ++dy) {
    for (int64_t dx = left; dx <= right; ++dx) {
      if (!(x >= static_cast<float>(at[dy * maps.by_row + dx * maps.by_column]))) return false;
    }
  }
  return true;
}

#define DETOPS_ANY(T) \
  DETOPS_CLONES bool reaches(const T* x, int64_t count, float least) { return any_from(x, count, least); }
DETOPS_ANY(float)
DETOPS_ANY(Half)
DETOPS_ANY(BFloat16)
DETOPS_ANY(double)

// Finds the `count` highest peaks among logits begin .. end - 1 of an image, in memory order.
template <class T>
void search(const T* image, const Maps& maps, int64_t begin, int64_t end, int64_t reach, size_t count,
            std::vector<uint64_t>& keys) {
  float least = std::numeric_limits<float>::lowest();  // minus infinity is no peak
  for (int64_t start = begin; start < end; start += kRun) {
    const int64_t stop = std::min(end, start + kRun);
    if (!reaches(image + start, stop - start, least)) continue;
    for (int64_t i = start; i < stop; ++i) {
      const float x = static_cast<float>(image[i]);
      if (!(x >= least)) continue;
      const Cell cell = cell_at(maps, i);
      if (!is_peak(image + i, maps, cell, reach)) continue;
      keys.push_back(key_of(x, (cell.label * maps.height + cell.y) * maps.width + cell.x));
    }
    if (keys.size() < count + kSpare) continue;
    prune(keys, count);
    least = std::max(least, lowest(keys));
  }
  prune(keys, count);
}

std::tuple<Tensor, Tensor, Tensor> decode_peaks(const Tensor logits, const Tensor wh, const Tensor offset,
                                                int64_t kernel, double scale_x, double scale_y, int64_t count) {
  STD_TORCH_CHECK(logits.dim() == 4 && is_floating(logits.scalar_type()),
                  "logits: expected floating-point numbers of shape (B, C, H, W)");
  STD_TORCH_CHECK(is_dense(logits), "logits: expected a tensor that is contiguous or channels last");
  const int64_t batch = logits.size(0);
  Maps maps{logits.size(1), logits.size(2), logits.size(3), logits.size(2) * logits.size(3), logits.size(3), 1};
  STD_TORCH_CHECK(maps.size() < (int64_t(1) << 32), "logits: expected fewer than 2^32 of an image");
  STD_TORCH_CHECK(has_numbers(wh, {batch, 2, maps.height, maps.width}), "wh: expected numbers of shape (B, 2, H, W)");
  STD_TORCH_CHECK(has_numbers(offset, {batch, 2, maps.height, maps.width}),
                  "offset: expected numbers of shape (B, 2, H, W)");
  STD_TORCH_CHECK(kernel > 0 && kernel % 2 == 1, "kernel: expected an odd number of at least 1");
  STD_TORCH_CHECK(count > 0, "count: expected at least 1");
  if (!logits.is_contiguous()) {
    maps.by_class = 1, maps.by_row = maps.width * maps.classes, maps.by_column = maps.classes;
  }
  const int64_t size = maps.size(), tasks = (size + kTask - 1) / kTask, places = std::min(count, size);
  Tensor boxes = torch::stable::new_empty(logits, {batch, places, 4}, ScalarType::Float);
  Tensor labels = torch::stable::new_empty(logits, {batch, places}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(logits, {batch, places}, ScalarType::Float);
  if (batch * places == 0) return {boxes, labels, values};

  std::vector<std::vector<uint64_t>> found(batch * tasks);
  torch::stable::parallel_for(0, batch * tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % tasks * kTask, end = std::min(size, begin + kTask);
      const auto run = [&](auto* data) {
        search(data + i / tasks * size, maps, begin, end, kernel / 2, static_cast<size_t>(places), found[i]);
      };
      const void* data = logits.const_data_ptr();
      switch (logits.scalar_type()) {
        case ScalarType::Float: run(static_cast<const float*>(data)); break;
        case ScalarType::Half: run(static_cast<const Half*>(data)); break;
        case ScalarType::BFloat16: run(static_cast<const BFloat16*>(data)); break;
        default: run(static_cast<const double*>(data));
      }
    }
  });

  const Reader sizes(wh), shifts(offset);
  const float by_x = static_cast<float>(scale_x), by_y = static_cast<float>(scale_y);
  float* box = static_cast<float*>(boxes.mutable_data_ptr());
  int64_t* label = static_cast<int64_t*>(labels.mutable_data_ptr());
  float* value = static_cast<float*>(values.mutable_data_ptr());
  std::fill(box, box + batch * places * 4, 0.0f);
  std::fill(label, label + batch * places, -1);
  std::fill(value, value + batch * places, std::numeric_limits<float>::quiet_NaN());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
    std::vector<uint64_t> all;
    for (int64_t b = first; b < last; ++b) {
      all.clear();
      for (int64_t i = b * tasks; i < (b + 1) * tasks; ++i) all.insert(all.end(), found[i].begin(), found[i].end());
      prune(all, static_cast<size_t>(places));
      std::sort(all.begin(), all.end(), std::greater<uint64_t>());
      for (size_t n = 0; n < all.size(); ++n) {
        const int64_t index = index_of(all[n]), k = b * places + static_cast<int64_t>(n);
        const int64_t column = index % maps.width, row = index / maps.width % maps.height;
        const auto read = [&](const Reader& map, int64_t i) { return static_cast<float>(map.at(b, i, row, column)); };
        const float x = static_cast<float>(column) + read(shifts, 0), y = static_cast<float>(row) + read(shifts, 1);
        const float half_w = read(sizes, 0) / 2, half_h = read(sizes, 1) / 2;
        box[4 * k] = (x - half_w) * by_x, box[4 * k + 1] = (y - half_h) * by_y;
        box[4 * k + 2] = (x + half_w) * by_x, box[4 * k + 3] = (y + half_h) * by_y;
        label[k] = index / (maps.height * maps.width), value[k] = number_of(all[n]);
      }
    }
  });
  return {boxes, labels, values};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("decode_peaks", TORCH_BOX(&detops::decode_peaks)); }
