// What matching queries with masks costs, at points: the CPU kernel of point_mask_costs.
//
// Maps of a few queries are laid side by side, as all are read at the same points: four loads then serve all of them,
// unless points are few beside cells.
// Logits, their sigmoids and the products of both with the labels are made while they are in the cache, some points at
// a time. Every sum is taken by one thread in one order, so the number of threads changes nothing.
#include "mask_products.h"
#include "mask_terms.h"
#include "mask_labels.h"

#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kSome = 256;  // points at a time
constexpr int64_t kFew = 4;     // from so many cells to a point on, maps are read where they are

// Labels (B, N, P) of an image, in blocks of kColumns masks: (blocks, P, kColumns), zeros where there is no mask.
template <class C>
struct PackedLabels {
  std::vector<C> values;
  std::vector<double> sums;  // (B, N)
  int64_t blocks, points, masks;

  explicit PackedLabels(const Tensor& labels)
      : sums(labels.size(0) * labels.size(1)), blocks((labels.size(1) + kColumns - 1) / kColumns),
        points(labels.size(2)), masks(labels.size(1)) {
    const int64_t batch = labels.size(0);
    values.resize(batch * blocks * points * kColumns);
    const Reader reader(labels);
    const bool single = labels.scalar_type() == ScalarType::Float && labels.stride(2) == 1;
    torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / blocks, first = task % blocks * kColumns;
        C* to = values.data() + task * points * kColumns;
        for (int64_t n = first; n < std::min(first + kColumns, masks); ++n) {
          double sum = 0;
          for (int64_t from = 0; from < points; from += kPoints) {
            C line[kPoints];
            const int64_t some = std::min(kPoints, points - from);
            if (single) {
              const float* given = static_cast<const float*>(labels.const_data_ptr()) + b * labels.stride(0) +
                                   n * labels.stride(1) + from;
              for (int64_t p = 0; p < some; ++p) line[p] = static_cast<C>(given[p]);
            } else {
              for (int64_t p = 0; p < some; ++p) line[p] = static_cast<C>(reader.at(b, n, from + p));
            }
            sum += sum_of(line, some);
            for (int64_t p = 0; p < some; ++p) to[(from + p) * kColumns + n - first] = line[p];
          }
          sums[b * masks + n] = sum;
        }
      }
    });
  }

  const C* at(int64_t b, int64_t block, int64_t from) const {
    return values.data() + ((b * blocks + block) * points + from) * kColumns;
  }
};

// The cells around the points of an image, in maps whose rows lie together, and their weights. None where maps have
// less than two columns.
template <class C>
struct Corners {
  std::vector<int32_t> top, bottom;  // the left of two cells
  std::vector<C> a, b, c, d;

  Corners(const Tensor& points, const Reader& reader, int64_t image, int64_t height, int64_t width, bool border) {
    const int64_t number = points.size(2);
    if (height == 0 || width < 2 || height * width >= kFew * number) return;
    top.resize(number), bottom.resize(number);
    for (std::vector<C>* weights : {&a, &b, &c, &d}) weights->resize(number);
    PointTable<C> table;
    for (int64_t from = 0; from < number; from += kPoints) {
      const int64_t some = std::min(kPoints, number - from);
      table.fill(points, reader, image, 0, from, some, height, width, width, 1, false, border);
      for (int64_t p = 0; p < some; ++p) {
        const C above = table.y.before[p], below = table.y.after[p], left = table.left[p], right = table.right[p];
        top[from + p] = table.y.first[p] + table.place[p], bottom[from + p] = table.y.second[p] + table.place[p];
        a[from + p] = above * left, b[from + p] = above * right;
        c[from + p] = below * left, d[from + p] = below * right;
      }
    }
  }

  void read(const C* cells, int64_t from, int64_t count, C* out) const {
    read_side_by_side(cells, top.data() + from, bottom.data() + from, a.data() + from, b.data() + from, c.data() + from,
                      d.data() + from, count, out);
  }
};

// Lays `some` maps side by side, and tells in `finite` which have no other numbers: only in these may cells be read
// that have no weight.
template <class T, class C>
void lay_side_by_side(const T* maps, int64_t by_map, int64_t some, int64_t height, int64_t width, int64_t by_row,
                      int64_t by_column, C* cells, bool* finite) {
  C unknown[kQueries] = {};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      C* const cell = cells + kQueries * (y * width + x);
      const T* const from = maps + y * by_row + x * by_column;
      for (int64_t k = 0; k < some; ++k) cell[k] = static_cast<C>(from[k * by_map]), unknown[k] += cell[k] * C(0);
    }
  }
  for (int64_t k = 0; k < some; ++k) finite[k] = unknown[k] == 0;
}

