// uint8 images of any sizes into one resized, normalised, padded batch: the CPU kernel of resize_normalize_pad.
//
// The rows of the batch form one range, which is divided among torch's threads. For a row of the result, the rows of
// the image that it depends on are blended first, with their channels as they are stored, which is plain vector code;
// then columns are picked from that one row of floats, blended and normalised. Vertical first, because images mostly
// shrink: the picking, which vectorises badly, is then done once per pixel of the result.
#include "common.h"
#include "outputs.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace detops {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kMaxStep = 4;  // bytes between pixels that are read as one run: grey, RGB, and three channels of RGBA

constexpr int64_t kSerialValues = 8192;  // fewer values per channel cost less than waking a second thread

// The pixels of an axis that make up each resized one: `count` of them from `first` on, with weights that add up to 1.
struct Axis {
  int64_t size, resized, count;
  std::vector<int32_t> first;
  std::vector<float> weight;  // (count, resized)

  // In units of 1 / (2 resized) pixels, pixel j lies (2 j + 1) resized - (2 i + 1) size from the centre of resized
  // pixel i, and its weight falls to 0 at `reach`. Integers, so that indices are exact.
  Axis(int64_t size, int64_t resized, bool antialias) : size(size), resized(resized) {
    const int64_t reach = 2 * (antialias ? std::max(size, resized) : resized);
    count = std::min((reach + resized - 1) / resized, size);
    first.resize(resized);
    weight.resize(count * resized);
    for (int64_t i = 0; i < resized; ++i) {
      const int64_t center = (2 * i + 1) * size, left = center - reach + resized;
      const int64_t begin = left < 0 ? 0 : std::min(left / (2 * resized), size - count);
      const auto tent = [&](int64_t t) {
        return std::max<int64_t>(0, reach - std::abs((2 * (begin + t) + 1) * resized - center));
      };
      int64_t total = 0;
      for (int64_t t = 0; t < count; ++t) total += tent(t);
      first[i] = static_cast<int32_t>(begin);
      for (int64_t t = 0; t < count; ++t) {
        weight[t * resized + i] = static_cast<float>(static_cast<double>(tent(t)) / static_cast<double>(total));
      }
    }
  }
};

struct Image {
  const uint8_t* data;
  int64_t channels, stride_c, stride_h, stride_w;
  Axis rows, columns;
  bool one_run;         // whether a row's channels are read together, as one line of bytes
  int64_t step, plane;  // floats from a pixel to the next, and from a channel to the next, in the blended row

  Image(const Tensor& image, int64_t height, int64_t width, bool antialias)
      : data(static_cast<const uint8_t*>(image.const_data_ptr())), channels(image.size(0)), stride_c(image.stride(0)),
        stride_h(image.stride(1)), stride_w(image.stride(2)), rows(image.size(1), height, antialias),
        columns(image.size(2), width, antialias) {
    one_run = (stride_c == 1 || channels == 1) && stride_w >= 1 && stride_w <= kMaxStep;
    step = one_run ? stride_w : 1;
    plane = one_run ? 1 : columns.size;
    for (int32_t& offset : columns.first) offset *= static_cast<int32_t>(step);
  }

  int64_t run() const { return one_run ? (columns.size - 1) * step + channels : columns.size; }
  int64_t runs() const { return one_run ? 1 : channels; }
};

DETOPS_CLONES void blend(const uint8_t* a, const uint8_t* b, float weight_a, float weight_b, float* out,
                         int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = weight_a * a[i] + weight_b * b[i];
}

DETOPS_CLONES void add(const uint8_t* a, const uint8_t* b, float weight_a, float weight_b, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += weight_a * a[i] + weight_b * b[i];
}

void add_strided(const uint8_t* a, int64_t stride, float weight, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += weight * a[i * stride];
}

// Resized row y, with its channels as they are stored; not yet resized along x.
void blend_rows(const Image& image, int64_t y, float* out) {
  const Axis& axis = image.rows;
  const int64_t length = image.run(), stride = image.one_run ? 1 : image.stride_w;
  for (int64_t c = 0; c < image.runs(); ++c, out += length) {
    const uint8_t* source = image.data + c * image.stride_c + axis.first[y] * image.stride_h;
    const auto weight = [&](int64_t t) { return axis.weight[t * axis.resized + y]; };
    if (stride == 1) {
      for (int64_t t = 0; t < axis.count; t += 2) {
        const bool pair = t + 1 < axis.count;
        const uint8_t* a = source + t * image.stride_h;
        (t == 0 ? blend : add)(a, pair ? a + image.stride_h : a, weight(t), pair ? weight(t + 1) : 0.0f, out, length);
      }
    } else {
      std::fill(out, out + length, 0.0f);
      for (int64_t t = 0; t < axis.count; ++t) {
        add_strided(source + t * image.stride_h, stride, weight(t), out, length);
      }
    }
  }
}

DETOPS_CLONES void pick_two(const float* row, const int32_t* first, const float* weight, int64_t step, float scale,
                            float shift, float* out, int64_t count) {
  const float* second = weight + count;
  for (int64_t x = 0; x < count; ++x) {
    const float value = weight[x] * row[first[x]] + second[x] * row[first[x] + step];
    out[x] = value * scale + shift;
  }
}

