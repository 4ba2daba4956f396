// D-FINE's losses of box distributions, sums and gradient in one pass: the CPU kernel of local_loss.
//
// Queries are cut into blocks whose sums are added in order. The last layer's softmax is made once for a query and used
// for all layers that learn from it, so that no distribution is ever stored.
#include "local_loss.h"
#include "outputs.h"

namespace detops {
namespace {

constexpr int64_t kQueries = 16;  // per block

#define DETOPS_DISTIL(C)                                                                                               \
  /* The divergence of a query's sides, given both softmaxes; adds its gradient, times a factor. */                    \
  DETOPS_CLONES double distil(const C* zt, const C* pt, const C* log_t, const C* zs, const C* ps, const C* log_s,      \
                              int64_t width, C factor, C* gradient) {                                                  \
    C sum[kLanes] = {};                                                                                                \
    for (int64_t j = 0; j < 4 * width; j += kLanes) {                                                                  \
      for (int i = 0; i < kLanes; ++i) sum[i] += pt[j + i] * (zt[j + i] - zs[j + i]);                                  \
    }                                                                                                                  \
    for (int64_t j = 0; gradient && j < 4 * width; ++j) gradient[j] += factor * (ps[j] - pt[j]);                       \
    double total = lane_sum(sum);                                                                                      \
    for (int side = 0; side < 4; ++side) total -= static_cast<double>(log_t[side]) - static_cast<double>(log_s[side]); \
    return total;                                                                                                      \
  }
DETOPS_DISTIL(float)
DETOPS_DISTIL(double)

#define DETOPS_STORE(T, C)                                                                             \
  DETOPS_CLONES void store(const C* from, int64_t bins, int64_t width, T* to) {                        \
    for (int side = 0; side < 4; ++side) {                                                             \
      for (int64_t j = 0; j < bins; ++j) to[side * bins + j] = static_cast<T>(from[side * width + j]); \
    }                                                                                                  \
  }
DETOPS_STORE(float, float)
DETOPS_STORE(Half, float)
DETOPS_STORE(BFloat16, float)
DETOPS_STORE(double, double)

// What a query with a box, and one without, counts in the distillation of its layer.
struct Share {
  double matched, other;
};

std::vector<Share> shares_of(const LocalInput& in) {
  std::vector<Share> found;
  for (const SetPart& part : in.parts) {
    for (int64_t s = 0; s < part.sets; ++s) {
      int64_t matched = 0;
      for (int64_t b = 0; b < in.batch; ++b) {
        for (int64_t q = 0; q < part.queries; ++q) matched += in.box_of(part, s, b, q) >= 0;
      }
      const double root = std::sqrt(static_cast<double>(matched));
      const double rest = std::sqrt(static_cast<double>(in.batch * part.queries - matched)), total = root + rest;
      found.push_back({root > 0 ? 1 / (root * total) : 0, rest > 0 ? 1 / (rest * total) : 0});
    }
  }
  return found;
}

template <class C>
struct Buffers {
  std::vector<C> zt, pt, zs, ps, z, p, gradient;
  C log_t[4], log_s[4], log_p[4];