// Logits of the dtype T, computed as C; `points` is none where they were read at the points already.
template <class T, class C>
std::tuple<Tensor, Tensor> compute(const Tensor& logits, const std::optional<Tensor>& points, const Tensor& labels,
                                   bool border, ScalarType wide) {
  const int64_t batch = logits.size(0), queries = logits.size(1), masks = labels.size(1), number = labels.size(2);
  const int64_t height = points ? logits.size(2) : 0, width = points ? logits.size(3) : 0;
  const int64_t by_row = points ? logits.stride(2) : 0, by_column = points ? logits.stride(3) : 0;
  Tensor bce = torch::stable::new_empty(logits, {batch, queries, masks}, wide);
  Tensor dice = torch::stable::new_empty(logits, {batch, queries, masks}, wide);
  C* of_bce = static_cast<C*>(bce.mutable_data_ptr());
  C* of_dice = static_cast<C*>(dice.mutable_data_ptr());
  const T* data = static_cast<const T*>(logits.const_data_ptr());
  const PackedLabels<C> packed(labels);
  const std::optional<Reader> reader = reader_of(points);
  std::vector<Corners<C>> corners;
  for (int64_t b = 0; points && b < batch; ++b) corners.emplace_back(*points, *reader, b, height, width, border);
  const int64_t tasks = (queries + kQueries - 1) / kQueries, block_sums = kQueries * kColumns;
  torch::stable::parallel_for(0, batch * tasks, 1, [&](int64_t begin, int64_t end) {
    PointTable<C> table;
    std::vector<C> cells(kQueries * height * width), sums(2 * packed.blocks * block_sums);
    std::vector<C> x(kQueries * kSome), p(kQueries * kSome), room(kQueries * kSome), line(kSome);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks, first = task % tasks * kQueries, some = std::min(kQueries, queries - first);
      const T* own = data + b * logits.stride(0) + first * logits.stride(1);
      const bool readable = points && height > 0 && width > 0, together = readable && !corners[b].top.empty();
      bool finite[kQueries] = {};
      if (together) {
        lay_side_by_side(own, logits.stride(1), some, height, width, by_row, by_column, cells.data(), finite);
      }
      const bool all = together && std::all_of(finite, finite + some, [](bool one) { return one; });
      double up[kQueries] = {}, total[kQueries] = {};
      std::fill(sums.begin(), sums.end(), C(0));
      std::fill(x.begin(), x.end(), C(0));
      for (int64_t from = 0; from < number; from += kSome) {
        const int64_t count = std::min(kSome, number - from);
        if (together) corners[b].read(cells.data(), from, count, x.data());
        if (readable && !all) {
          table.fill(*points, *reader, b, 0, from, count, height, width, by_row, by_column, false, border);
        }
        for (int64_t k = 0; k < some && !all && (readable || !points); ++k) {
          if (finite[k]) continue;
          const T* map = own + k * logits.stride(1);
          if (readable) read_points(map, table, count, line.data());
          for (int64_t i = 0; i < count; ++i) {
            x[kQueries * i + k] = readable ? line[i] : static_cast<C>(map[(from + i) * logits.stride(2)]);
          }
        }
        fill_sigmoids(x.data(), kQueries * count, p.data(), room.data());
        add_side_by_side(room.data(), count, up), add_side_by_side(p.data(), count, total);
        for (int64_t block = 0; block < packed.blocks; ++block) {
          C* const to = sums.data() + 2 * block * block_sums;
          add_products(x.data(), packed.at(b, block, from), count, to);
          add_products(p.data(), packed.at(b, block, from), count, to + block_sums);
        }
      }
      for (int64_t k = 0; k < some; ++k) {
        for (int64_t n = 0; n < masks; ++n) {
          const C* sum = sums.data() + 2 * (n / kColumns) * block_sums + k * kColumns + n % kColumns;
          const int64_t place = (b * queries + first + k) * masks + n;
          of_bce[place] = static_cast<C>((up[k] - sum[0]) / static_cast<double>(std::max<int64_t>(number, 1)));
          of_dice[place] = static_cast<C>(1 - (2 * static_cast<double>(sum[block_sums]) + 1) /
                                                  (total[k] + packed.sums[b * masks + n] + 1));
        }
      }
    }
  });
  return {bce, dice};
}

std::tuple<Tensor, Tensor> point_mask_costs(const Tensor logits, const std::optional<Tensor> points,
                                            const Tensor labels, bool border) {
  STD_TORCH_CHECK(has_numbers(labels, {logits.size(0), -1, -1}), "labels: expected numbers of shape (B, N, P)");
  STD_TORCH_CHECK(points ? has_shape(logits, {-1, -1, -1, -1}) : has_shape(logits, {-1, -1, labels.size(2)}),
                  "logits: expected shape (B, Q, h, w), or without points (B, Q, P)");
  // A row of points for all queries of an image.
  STD_TORCH_CHECK(!points || has_numbers(*points, {logits.size(0), 1, labels.size(2), 2}),
                  "points: expected numbers of shape (B, 1, P, 2)");
  STD_TORCH_CHECK(!points || logits.size(2) * logits.stride(2) + logits.size(3) * logits.stride(3) <=
                                 std::numeric_limits<int32_t>::max(),
                  "logits: expected a map that spans fewer than 2^31 numbers");
  switch (logits.scalar_type()) {
    case ScalarType::Float: return compute<float, float>(logits, points, labels, border, ScalarType::Float);
    case ScalarType::Double: return compute<double, double>(logits, points, labels, border, ScalarType::Double);
    case ScalarType::Half: return compute<Half, float>(logits, points, labels, border, ScalarType::Float);
    case ScalarType::BFloat16: return compute<BFloat16, float>(logits, points, labels, border, ScalarType::Float);
    default: STD_TORCH_CHECK(false, "logits: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("point_mask_costs", TORCH_BOX(&detops::point_mask_costs)); }