DETOPS_CLONES void pick(const float* row, const int32_t* first, const float* weight, int64_t taps, int64_t step,
                        float scale, float shift, float* out, int64_t count) {
  for (int64_t x = 0; x < count; ++x) out[x] = shift;
  for (int64_t t = 0; t < taps; ++t, row += step, weight += count) {
    for (int64_t x = 0; x < count; ++x) out[x] += weight[x] * row[first[x]] * scale;
  }
}

// One channel of a resized row, normalised.
void pick_columns(const Image& image, const float* row, float scale, float shift, float* out) {
  const Axis& axis = image.columns;
  if (axis.count == 2) {
    pick_two(row, axis.first.data(), axis.weight.data(), image.step, scale, shift, out, axis.resized);
  } else {
    pick(row, axis.first.data(), axis.weight.data(), axis.count, image.step, scale, shift, out, axis.resized);
  }
}

DETOPS_CLONES void cast(const float* in, Half* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Half>(in[i]);
}

// Rounds to the nearest, ties to even, as BFloat16 does; its branch for NaN would keep the loop from being vectorised.
DETOPS_CLONES void cast(const float* in, BFloat16* out, int64_t count) {
  uint16_t* bits = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word;
    __builtin_memcpy(&word, in + i, sizeof(word));
    const uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    bits[i] = static_cast<uint16_t>(in[i] != in[i] ? 0x7fc0 : rounded);
  }
}

struct Job {
  std::vector<Image> images;
  int64_t height, width;
  float scale[kChannels], shift[kChannels];
  bool reverse_channels;
};

// Writes row y of image b: for each channel the picked columns, then zeros.
template <class T>
void write_row(const Job& job, int64_t b, int64_t y, float* blended, float* picked, T* batch) {
  const Image& image = job.images[b];
  const bool inside = y < image.rows.resized;
  const int64_t filled = inside ? image.columns.resized : 0;
  if (inside) blend_rows(image, y, blended);
  for (int64_t c = 0; c < kChannels; ++c) {
    T* out = batch + ((b * kChannels + c) * job.height + y) * job.width;
    if (inside) {
      const int64_t source = image.channels == 1 ? 0 : job.reverse_channels ? kChannels - 1 - c : c;
      const float* row = blended + source * image.plane;
      if constexpr (std::is_same_v<T, float>) {
        pick_columns(image, row, job.scale[c], job.shift[c], out);
      } else {
        pick_columns(image, row, job.scale[c], job.shift[c], picked);
        cast(picked, out, filled);
      }
    }
    std::fill(out + filled, out + job.width, T(0.0f));
  }
}

template <class T>
void write(const Job& job, Tensor& batch) {
  T* data = static_cast<T*>(batch.mutable_data_ptr());
  int64_t longest = 0;
  for (const Image& image : job.images) longest = std::max(longest, image.run() * image.runs());
  const int64_t rows = static_cast<int64_t>(job.images.size()) * job.height;
  torch::stable::parallel_for(0, rows, 1 + kSerialValues / job.width, [&](int64_t begin, int64_t end) {
    std::vector<float> blended(longest), picked(job.width);
    for (int64_t row = begin; row < end; ++row) {
      write_row(job, row / job.height, row % job.height, blended.data(), picked.data(), data);
    }
  });
}

Tensor resize_normalize_pad(const std::vector<Tensor> images, const std::vector<int64_t> sizes, int64_t height,
                            int64_t width, const std::vector<double> mean, const std::vector<double> deviation,
                            bool reverse_channels, bool antialias, ScalarType dtype) {
  STD_TORCH_CHECK(!images.empty(), "images: expected at least one");
  STD_TORCH_CHECK(sizes.size() == 2 * images.size(), "sizes: expected a height and a width for each image");
  STD_TORCH_CHECK(mean.size() == kChannels && deviation.size() == kChannels, "mean, std: expected three numbers");
  Job job{{}, height, width, {}, {}, reverse_channels};
  job.images.reserve(images.size());
  for (size_t b = 0; b < images.size(); ++b) {
    const Tensor& image = images[b];
    STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte, "images: expected uint8");
    STD_TORCH_CHECK(image.dim() == 3 && (image.size(0) == 1 || image.size(0) == kChannels) && image.numel() > 0,
                    "images: expected shape (3, H, W) or (1, H, W)");
    STD_TORCH_CHECK(image.size(1) < INT32_MAX / kMaxStep && image.size(2) < INT32_MAX / kMaxStep,
                    "images: expected sides below 2^29");
    const int64_t h = sizes[2 * b], w = sizes[2 * b + 1];
    STD_TORCH_CHECK(h >= 1 && h <= height && w >= 1 && w <= width, "sizes: expected 1 to the size of the batch");
    job.images.emplace_back(image, h, w, antialias);
  }
  for (int64_t c = 0; c < kChannels; ++c) {
    job.scale[c] = static_cast<float>(1 / deviation[c]);
    job.shift[c] = static_cast<float>(-mean[c] / deviation[c]);
  }
  const int64_t shape[] = {static_cast<int64_t>(images.size()), kChannels, height, width};
  Tensor batch = in_huge_pages(torch::stable::new_empty(images[0], {shape, 4}, dtype));
  switch (dtype) {
    case ScalarType::Float: write<float>(job, batch); break;
    case ScalarType::Half: write<Half>(job, batch); break;
    case ScalarType::BFloat16: write<BFloat16>(job, batch); break;
    default: STD_TORCH_CHECK(false, "dtype: expected float32, float16 or bfloat16");
  }
  return batch;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("resize_normalize_pad", TORCH_BOX(&detops::resize_normalize_pad)); }
