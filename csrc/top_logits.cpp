// Each level's highest class logits: the CPU kernel of top_logits.
//
// Nearly all logits are below the lowest that counts, and one comparison of a run of them says so. The others become
// keys.
#include "common.h"
#include "top_keys.h"

#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kRun = 256;        // logits that are compared together
constexpr int64_t kTask = 1 << 16;   // logits of a task
constexpr int64_t kSpare = 1 << 12;  // keys beyond those wanted, before the rest is dropped

struct Level {
  const void* data;
  int64_t classes, points, start;  // its first point
  bool by_point;                   // classes lie together
};

struct Task {
  size_t level;
  int64_t b, begin, end;  // of the image's logits, in memory order
};

struct Search {
  float least;
  size_t count;
};

template <class T>
inline void search_run(const T* data, const Task& task, const Level& level, const Search& search,
                       std::vector<uint64_t>& keys) {
  float least = search.least;
  for (int64_t begin = task.begin; begin < task.end; begin += kRun) {
    const int64_t end = std::min(task.end, begin + kRun);
    if (!any_from(data + begin, end - begin, least)) continue;
    // In memory order either the index goes up by one, or points follow one another and then comes the next class.
    int64_t point = level.by_point ? 0 : begin % level.points;
    int64_t index =
        level.start * level.classes + (level.by_point ? begin : begin / level.points + point * level.classes);
    for (int64_t i = begin; i < end; ++i) {
      const float x = static_cast<float>(data[i]);
      if (x >= least) keys.push_back(key_of(x, index));
      index += level.by_point ? 1 : level.classes;
      if (!level.by_point && ++point == level.points) point = 0, index -= level.points * level.classes - 1;
    }
    if (keys.size() < search.count + kSpare) continue;
    prune(keys, search.count);
    least = std::max(least, lowest(keys));
  }
}

#define DETOPS_SEARCH(T)                                                                             \
  DETOPS_CLONES DETOPS_FLATTEN void search_task(const T* data, const Task& task, const Level& level, \
                                                const Search& search, std::vector<uint64_t>& keys) { \
    search_run(data, task, level, search, keys);                                                     \
  }
DETOPS_SEARCH(float)
DETOPS_SEARCH(Half)
DETOPS_SEARCH(BFloat16)
DETOPS_SEARCH(double)

template <class T>
void search_level(const Task& task, const Level& level, const Search& search, std::vector<uint64_t>& keys) {
  const T* data = static_cast<const T*>(level.data) + task.b * level.classes * level.points;
  search_task(data, task, level, search, keys);
  prune(keys, search.count);
}

std::tuple<Tensor, Tensor> top_logits(const std::vector<Tensor> logits, double least, int64_t count) {
  STD_TORCH_CHECK(!logits.empty() && logits[0].dim() == 4, "logits: expected at least one level (B, C, H, W)");
  STD_TORCH_CHECK(count > 0, "count: expected at least 1");
  const int64_t batch = logits[0].size(0), classes = logits[0].size(1);
  const ScalarType type = logits[0].scalar_type();
  std::vector<Level> levels;
  std::vector<Task> tasks;
  std::vector<size_t> first_of_image;
  int64_t start = 0, width = 0;
  for (const Tensor& level : logits) {
    STD_TORCH_CHECK(has_shape(level, {batch, classes, -1, -1}) && level.scalar_type() == type && is_floating(type),
                    "logits: expected levels (B, C, H, W) of one floating-point dtype");
    STD_TORCH_CHECK(is_dense(level), "logits: expected levels that are contiguous or channels last");
    const int64_t points = level.size(2) * level.size(3);
    levels.push_back({level.const_data_ptr(), classes, points, start, !level.is_contiguous()});
    start += points, width += std::min(count, classes * points);
  }
  STD_TORCH_CHECK(start * classes < (int64_t(1) << 32), "logits: expected fewer than 2^32 of an image");
  for (int64_t b = 0; b < batch; ++b) {
    first_of_image.push_back(tasks.size());
    for (size_t i = 0; i < levels.size(); ++i) {
      const int64_t size = classes * levels[i].points;
      for (int64_t begin = 0; begin < size; begin += kTask)
        tasks.push_back({i, b, begin, std::min(size, begin + kTask)});
    }
  }
  first_of_image.push_back(tasks.size());

  const Search search{static_cast<float>(least), static_cast<size_t>(count)};
  std::vector<std::vector<uint64_t>> found(tasks.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Level& level = levels[tasks[i].level];
      switch (type) {
        case ScalarType::Float: search_level<float>(tasks[i], level, search, found[i]); break;
        case ScalarType::Half: search_level<Half>(tasks[i], level, search, found[i]); break;
        case ScalarType::BFloat16: search_level<BFloat16>(tasks[i], level, search, found[i]); break;
        default: search_level<double>(tasks[i], level, search, found[i]);
      }
    }
  });

  Tensor values = torch::stable::new_empty(logits[0], {batch, width}, ScalarType::Float);
  Tensor index = torch::stable::new_empty(logits[0], {batch, width}, ScalarType::Long);
  float* value = static_cast<float*>(values.mutable_data_ptr());
  int64_t* place = static_cast<int64_t*>(index.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> all, of_level;
    for (int64_t b = begin; b < end; ++b) {
      all.clear();
      for (size_t i = first_of_image[b]; i < first_of_image[b + 1]; ++i) {
        of_level.insert(of_level.end(), found[i].begin(), found[i].end());
        if (i + 1 < first_of_image[b + 1] && tasks[i + 1].level == tasks[i].level) continue;
        prune(of_level, search.count);
        all.insert(all.end(), of_level.begin(), of_level.end());
        of_level.clear();
      }
      std::sort(all.begin(), all.end(), std::greater<uint64_t>());
      for (int64_t k = 0; k < width; ++k) {
        const bool exists = k < static_cast<int64_t>(all.size());
        value[b * width + k] = exists ? number_of(all[k]) : std::numeric_limits<float>::quiet_NaN();
        place[b * width + k] = exists ? index_of(all[k]) : 0;
      }
    }
  });
  return {values, index};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("top_logits", TORCH_BOX(&detops::top_logits)); }
