// What a YOLOX network's raw rows predict: the CPU kernel of decode_rows. Points are divided among torch's threads.
#include "common.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kBoxColumns = 5;  // of a row, before its classes: x, y, w, h, objectness
constexpr int64_t kTask = 256;      // points
constexpr int kWide = 16;           // lanes of the maximum

// The highest of numbers that lie together, minus infinity for none; NaN if one is.
template <class T>
DETOPS_INLINE float highest_of(const T* x, int64_t count) {
  float lanes[kWide], sums[kWide] = {};
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  int64_t c = 0;
  for (; c + kWide <= count; c += kWide) {
    for (int i = 0; i < kWide; ++i) {
      const float value = static_cast<float>(x[c + i]);
      lanes[i] = value > lanes[i] ? value : lanes[i];
      sums[i] += value == value ? 0.0f : 1.0f;
    }
  }
  for (; c < count; ++c) {
    const float value = static_cast<float>(x[c]);
    lanes[0] = value > lanes[0] ? value : lanes[0];
    sums[0] += value == value ? 0.0f : 1.0f;
  }
  float best = lanes[0], unknown = sums[0];
  for (int i = 1; i < kWide; ++i) best = lanes[i] > best ? lanes[i] : best, unknown += sums[i];
  return unknown > 0 ? std::numeric_limits<float>::quiet_NaN() : best;
}

#define DETOPS_HIGHEST(T) \
  DETOPS_CLONES float highest(const T* x, int64_t count) { return highest_of(x, count); }
DETOPS_HIGHEST(float)
DETOPS_HIGHEST(Half)
DETOPS_HIGHEST(BFloat16)
DETOPS_HIGHEST(double)

struct Rows {
  float *boxes, *logits, *objectness;
  int64_t* labels;
};

// Decodes points begin .. end - 1 of a level; `start` is the level's first point.
template <class T>
void decode(const Tensor& output, const Reader& points, int64_t start, int64_t b, int64_t begin, int64_t end,
            const Rows& to, int64_t first) {
  const int64_t classes = output.size(2) - kBoxColumns, step = output.stride(2);
  std::vector<T> together(step == 1 ? 0 : static_cast<size_t>(classes));
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(output.const_data_ptr()) + b * output.stride(0) + r * output.stride(1);
    const auto number = [&](int64_t i) { return static_cast<float>(row[i * step]); };
    const auto point = [&](int64_t i) { return static_cast<float>(points.at(start + r, i)); };
    const float stride = point(2), half = stride / 2;
    const float x = number(0) * stride + (point(0) - half), y = number(1) * stride + (point(1) - half);
    const float w = std::exp(number(2)) * half, h = std::exp(number(3)) * half;
    const int64_t a = first + r;
    float* box = to.boxes + 4 * a;
    box[0] = x - w, box[1] = y - h, box[2] = x + w, box[3] = y + h;
    const T* of_class = row + kBoxColumns * step;
    if (step != 1) {
      for (int64_t c = 0; c < classes; ++c) together[c] = of_class[c * step];
      of_class = together.data();
    }
    float best = highest(of_class, classes);
    for (int i = 0; i < 4; ++i) best = std::isfinite(box[i]) ? best : std::numeric_limits<float>::quiet_NaN();
    int64_t label = 0;
    if (best == best) {
      while (static_cast<float>(of_class[label]) != best) ++label;
    }
    to.labels[a] = label, to.logits[a] = best, to.objectness[a] = number(4);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> decode_rows(const std::vector<Tensor> outputs, const Tensor points) {
  STD_TORCH_CHECK(!outputs.empty() && outputs[0].dim() == 3 && outputs[0].size(2) > kBoxColumns,
                  "outputs: expected levels of shape (B, A_l, 5 + C)");
  const int64_t batch = outputs[0].size(0), width = outputs[0].size(2);
  const ScalarType type = outputs[0].scalar_type();
  STD_TORCH_CHECK(is_floating(type), "outputs: expected float32, float16, bfloat16 or float64");
  int64_t count = 0;
  for (const Tensor& output : outputs) {
    STD_TORCH_CHECK(has_shape(output, {batch, -1, width}) && output.scalar_type() == type,
                    "outputs: expected levels of shape (B, A_l, 5 + C) and of one dtype");
    count += output.size(1);
  }
  STD_TORCH_CHECK(has_numbers(points, {count, 3}), "points: expected numbers of shape (A, 3)");
  Tensor boxes = torch::stable::new_empty(outputs[0], {batch, count, 4}, ScalarType::Float);
  Tensor labels = torch::stable::new_empty(outputs[0], {batch, count}, ScalarType::Long);
  Tensor logits = torch::stable::new_empty(outputs[0], {batch, count}, ScalarType::Float);
  Tensor objectness = torch::stable::new_empty(outputs[0], {batch, count}, ScalarType::Float);
  const Rows to{static_cast<float*>(boxes.mutable_data_ptr()), static_cast<float*>(logits.mutable_data_ptr()),
                static_cast<float*>(objectness.mutable_data_ptr()), static_cast<int64_t*>(labels.mutable_data_ptr())};
  const Reader reader(points);
  int64_t start = 0;
  for (const Tensor& output : outputs) {
    const int64_t rows = output.size(1), tasks = (rows + kTask - 1) / kTask;
    torch::stable::parallel_for(0, batch * tasks, 1, [&](int64_t from, int64_t until) {
      for (int64_t i = from; i < until; ++i) {
        const int64_t b = i / tasks, begin = i % tasks * kTask, end = std::min(rows, begin + kTask);
        const int64_t first = b * count + start;
        switch (type) {
          case ScalarType::Float: decode<float>(output, reader, start, b, begin, end, to, first); break;
          case ScalarType::Half: decode<Half>(output, reader, start, b, begin, end, to, first); break;
          case ScalarType::BFloat16: decode<BFloat16>(output, reader, start, b, begin, end, to, first); break;
          default: decode<double>(output, reader, start, b, begin, end, to, first);
        }
      }
    });
    start += rows;
  }
  return {boxes, labels, logits, objectness};
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("decode_rows", TORCH_BOX(&detops::decode_rows)); }
