// What matching queries with masks costs, at points: the CPU kernel of point_mask_costs.
//
// Logits are read, their sigmoids made and both multiplied with the labels while they are in the cache: some queries
// and points at a time. Every sum is taken by one thread in one order, so the number of threads changes nothing.
#include "mask_products.h"
#include "mask_terms.h"
#include "mask_labels.h"

#include <tuple>

namespace detops {
namespace {

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

// Logits of the dtype T, computed as C; `points` is none where they were read at the points already.
template <class T, class C>
std::tuple<Tensor, Tensor> compute(const Tensor& logits, const std::optional<Tensor>& points, const Tensor& labels,
                                   bool border, ScalarType wide) {
  const int64_t batch = logits.size(0), queries = logits.size(1), masks = labels.size(1), number = labels.size(2);
  const int64_t height = points ? logits.size(2) : 1, width = points ? logits.size(3) : 1;
  Tensor bce = torch::stable::new_empty(logits, {batch, queries, masks}, wide);
  Tensor dice = torch::stable::new_empty(logits, {batch, queries, masks}, wide);
  C* of_bce = static_cast<C*>(bce.mutable_data_ptr());
  C* of_dice = static_cast<C*>(dice.mutable_data_ptr());
  const T* data = static_cast<const T*>(logits.const_data_ptr());
  const PackedLabels<C> packed(labels);
  const std::optional<Reader> reader = reader_of(points);
  const int64_t tasks = (queries + kQueries - 1) / kQueries;
  torch::stable::parallel_for(0, batch * tasks, 1, [&](int64_t begin, int64_t end) {
    PointTable<C> table;
    std::vector<C> rows(kRows * kPoints), spare(kPoints), sums(packed.blocks * kRows * kColumns);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks, first = task % tasks * kQueries, some = std::min(kQueries, queries - first);
      double up[kQueries] = {}, total[kQueries] = {};
      std::fill(sums.begin(), sums.end(), C(0));
      std::fill(rows.begin(), rows.end(), C(0));
      for (int64_t from = 0; from < number; from += kPoints) {
        const int64_t count = std::min(kPoints, number - from);
        if (points && height > 0 && width > 0) {
          table.fill(*points, *reader, b, 0, from, count, height, width, logits.stride(2), logits.stride(3), false,
                     border);
        }
        for (int64_t k = 0; k < some; ++k) {
          const T* own = data + b * logits.stride(0) + (first + k) * logits.stride(1);
          C* x = rows.data() + 2 * k * kPoints;
          if (!points) {
            for (int64_t p = 0; p < count; ++p) x[p] = static_cast<C>(own[(from + p) * logits.stride(2)]);
          } else if (height > 0 && width > 0) {
            read_points(own, table, count, x);
          } else {
            std::fill(x, x + count, C(0));
          }
          add_sigmoids(x, count, x + kPoints, spare.data(), up[k], total[k]);
        }
        for (int64_t block = 0; block < packed.blocks; ++block) {
          add_products(rows.data(), packed.at(b, block, from), count, kPoints, sums.data() + block * kRows * kColumns);
        }
      }
      for (int64_t k = 0; k < some; ++k) {
        for (int64_t n = 0; n < masks; ++n) {
          const C* sum = sums.data() + (n / kColumns * kRows + 2 * k) * kColumns + n % kColumns;
          const int64_t place = (b * queries + first + k) * masks + n;
          of_bce[place] = static_cast<C>((up[k] - sum[0]) / static_cast<double>(std::max<int64_t>(number, 1)));
          of_dice[place] = static_cast<C>(1 - (2 * static_cast<double>(sum[kColumns]) + 1) /
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