  explicit Buffers(int64_t size)
      : zt(size), pt(size), zs(size), ps(size), z(size), p(size), gradient(size), log_t{}, log_s{}, log_p{} {}
};

// The losses of the query `q` of one image, of all layers of all parts; adds them to sums (R, 2).
template <class T, class C>
void query_losses(const LocalInput& in, const Tensor& corners, const Reader& teacher_logits, int64_t classes, T* out,
                  const int64_t* strides, const std::vector<Share>& shares, int64_t b, int64_t q, Buffers<C>& buffer,
                  double* sums) {
  const T* data = static_cast<const T*>(corners.const_data_ptr()) + b * corners.stride(1) + q * corners.stride(2);
  const C cool = static_cast<C>(1 / kTemperature);
  bool has_teacher = false;
  double confidence = -1;
  for (size_t i = 0; i < in.parts.size(); ++i) {
    const SetPart& part = in.parts[i];
    const int64_t own = q - part.first_query;
    if (own < 0 || own >= part.queries) continue;
    for (int64_t s = 0; s < part.sets; ++s) {
      const int64_t layer = part.first_set + s, row = part.sets_before + s, n = in.box_of(part, s, b, own);
      const T* x = data + layer * corners.stride(0);
      C* gradient = out ? buffer.gradient.data() : nullptr;
      std::fill(buffer.gradient.begin(), buffer.gradient.end(), C(0));
      double weight = n >= 0 ? in.iou(i, s, b, own, n) : 0;
      if (n >= 0 && weight > 0) {
        int64_t lower[4];
        double share[4];
        in.targets(layer, b, q, n, lower, share);
        soften(x, C(1), in.bins, in.width, buffer.z.data(), buffer.p.data(), buffer.log_p);
        const double factor = weight * in.scale.at(row) * in.weights[0];
        sums[row * 2] +=
            factor * fine_grained(in, buffer.z.data(), buffer.p.data(), buffer.log_p, lower, share, factor, gradient);
      }
      if (in.distils[i]) {
        if (!has_teacher) {
          soften(data + (in.layers - 1) * corners.stride(0), cool, in.bins, in.width, buffer.zt.data(),
                 buffer.pt.data(), buffer.log_t);
          has_teacher = true;
        }
        if (n < 0 && confidence < 0) {
          double most = teacher_logits.at(b, q, 0);
          for (int64_t c = 1; c < classes; ++c) {
            const double v = teacher_logits.at(b, q, c);
            most = v > most || v != v ? v : most;
          }
          confidence = 1 / (1 + std::exp(-most));
        }
        soften(x, cool, in.bins, in.width, buffer.zs.data(), buffer.ps.data(), buffer.log_s);
        weight = n >= 0 ? weight * shares[row].matched : confidence * shares[row].other;
        weight *= in.weights[1] * kTemperature * kTemperature / 4;
        sums[row * 2 + 1] +=
            weight * distil(buffer.zt.data(), buffer.pt.data(), buffer.log_t, buffer.zs.data(), buffer.ps.data(),
                            buffer.log_s, in.width, static_cast<C>(weight / kTemperature), gradient);
      }
      if (out) { store(gradient, in.bins, in.width, out + layer * strides[0] + b * strides[1] + q * strides[2]); }
    }
  }
}

std::tuple<Tensor, Tensor> local_loss(const Tensor corners, const Tensor references, const Tensor teacher_logits,
                                      const std::vector<Tensor> pred_boxes, const std::vector<int64_t> parts,
                                      const std::vector<int64_t> distils, const Tensor gt_boxes, const Tensor index,
                                      const Tensor values, const Tensor scale, double reach,
                                      const std::vector<double> weights, bool with_gradient) {
  const LocalInput in(corners, references, pred_boxes, parts, distils, gt_boxes, index, values, scale, reach, weights);
  STD_TORCH_CHECK(has_numbers(teacher_logits, {in.batch, in.queries, -1}) && teacher_logits.size(2) > 0,
                  "teacher_logits: expected numbers of shape (B, Q, C)");
  using torch::stable::new_empty;
  Tensor gradient = with_gradient ? in_huge_pages(torch::stable::empty_like(corners)) : new_empty(corners, {0});
  if (with_gradient) clear_gaps(gradient, 0, in.parts);
  const int64_t sets = sets_of(in.parts), blocks = (in.queries + kQueries - 1) / kQueries;
  const std::vector<Share> shares = shares_of(in);
  const Reader teacher(teacher_logits);
  std::vector<double> sums(in.batch * blocks * sets * 2);
  int64_t strides[3] = {0, 0, 0};
  for (int d = 0; with_gradient && d < 3; ++d) strides[d] = gradient.stride(d);
  with_type(corners.scalar_type(), "corners", [&](auto zero) {
    using T = decltype(zero);
    using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
    T* out = with_gradient ? static_cast<T*>(gradient.mutable_data_ptr()) : nullptr;
    torch::stable::parallel_for(0, in.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      Buffers<C> buffer(4 * in.width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks, first = i % blocks * kQueries;
        for (int64_t q = first; q < std::min(in.queries, first + kQueries); ++q) {
          query_losses<T, C>(in, corners, teacher, teacher_logits.size(2), out, strides, shares, b, q, buffer,
                             sums.data() + i * sets * 2);
        }
      }
    });
  });
  const bool wide = corners.scalar_type() == ScalarType::Double;
  Tensor losses = new_empty(scale, {sets, 2}, wide ? ScalarType::Double : ScalarType::Float);
  for (int64_t k = 0; k < sets * 2; ++k) {
    double total = 0;
    for (int64_t i = 0; i < in.batch * blocks; ++i) total += sums[i * sets * 2 + k];
    if (wide) {
      static_cast<double*>(losses.mutable_data_ptr())[k] = total;
    } else {
      static_cast<float*>(losses.mutable_data_ptr())[k] = static_cast<float>(total);
    }
  }
  return {losses, gradient};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("local_loss", TORCH_BOX(&detops::local_loss)); }
