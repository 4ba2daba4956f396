// Parts of tensors of sets of outputs (S, B, Q, ...): some sets and some queries of one of them, for set_loss and the
// ops around it.
#pragma once

#include "common.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace detops {

struct SetPart {
  int64_t tensor, first_set, sets, first_query, queries;
  int64_t sets_before, rows_before;  // in the parts before it; a row is a query of an image of a set
};

// Reads the five numbers of each part, and checks that they lie within the tensors; `batch` images each.
inline std::vector<SetPart> parts_of(const std::vector<int64_t>& numbers, const std::vector<Tensor>& tensors,
                                     int64_t batch) {
  STD_TORCH_CHECK(numbers.size() % 5 == 0, "parts: expected five numbers of each");
  std::vector<SetPart> parts;
  int64_t sets = 0, rows = 0;
  for (size_t i = 0; i < numbers.size(); i += 5) {
    const int64_t* n = &numbers[i];
    bool fits = n[0] >= 0 && n[0] < static_cast<int64_t>(tensors.size());
    for (int64_t k = 1; k < 5; ++k) fits &= n[k] >= 0;
    fits = fits && n[1] + n[2] <= tensors[n[0]].size(0) && n[3] + n[4] <= tensors[n[0]].size(2);
    STD_TORCH_CHECK(fits, "parts: expected a tensor, and sets and queries within it");
    parts.push_back({n[0], n[1], n[2], n[3], n[4], sets, rows});
    sets += n[2], rows += n[2] * batch * n[4];
  }
  return parts;
}

inline int64_t sets_of(const std::vector<SetPart>& parts) {
  return parts.empty() ? 0 : parts.back().sets_before + parts.back().sets;
}

inline int64_t rows_of(const std::vector<SetPart>& parts, int64_t batch) {
  return parts.empty() ? 0 : parts.back().rows_before + parts.back().sets * batch * parts.back().queries;
}

// Calls visit(set, image, first query, last query) for all queries of a tensor (S, B, Q, ...) that are in no part.
template <class Visit>
void for_each_gap(const Tensor& tensor, int64_t which, const std::vector<SetPart>& parts, const Visit& visit) {
  for (int64_t s = 0; s < tensor.size(0); ++s) {
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (const SetPart& part : parts) {
      if (part.tensor != which || s < part.first_set || s >= part.first_set + part.sets) continue;
      taken.emplace_back(part.first_query, part.first_query + part.queries);
    }
    std::sort(taken.begin(), taken.end());
    taken.emplace_back(tensor.size(2), tensor.size(2));
    int64_t end = 0;
    for (const auto& [first, last] : taken) {
      for (int64_t b = 0; first > end && b < tensor.size(1); ++b) visit(s, b, end, first);
      end = std::max(end, last);
    }
  }
}

// Fills a tensor with zeros where no part is; the numbers of a query are contiguous.
inline void clear_gaps(Tensor& tensor, int64_t which, const std::vector<SetPart>& parts) {
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  char* data = static_cast<char*>(tensor.mutable_data_ptr());
  for_each_gap(tensor, which, parts, [&](int64_t s, int64_t b, int64_t first, int64_t last) {
    for (int64_t q = first; q < last; ++q) {
      const int64_t at = s * tensor.stride(0) + b * tensor.stride(1) + q * tensor.stride(2);
      std::memset(data + at * bytes, 0, tensor.size(3) * bytes);
    }
  });
}

// Calls `call` with a zero of a tensor's type.
template <class F>
void with_type(ScalarType type, const char* name, F&& call) {
  switch (type) {
    case ScalarType::Float: return call(float());
    case ScalarType::Half: return call(Half());
    case ScalarType::BFloat16: return call(BFloat16());
    case ScalarType::Double: return call(double());
    default: STD_TORCH_CHECK(false, name, ": expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace detops
