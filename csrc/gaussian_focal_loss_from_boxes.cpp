// CenterNet's focal loss straight from boxes: the CPU kernel of gaussian_focal_loss_from_boxes.
//
// Nearly all cells have target 0, and only the plain negative term. The maps are cut into strips of rows; boxes that
// reach a strip are drawn into a small buffer, and only the part of each row that they cover reads its targets from
// there. Sums are taken per strip and added in order, so the result does not depend on the number of threads.
#include "focal.h"
#include "focal_from_boxes.h"
#include "gaussians.h"
#include "outputs.h"

#include <algorithm>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kStripCells = 8192;  // 32 KiB of targets: they stay in the cache

struct Grid {
  int64_t batch, classes, height, width, strip_rows, strips;
};

// A thread's buffers: the targets of a strip and, for each of its rows, which columns boxes cover.
template <class Compute>
struct Strip {
  std::vector<Compute> targets, gx, gy;
  std::vector<int64_t> left, right;

  explicit Strip(const Grid& g)
      : targets(g.strip_rows * g.width), gx(g.width + kBlock), gy(g.height + kBlock), left(g.strip_rows),
        right(g.strip_rows) {}
};

// Draws the boxes that reach rows [top, bottom) of map (b, c); returns false if none does. Targets outside the covered
// columns are left over from other strips.
template <class Compute>
inline bool draw_strip(const Grid& grid, const Boxes& boxes, double factor, int64_t b, int64_t c, int64_t top,
                       int64_t bottom, Strip<Compute>& strip) {
  bool any = false;
  for (int64_t n = 0, count = boxes.labels.rows(b); n < count; ++n) {
    Gaussian box;
    if (boxes.labels.at(b, n, grid.classes) != c || !boxes.read(b, n, box)) continue;
    const Window columns(box.x, box.rx, grid.width), rows(box.y, box.ry, grid.height);
    const int64_t first = std::max(rows.begin, top), last = std::min(rows.end, bottom);
    if (columns.empty() || first >= last) continue;
    if (!any) {
      std::fill(strip.left.begin(), strip.left.end(), grid.width);
      std::fill(strip.right.begin(), strip.right.end(), int64_t(0));
      any = true;
    }
    // Over the whole window, as in draw_gaussians_, so that the bits are the same.
    profile(strip.gx.data(), static_cast<double>(columns.begin), box.x, factor / (2 * box.rx + 1), columns.padded());
    profile(strip.gy.data(), static_cast<double>(rows.begin), box.y, factor / (2 * box.ry + 1), rows.padded());
    for (int64_t row = first; row < last; ++row) {
      Compute* line = strip.targets.data() + (row - top) * grid.width;
      int64_t &left = strip.left[row - top], &right = strip.right[row - top];
      const int64_t new_left = std::min(left, columns.begin), new_right = std::max(right, columns.end);
      if (left >= right) {
        std::fill(line + new_left, line + new_right, Compute(0));
      } else {
        std::fill(line + new_left, line + left, Compute(0));
        std::fill(line + right, line + new_right, Compute(0));
      }
      left = new_left, right = new_right;
      draw_row(line + columns.begin, strip.gx.data(), strip.gy[row - rows.begin], Compute(1),
               columns.end - columns.begin);
    }
  }
  return any;
}

