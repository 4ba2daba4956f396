// The gradients of set_loss after those of its results are known: the CPU kernel of set_loss_backward_. Those by logits
// are scaled where they are, if the factor is not 1; those by boxes are summed.
#include "set_parts.h"

namespace detops {
namespace {

#define DETOPS_SCALE_RUN(T, Compute)                                                                 \
  DETOPS_CLONES void scale_run(T* data, int64_t count, double factor) {                              \
    const Compute f = static_cast<Compute>(factor);                                                  \
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(static_cast<Compute>(data[i]) * f); \
  }
DETOPS_SCALE_RUN(float, float)
DETOPS_SCALE_RUN(Half, float)
DETOPS_SCALE_RUN(BFloat16, float)
DETOPS_SCALE_RUN(double, double)

// Scales the gradients of an image of a set.
template <class T>
void scale_image(Tensor& t, const SetPart& part, int64_t set, int64_t image, double factor) {
  T* data = static_cast<T*>(t.mutable_data_ptr()) + (part.first_set + set) * t.stride(0) + image * t.stride(1) +
            part.first_query * t.stride(2);
  if (t.stride(2) == t.size(3)) return scale_run(data, part.queries * t.size(3), factor);
  for (int64_t q = 0; q < part.queries; ++q) scale_run(data + q * t.stride(2), t.size(3), factor);
}

template <class T>
void sum_run(const T* l1, const T* giou, int64_t count, double by_l1, double by_giou, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<T>(by_l1 * static_cast<double>(l1[i]) + by_giou * static_cast<double>(giou[i]));
  }
}

Tensor set_loss_backward_(std::vector<Tensor> gradients, const Tensor box_gradients,
                          const std::vector<Tensor> pred_boxes, const std::vector<int64_t> parts,
                          const Tensor upstream) {
  STD_TORCH_CHECK(!pred_boxes.empty() && pred_boxes[0].dim() == 4, "pred_boxes: expected tensors (S, B, Q, 4)");
  STD_TORCH_CHECK(gradients.size() == pred_boxes.size(), "gradients: expected as many tensors as pred_boxes");
  const int64_t batch = pred_boxes[0].size(1);
  for (size_t i = 0; i < pred_boxes.size(); ++i) {
    const Tensor& t = pred_boxes[i];
    STD_TORCH_CHECK(has_shape(t, {-1, batch, -1, 4}) && t.scalar_type() == box_gradients.scalar_type(),
                    "pred_boxes: expected tensors (S, B, Q, 4) of the dtype of box_gradients");
    STD_TORCH_CHECK(has_shape(gradients[i], {t.size(0), batch, t.size(2), -1}) &&
                        (gradients[i].size(3) < 2 || gradients[i].stride(3) == 1),
                    "gradients: expected tensors (S, B, Q, C) with contiguous rows");
  }
  const std::vector<SetPart> all = parts_of(parts, pred_boxes, batch);
  const int64_t sets = sets_of(all), rows = rows_of(all, batch);
  STD_TORCH_CHECK(has_shape(box_gradients, {2, rows, 4}) && box_gradients.is_contiguous(),
                  "box_gradients: expected a contiguous tensor (2, rows, 4)");
  STD_TORCH_CHECK(has_numbers(upstream, {sets, 3}), "upstream: expected numbers of shape (R, 3)");
  int64_t all_queries = 0;
  std::vector<int64_t> starts;
  for (const Tensor& t : pred_boxes) {
    starts.push_back(all_queries);
    all_queries += t.size(0) * batch * t.size(2);
  }
  Tensor found = torch::stable::new_empty(pred_boxes[0], {all_queries, 4});
  const int64_t bytes = 4 * static_cast<int64_t>(found.element_size());
  char* to = static_cast<char*>(found.mutable_data_ptr());
  for (size_t i = 0; i < pred_boxes.size(); ++i) {
    const int64_t queries = pred_boxes[i].size(2);
    for_each_gap(pred_boxes[i], static_cast<int64_t>(i), all, [&](int64_t s, int64_t b, int64_t first, int64_t last) {
      std::memset(to + (starts[i] + (s * batch + b) * queries + first) * bytes, 0, (last - first) * bytes);
    });
  }
  const Reader up(upstream);
  std::vector<const SetPart*> part_of;
  for (const SetPart& part : all) part_of.insert(part_of.end(), part.sets, &part);
  torch::stable::parallel_for(0, sets * batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / batch, image = i % batch;
      const SetPart& part = *part_of[row];
      const int64_t set = row - part.sets_before, at = part.rows_before + (set * batch + image) * part.queries;
      if (up.at(row, 0) != 1) {
        Tensor& t = gradients[part.tensor];
        with_type(t.scalar_type(), "gradients",
                  [&](auto zero) { scale_image<decltype(zero)>(t, part, set, image, up.at(row, 0)); });
      }
      with_type(box_gradients.scalar_type(), "box_gradients", [&](auto zero) {
        using T = decltype(zero);
        const T* l1 = static_cast<const T*>(box_gradients.const_data_ptr()) + at * 4;
        const int64_t queries = pred_boxes[part.tensor].size(2);
        const int64_t first = ((part.first_set + set) * batch + image) * queries + part.first_query;
        T* data = static_cast<T*>(found.mutable_data_ptr()) + (starts[part.tensor] + first) * 4;
        sum_run(l1, l1 + rows * 4, part.queries * 4, up.at(row, 1), up.at(row, 2), data);
      });
    }
  });
  return found;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("set_loss_backward_", TORCH_BOX(&detops::set_loss_backward_)); }
