// Places of the candidates whose logits are nearest to 0: the CPU kernel of uncertain_places.
#include "map_points.h"

#include <algorithm>
#include <type_traits>

namespace detops {
namespace {

constexpr int64_t kPoints = 1024;  // whose places are held at once

// Bits of a magnitude: unsigned numbers in the order of magnitudes, NaN last.
#define DETOPS_MAGNITUDES(C, Bits)                                                                           \
  DETOPS_CLONES inline void magnitudes(const C* __restrict__ values, int64_t count, Bits* __restrict__ to) { \
    for (int64_t i = 0; i < count; ++i) {                                                                    \
      Bits bits;                                                                                             \
      __builtin_memcpy(&bits, values + i, sizeof(bits));                                                     \
      to[i] = bits & (~Bits(0) >> 1);                                                                        \
    }                                                                                                        \
  }
DETOPS_MAGNITUDES(float, uint32_t)
DETOPS_MAGNITUDES(double, uint64_t)
#undef DETOPS_MAGNITUDES

// Writes the places of the `count` least keys, ascending; of equal keys the first are taken. `room` is memory to use.
template <class Bits>
void choose(const std::vector<Bits>& keys, std::vector<Bits>& room, int64_t count, int64_t* out) {
  if (count == 0) return;
  // Counted by their upper bits, keys show which of these the last chosen one has; only such keys are compared.
  constexpr int kBins = 1 << 12, kShift = 8 * sizeof(Bits) - 1 - 12;
  int32_t bins[kBins] = {};
  for (Bits key : keys) ++bins[key >> kShift];
  int64_t before = 0, bin = 0;
  for (; before + bins[bin] < count; ++bin) before += bins[bin];
  room.resize(bins[bin] + 1);
  int64_t there = 0;
  for (Bits key : keys) {
    room[there] = key;
    there += static_cast<int64_t>(key >> kShift) == bin ? 1 : 0;
  }
  const auto nth = room.begin() + (count - before - 1);
  std::nth_element(room.begin(), nth, room.begin() + there);
  const Bits last = *nth;
  int64_t ties = count - before, chosen = 0;
  for (auto key = room.begin(); key < nth; ++key) ties -= *key < last ? 1 : 0;
  for (int64_t k = 0; chosen < count; ++k) {
    const bool tie = keys[k] == last && ties > 0;
    out[chosen] = k;
    chosen += keys[k] < last || tie ? 1 : 0;
    ties -= tie ? 1 : 0;
  }
}

template <class T, class C>
Tensor compute(const Tensor& maps, const Tensor& index, const Tensor& points, int64_t count, bool border) {
  using Bits = std::conditional_t<std::is_same_v<C, double>, uint64_t, uint32_t>;
  const int64_t batch = points.size(0), rows = points.size(1), number = points.size(2);
  const int64_t queries = maps.size(1), height = maps.size(2), width = maps.size(3);
  Tensor result = torch::stable::new_empty(maps, {batch, rows, count}, ScalarType::Long);
  int64_t* out = static_cast<int64_t*>(result.mutable_data_ptr());
  const T* data = static_cast<const T*>(maps.const_data_ptr());
  const Reader chosen(index), reader(points);
  torch::stable::parallel_for(0, batch * rows, 1, [&](int64_t begin, int64_t end) {
    PointTable<C> table;
    std::vector<Bits> keys(number), room;
    C values[kPoints];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / rows, m = row % rows, q = static_cast<int64_t>(chosen.at(b, m));
      if (q < 0 || q >= queries || height == 0 || width == 0) {
        for (int64_t k = 0; k < count; ++k) out[row * count + k] = k;
        continue;
      }
      const T* own = data + b * maps.stride(0) + q * maps.stride(1);
      for (int64_t from = 0; from < number; from += kPoints) {
        const int64_t some = std::min(kPoints, number - from);
        table.fill(points, reader, b, m, from, some, height, width, maps.stride(2), maps.stride(3), false, border);
        read_points(own, table, some, values);
        magnitudes(values, some, keys.data() + from);
      }
      choose(keys, room, count, out + row * count);
    }
  });
  return result;
}

Tensor uncertain_places(const Tensor maps, const Tensor index, const Tensor points, int64_t count, bool border) {
  check_map_points(maps, index, points);
  STD_TORCH_CHECK(count >= 0 && count <= points.size(2), "count: expected 0 to the number of candidates");
  switch (maps.scalar_type()) {
    case ScalarType::Float: return compute<float, float>(maps, index, points, count, border);
    case ScalarType::Double: return compute<double, double>(maps, index, points, count, border);
    case ScalarType::Half: return compute<Half, float>(maps, index, points, count, border);
    case ScalarType::BFloat16: return compute<BFloat16, float>(maps, index, points, count, border);
    default: STD_TORCH_CHECK(false, "maps: expected float32, float16, bfloat16 or float64");
  }
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("uncertain_places", TORCH_BOX(&detops::uncertain_places)); }
