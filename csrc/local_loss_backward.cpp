// The gradient of local_loss after those of its results are known: the CPU kernel of local_loss_backward_. Nothing is
// read or written where these are 1.
#include "local_loss.h"

namespace detops {
namespace {

#define DETOPS_BLEND(T, C)                                                                  \
  /* by * to + more, where more is (4, width). */                                           \
  DETOPS_CLONES void blend(const C* more, int64_t bins, int64_t width, C by, T* to) {       \
    for (int side = 0; side < 4; ++side) {                                                  \
      for (int64_t j = 0; j < bins; ++j) {                                                  \
        T& g = to[side * bins + j];                                                         \
        g = static_cast<T>(by * static_cast<C>(g) + more[side * width + j]);                \
      }                                                                                     \
    }                                                                                       \
  }                                                                                         \
  DETOPS_CLONES void shrink(int64_t count, C by, T* to) {                                   \
    for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(by * static_cast<C>(to[j])); \
  }
DETOPS_BLEND(float, float)
DETOPS_BLEND(Half, float)
DETOPS_BLEND(BFloat16, float)
DETOPS_BLEND(double, double)

void local_loss_backward_(Tensor gradient, const Tensor corners, const Tensor references,
                          const std::vector<Tensor> pred_boxes, const std::vector<int64_t> parts,
                          const std::vector<int64_t> distils, const Tensor gt_boxes, const Tensor index,
                          const Tensor values, const Tensor scale, double reach, const std::vector<double> weights,
                          const Tensor upstream) {
  const LocalInput in(corners, references, pred_boxes, parts, distils, gt_boxes, index, values, scale, reach, weights);
  STD_TORCH_CHECK(has_numbers(gradient, {in.layers, in.batch, in.queries, 4 * in.bins}) && gradient.stride(3) == 1 &&
                      gradient.scalar_type() == corners.scalar_type(),
                  "gradient: expected a tensor like corners, with contiguous rows");
  STD_TORCH_CHECK(has_numbers(upstream, {sets_of(in.parts), 2}), "upstream: expected numbers of shape (R, 2)");
  const Reader up(upstream);
  struct Row {
    size_t part;
    int64_t set;
    double by, more;
  };
  std::vector<Row> rows;  // those that change
  for (size_t i = 0; i < in.parts.size(); ++i) {
    for (int64_t s = 0; s < in.parts[i].sets; ++s) {
      const int64_t row = in.parts[i].sets_before + s;
      const double by_fgl = up.at(row, 0), by = in.distils[i] ? up.at(row, 1) : by_fgl;
      const double more = (by_fgl - by) * in.scale.at(row) * in.weights[0];
      if (by != 1 || more != 0) rows.push_back({i, s, by, more});
    }
  }
  with_type(corners.scalar_type(), "corners", [&](auto zero) {
    using T = decltype(zero);
    using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
    T* out = static_cast<T*>(gradient.mutable_data_ptr());
    const T* data = static_cast<const T*>(corners.const_data_ptr());
    const int64_t count = static_cast<int64_t>(rows.size()) * in.batch;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      std::vector<C> z(4 * in.width), p(4 * in.width), more(4 * in.width);
      C log_sum[4];
      for (int64_t i = begin; i < end; ++i) {
        const Row& row = rows[i / in.batch];
        const SetPart& part = in.parts[row.part];
        const int64_t b = i % in.batch, layer = part.first_set + row.set;
        for (int64_t own = 0; own < part.queries; ++own) {
          const int64_t q = part.first_query + own, n = in.box_of(part, row.set, b, own);
          T* to = out + layer * gradient.stride(0) + b * gradient.stride(1) + q * gradient.stride(2);
          const double weight = row.more != 0 && n >= 0 ? in.iou(row.part, row.set, b, own, n) : 0;
          if (!(weight > 0)) {
            shrink(4 * in.bins, static_cast<C>(row.by), to);
            continue;
          }
          int64_t lower[4];
          double share[4];
          in.targets(layer, b, q, n, lower, share);
          std::fill(more.begin(), more.end(), C(0));
          soften(data + layer * corners.stride(0) + b * corners.stride(1) + q * corners.stride(2), C(1), in.bins,
                 in.width, z.data(), p.data(), log_sum);
          fine_grained(in, z.data(), p.data(), log_sum, lower, share, weight * row.more, more.data());
          blend(more.data(), in.bins, in.width, static_cast<C>(row.by), to);
        }
      }
    });
  });
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("local_loss_backward_", TORCH_BOX(&detops::local_loss_backward_)); }