template <Exponents E, bool HasBoxes, bool HasWeight, class T, class Compute>
inline double strip_loss(const T* x, const Compute* w, T* g, const Grid& grid, int64_t rows, bool drawn,
                         const Strip<Compute>& strip, const FocalFactors& f) {
  if constexpr (!HasBoxes) {
    return focal_run<E, false, HasWeight, T, Compute, Compute>(x, nullptr, w, g, rows * grid.width, f);
  } else {
    double sum = 0;
    int64_t done = 0;  // cells from the start of the strip
    const auto bare = [&](int64_t end) {
      sum += focal_run<E, false, HasWeight, T, Compute, Compute>(x + done, nullptr, HasWeight ? w + done : nullptr,
                                                                 g ? g + done : nullptr, end - done, f);
      done = end;
    };
    for (int64_t row = 0; drawn && row < rows; ++row) {
      const int64_t left = strip.left[row], right = strip.right[row];
      if (left >= right) continue;
      bare(row * grid.width + left);
      sum += focal_run<E, true, HasWeight, T, Compute, Compute>(x + done, strip.targets.data() + done,
                                                                HasWeight ? w + done : nullptr, g ? g + done : nullptr,
                                                                right - left, f);
      done += right - left;
    }
    bare(rows * grid.width);
    return sum;
  }
}

template <Exponents E, bool HasBoxes, class T, class Compute>
inline void strips_loss(const T* logits, const Compute* weight, T* gradient, const Grid& grid, const Boxes& boxes,
                        double factor, const FocalFactors& f, int64_t begin, int64_t end, double* sums) {
  Strip<Compute> strip(grid);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t map = i / grid.strips, top = i % grid.strips * grid.strip_rows;
    const int64_t bottom = std::min(grid.height, top + grid.strip_rows);
    const int64_t b = map / grid.classes, c = map % grid.classes;
    bool drawn = false;
    if constexpr (HasBoxes) drawn = draw_strip(grid, boxes, factor, b, c, top, bottom, strip);
    const int64_t from = (map * grid.height + top) * grid.width;
    const T* x = logits + from;
    const Compute* w = weight ? weight + (b * grid.height + top) * grid.width : nullptr;
    T* g = gradient ? gradient + from : nullptr;
    const int64_t rows = bottom - top;
    sums[i] = w ? strip_loss<E, HasBoxes, true>(x, w, g, grid, rows, drawn, strip, f)
                : strip_loss<E, HasBoxes, false>(x, w, g, grid, rows, drawn, strip, f);
  }
}

// Unless gamma is 4, (1 - t)^gamma calls the C library, which wider vectors do not speed up, so it is compiled once.
#define DETOPS_STRIPS(T, Compute)                                                                               \
  DETOPS_CLONES DETOPS_FLATTEN void run_two_four(const T* x, const Compute* w, T* g, const Grid& grid,          \
                                                 const Boxes& boxes, double factor, const FocalFactors& f,      \
                                                 int64_t begin, int64_t end, double* sums) {                    \
    strips_loss<Exponents::kTwoFour, true, T, Compute>(x, w, g, grid, boxes, factor, f, begin, end, sums);      \
  }                                                                                                             \
  void run_any(const T* x, const Compute* w, T* g, const Grid& grid, const Boxes& boxes, double factor,         \
               const FocalFactors& f, int64_t begin, int64_t end, double* sums) {                               \
    strips_loss<Exponents::kAny, true, T, Compute>(x, w, g, grid, boxes, factor, f, begin, end, sums);          \
  }                                                                                                             \
  DETOPS_CLONES DETOPS_FLATTEN void run_without_boxes(const T* x, const Compute* w, T* g, const Grid& grid,     \
                                                      const Boxes& boxes, double factor, const FocalFactors& f, \
                                                      int64_t begin, int64_t end, double* sums) {               \
    if (f.alpha == 0) {                                                                                         \
      strips_loss<Exponents::kZero, false, T, Compute>(x, w, g, grid, boxes, factor, f, begin, end, sums);      \
    } else {                                                                                                    \
      strips_loss<Exponents::kAny, false, T, Compute>(x, w, g, grid, boxes, factor, f, begin, end, sums);       \
    }                                                                                                           \
  }
DETOPS_STRIPS(float, float)
DETOPS_STRIPS(Half, float)
DETOPS_STRIPS(BFloat16, float)
DETOPS_STRIPS(double, double)

