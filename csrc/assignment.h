// Exact linear sum assignment by shortest augmenting paths: each source gets a sink of its own, at the least total
// cost.
//
// A source without a sink looks for the cheapest path over sinks that are taken to one that is free, along reduced
// costs, which are never negative; all on the path move by one. Ties go to a free sink, then to the lower one.
#pragma once

#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace detops {

constexpr int64_t kSinkLanes = 16;  // rows of costs are padded to a multiple of it, by infinity
constexpr double kInfinite = std::numeric_limits<double>::infinity();

inline int64_t padded_sinks(int64_t count) { return (count + kSinkLanes - 1) / kSinkLanes * kSinkLanes; }

// A sum of costs of which some are forbidden: how many, then the sum of the others. Compared in this order, it is a
// number like any other, and no constant has to be large enough.
struct Ranked {
  double forbidden, sum;
};
inline Ranked operator+(Ranked a, Ranked b) { return {a.forbidden + b.forbidden, a.sum + b.sum}; }
inline Ranked operator-(Ranked a, Ranked b) { return {a.forbidden - b.forbidden, a.sum - b.sum}; }
inline bool operator<(Ranked a, Ranked b) {
  return a.forbidden < b.forbidden || (a.forbidden == b.forbidden && a.sum < b.sum);
}
inline bool operator==(Ranked a, Ranked b) { return a.forbidden == b.forbidden && a.sum == b.sum; }

template <class V>
struct Extremes;
template <>
struct Extremes<double> {
  static constexpr double zero = 0, highest = kInfinite, lowest = -kInfinite;
};
template <>
struct Extremes<Ranked> {
  static constexpr Ranked zero{0, 0}, highest{kInfinite, 0}, lowest{-kInfinite, 0};
};

// Shortens the paths to all sinks by way of one source, `base` from the start, and returns the length of the shortest
// to one that is not reached yet. The length to a sink that is reached counts as the lowest number, which nothing
// shortens.
#define DETOPS_RELAX(T)                                                                                           \
  [[maybe_unused]] DETOPS_CLONES static double relax(const T* cost, const double* v, double base, int64_t source, \
                                                     int64_t count, double* shortest, int64_t* previous) {        \
    double least[kSinkLanes];                                                                                     \
    for (double& value : least) value = kInfinite;                                                                \
    for (int64_t start = 0; start < count; start += kSinkLanes) {                                                 \
      for (int64_t i = 0; i < kSinkLanes; ++i) {                                                                  \
        const int64_t j = start + i;                                                                              \
        const double d = (static_cast<double>(cost[j]) - v[j]) + base, before = shortest[j];                      \
        const double s = d < before ? d : before;                                                                 \
        shortest[j] = s;                                                                                          \
        previous[j] = d < before ? source : previous[j];                                                          \
        const double open = s > -kInfinite ? s : kInfinite;                                                       \
        least[i] = open < least[i] ? open : least[i];                                                             \
      }                                                                                                           \
    }                                                                                                             \
    double found = least[0];                                                                                      \
    for (const double value : least) found = value < found ? value : found;                                       \
    return found;                                                                                                 \
  }
DETOPS_RELAX(float)
DETOPS_RELAX(double)
#undef DETOPS_RELAX

template <class T>
Ranked relax(const T* cost, const Ranked* v, Ranked base, int64_t source, int64_t count, Ranked* shortest,
             int64_t* previous) {
  Ranked least = Extremes<Ranked>::highest;
  for (int64_t j = 0; j < count; ++j) {
    const double c = static_cast<double>(cost[j]);
    const Ranked d = ((std::isfinite(c) ? Ranked{0, c} : Ranked{1, 0}) - v[j]) + base;
    if (d < shortest[j]) shortest[j] = d, previous[j] = source;
    if (shortest[j].forbidden > -kInfinite && shortest[j] < least) least = shortest[j];
  }
  return least;
}

