// Exact linear sum assignment of many problems: the CPU kernel of assignment. Problems are divided among torch's
// threads.
#include "assignment.h"
#include "labels.h"

namespace detops {
namespace {

template <class T>
void solve_all(const Tensor& cost, const Labels& columns, int64_t* out) {
  const int64_t count = cost.size(0), queries = cost.size(1), boxes = cost.size(2);
  const Reader reader(cost);
  const bool direct = cost.scalar_type() == (std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Double);
  const int64_t down = cost.stride(1), across = cost.stride(2);
  const T* data = direct ? static_cast<const T*>(cost.const_data_ptr()) : nullptr;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    AssignmentSolver<T> solver;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = columns.rows(p), stride = AssignmentSolver<T>::row_size(queries);
      int64_t* query_of = out + p * boxes;
      std::fill(query_of + n, query_of + boxes, -1);
      if (n == 0) continue;
      T* row = solver.costs(n, queries);
      for (int64_t i = 0; i < n; ++i, row += stride) {
        if (direct) {
          const T* from = data + p * cost.stride(0) + i * across;
          for (int64_t q = 0; q < queries; ++q) row[q] = from[q * down];
        } else {
          for (int64_t q = 0; q < queries; ++q) row[q] = static_cast<T>(reader.at(p, q, i));
        }
      }
      solver.solve(n, queries, query_of);
    }
  });
}

Tensor assignment(const Tensor cost, const std::optional<Tensor> sizes) {
  STD_TORCH_CHECK(has_numbers(cost, {-1, -1, -1}), "cost: expected numbers of shape (P, Q, N)");
  STD_TORCH_CHECK(!sizes || has_numbers(*sizes, {cost.size(0)}), "sizes: expected numbers of shape (P,)");
  Tensor query_of = torch::stable::new_empty(cost, {cost.size(0), cost.size(2)}, ScalarType::Long);
  const Labels columns(std::nullopt, sizes, cost.size(2));
  int64_t* out = static_cast<int64_t*>(query_of.mutable_data_ptr());
  switch (cost.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Half:
    case ScalarType::BFloat16: solve_all<float>(cost, columns, out); break;
    default: solve_all<double>(cost, columns, out);
  }
  return query_of;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("assignment", TORCH_BOX(&detops::assignment)); }