template <class T, class Compute>
std::vector<double> strip_sums(const Tensor& logits, const std::optional<Tensor>& weight, Tensor* gradient,
                               const Grid& grid, const Boxes& boxes, bool has_boxes, double factor,
                               const FocalFactors& f) {
  const int64_t count = grid.batch * grid.classes * grid.strips;
  std::vector<double> sums(count);
  const T* x = static_cast<const T*>(logits.const_data_ptr());
  const Compute* w = weight ? static_cast<const Compute*>(weight->const_data_ptr()) : nullptr;
  T* g = gradient ? static_cast<T*>(gradient->mutable_data_ptr()) : nullptr;
  torch::stable::parallel_for(0, count, 2, [&](int64_t begin, int64_t end) {
    if (f.two_four) {
      run_two_four(x, w, g, grid, boxes, factor, f, begin, end, sums.data());
    } else if (has_boxes) {
      run_any(x, w, g, grid, boxes, factor, f, begin, end, sums.data());
    } else {
      run_without_boxes(x, w, g, grid, boxes, factor, f, begin, end, sums.data());
    }
  });
  return sums;
}

}  // namespace

std::tuple<Tensor, Tensor> gaussian_focal_loss_from_boxes(const Tensor logits, const Tensor centers, const Tensor radii,
                                                          const Tensor labels, const std::optional<Tensor> sample_sizes,
                                                          const std::optional<Tensor> negative_weight,
                                                          const std::optional<Tensor> scale, double factor,
                                                          double alpha, double gamma, double pos_weight,
                                                          double neg_weight, bool with_gradient) {
  STD_TORCH_CHECK(logits.dim() == 4 && logits.is_contiguous(), "logits: expected a contiguous (B, C, H, W)");
  check_boxes(logits.size(0), centers, radii, labels, sample_sizes);
  const ScalarType type = logits.scalar_type();
  const ScalarType compute = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Grid grid{logits.size(0), logits.size(1), logits.size(2), logits.size(3), 0, 0};
  STD_TORCH_CHECK(!negative_weight || (negative_weight->is_contiguous() && negative_weight->scalar_type() == compute &&
                                       negative_weight->numel() == grid.batch * grid.height * grid.width),
                  "negative_weight: expected a contiguous (B, H, W) of the dtype of the sum");
  const int64_t whole = std::max<int64_t>(grid.height, 1);
  grid.strip_rows = std::clamp<int64_t>(kStripCells / std::max<int64_t>(grid.width, 1), 1, whole);
  grid.strips = (grid.height + grid.strip_rows - 1) / grid.strip_rows;
  const Boxes boxes(centers, radii, labels, sample_sizes);
  const FocalFactors f(alpha, gamma, pos_weight, neg_weight, scale);
  Tensor gradient =
      with_gradient ? in_huge_pages(torch::stable::empty_like(logits)) : torch::stable::new_empty(logits, {0});
  Tensor* g = with_gradient ? &gradient : nullptr;
  const auto& w = negative_weight;
  const bool any = centers.size(1) > 0;
  std::vector<double> sums;
  switch (type) {
    case ScalarType::Float: sums = strip_sums<float, float>(logits, w, g, grid, boxes, any, factor, f); break;
    case ScalarType::Half: sums = strip_sums<Half, float>(logits, w, g, grid, boxes, any, factor, f); break;
    case ScalarType::BFloat16: sums = strip_sums<BFloat16, float>(logits, w, g, grid, boxes, any, factor, f); break;
    case ScalarType::Double: sums = strip_sums<double, double>(logits, w, g, grid, boxes, any, factor, f); break;
    default: STD_TORCH_CHECK(false, "logits: expected float32, float16, bfloat16 or float64");
  }
  return {focal_total(logits, sums, f), gradient};
}

}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) {
  m.impl("gaussian_focal_loss_from_boxes", TORCH_BOX(&detops::gaussian_focal_loss_from_boxes));
}