// The search for one kind of sum; its memory serves many problems.
template <class V>
class Paths {
 public:
  // Finds the sink of each of n sources among m >= n sinks, whose costs are rows of `stride` numbers.
  template <class T>
  void solve(const T* cost, int64_t n, int64_t m, int64_t stride, int64_t* sink_of) {
    const int64_t width = std::is_same_v<V, double> ? padded_sinks(m) : m;
    u_.assign(n, Extremes<V>::zero);
    v_.assign(width, Extremes<V>::zero);
    source_of_.assign(m, -1);
    shortest_.resize(width);
    previous_.resize(width);
    for (int64_t i = 0; i < n; ++i) {
      std::fill(shortest_.begin(), shortest_.end(), Extremes<V>::highest);
      std::fill(previous_.begin(), previous_.end(), i);
      reached_.clear();
      V reach = Extremes<V>::zero;
      int64_t source = i, sink = -1;
      while (source >= 0) {
        const V least = relax(cost + source * stride, v_.data(), reach - u_[source], source, width, shortest_.data(),
                              previous_.data());
        sink = choose(least, m);
        reach = shortest_[sink];
        shortest_[sink] = Extremes<V>::lowest;
        reached_.push_back({sink, reach});
        source = source_of_[sink];
      }
      u_[i] = u_[i] + reach;
      for (const Reached& step : reached_) {
        const V slack = reach - step.length;
        const int64_t owner = source_of_[step.sink];
        if (owner >= 0) u_[owner] = u_[owner] + slack;
        v_[step.sink] = v_[step.sink] - slack;
      }
      while (true) {
        const int64_t from = previous_[sink];
        source_of_[sink] = from;
        if (from == i) {
          sink_of[i] = sink;
          break;
        }
        std::swap(sink_of[from], sink);
      }
    }
  }

 private:
  struct Reached {
    int64_t sink;
    V length;
  };

  // The first free sink at the least length, else the first; where no length is a number, any that is not reached.
  int64_t choose(V least, int64_t m) const {
    int64_t first = -1, open = -1;
    for (int64_t j = 0; j < m; ++j) {
      if (shortest_[j] == least) {
        if (source_of_[j] < 0) return j;
        if (first < 0) first = j;
      } else if (open < 0 && !(shortest_[j] == Extremes<V>::lowest)) {
        open = j;
      }
    }
    return first >= 0 ? first : open;
  }

  std::vector<V> u_, v_, shortest_;
  std::vector<int64_t> source_of_, previous_;
  std::vector<Reached> reached_;
};

// Problems of one shape after the other, costs as rows of float or double, one row per box, of one number per query.
template <class T>
class AssignmentSolver {
 public:
  // Memory for the costs of a problem: `boxes` rows of `row_size(queries)` numbers.
  static int64_t row_size(int64_t queries) { return padded_sinks(queries); }
  T* costs(int64_t boxes, int64_t queries) {
    costs_.resize(boxes * row_size(queries));
    return costs_.data();
  }

  // Solves the problem whose costs were written there; writes the query of each box, or -1 where there are fewer.
  void solve(int64_t boxes, int64_t queries, int64_t* query_of) {
    const int64_t stride = row_size(queries);
    bool finite = true;
    for (int64_t n = 0; n < boxes; ++n) {
      T* row = costs_.data() + n * stride;
      finite &= all_finite(row, queries);
      std::fill(row + queries, row + stride, std::numeric_limits<T>::infinity());
    }
    if (boxes <= queries) return find(costs_.data(), boxes, queries, stride, finite, query_of);
    const int64_t across = row_size(boxes);
    turned_.assign(queries * across, std::numeric_limits<T>::infinity());
    for (int64_t n = 0; n < boxes; ++n) {
      for (int64_t q = 0; q < queries; ++q) turned_[q * across + n] = costs_[n * stride + q];
    }
    box_of_.resize(queries);
    find(turned_.data(), queries, boxes, across, finite, box_of_.data());
    std::fill(query_of, query_of + boxes, -1);
    for (int64_t q = 0; q < queries; ++q) query_of[box_of_[q]] = q;
  }

 private:
  static bool all_finite(const T* row, int64_t count) {
    T poison = 0;
    for (int64_t q = 0; q < count; ++q) poison += row[q] * T(0);
    return poison == T(0);
  }

  void find(const T* cost, int64_t n, int64_t m, int64_t stride, bool finite, int64_t* sink_of) {
    finite ? plain_.solve(cost, n, m, stride, sink_of) : ranked_.solve(cost, n, m, stride, sink_of);
  }

  std::vector<T> costs_, turned_;
  std::vector<int64_t> box_of_;
  Paths<double> plain_;
  Paths<Ranked> ranked_;
};

}  // namespace detops
