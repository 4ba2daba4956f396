// The basis of every C++ kernel of detops: reading tensors of any dtype, checking them, and full-width vector code.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>

// DETOPS_CLONES compiles a function once per instruction set; which one runs is chosen when the library is loaded. So a
// wheel built anywhere runs on any x86-64 at that machine's full vector width. Switched off under AddressSanitizer,
// which starts only after the choice.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(DETOPS_NO_CLONES)
#define DETOPS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DETOPS_CLONES
#endif
// DETOPS_FLATTEN inlines all calls in a function, and so compiles them for each of its clones. DETOPS_INLINE does the
// same, marked at the function that is called.
#if defined(__GNUC__)
#define DETOPS_FLATTEN __attribute__((flatten))
#define DETOPS_INLINE __attribute__((always_inline)) inline
#else
#define DETOPS_FLATTEN
#define DETOPS_INLINE inline
#endif

namespace detops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Reads single numbers from a tensor of up to four dimensions, whatever its dtype and strides, as double: exact for
// every dtype but int64 beyond 2^53. Nothing is converted or copied as a whole, so this takes no memory.
class Reader {
 public:
  explicit Reader(const Tensor& tensor)
      : data_(static_cast<const char*>(tensor.const_data_ptr())), type_(tensor.scalar_type()) {
    for (int64_t d = 0; d < tensor.dim() && d < 4; ++d) strides_[d] = tensor.stride(d);
  }

  double at(int64_t i, int64_t j = 0, int64_t k = 0, int64_t l = 0) const {
    const int64_t n = i * strides_[0] + j * strides_[1] + k * strides_[2] + l * strides_[3];
    switch (type_) {
      case ScalarType::Int: return get<int32_t>(n);
      case ScalarType::Long: return static_cast<double>(get<int64_t>(n));
      case ScalarType::Float: return get<float>(n);
      case ScalarType::Double: return get<double>(n);
      case ScalarType::Half: return static_cast<float>(get<Half>(n));
      case ScalarType::BFloat16: return static_cast<float>(get<BFloat16>(n));
      case ScalarType::Short: return get<int16_t>(n);
      case ScalarType::Char: return get<int8_t>(n);
      case ScalarType::Byte: return get<uint8_t>(n);
      case ScalarType::Bool: return get<uint8_t>(n);
      default: return std::nan("");
    }
  }

  static bool reads(ScalarType type) {
    switch (type) {
      case ScalarType::Int:
      case ScalarType::Long:
      case ScalarType::Float:
      case ScalarType::Double:
      case ScalarType::Half:
      case ScalarType::BFloat16:
      case ScalarType::Short:
      case ScalarType::Char:
      case ScalarType::Byte: return true;
      default: return false;
    }
  }

 private:
  template <class T>
  T get(int64_t n) const {
    return reinterpret_cast<const T*>(data_)[n];
  }

  const char* data_;
  ScalarType type_;
  int64_t strides_[4] = {0, 0, 0, 0};
};

inline std::optional<Reader> reader_of(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Reader>(*tensor) : std::nullopt;
}

// Whether a tensor has this shape; -1 stands for any size.
inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t d = 0;
  for (int64_t size : shape) {
    if (size >= 0 && tensor.size(d) != size) return false;
    ++d;
  }
  return true;
}

// The same for tensors of integers or floats.
inline bool has_numbers(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return has_shape(tensor, shape) && Reader::reads(tensor.scalar_type());
}

// The same for tensors of booleans.
inline bool has_booleans(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return has_shape(tensor, shape) && tensor.scalar_type() == ScalarType::Bool;
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
         type == ScalarType::Double;
}

// Whether a map (B, C, H, W) is contiguous or channels last.
inline bool is_dense(const Tensor& map) {
  if (map.is_contiguous()) return true;
  const int64_t c = map.size(1), h = map.size(2), w = map.size(3);
  const auto lies = [&](int64_t d, int64_t stride) { return map.size(d) <= 1 || map.stride(d) == stride; };
  return lies(1, 1) && lies(3, c) && lies(2, c * w) && lies(0, c * w * h);
}

// exp(x) for |x| <= 87, relative error below 2e-7, exp(0) = 1 exactly, as 2^n * p(r) with r = x - n ln 2. Written out
// because it must give the same bits at every position of a loop, vectorised or not.
DETOPS_INLINE float exp_within(float x) {
  constexpr float kWhole = 12582912.0f;  // 3 * 2^22: a float from here to its double has no fraction
  const float shifted = x * 1.44269504088896341f + kWhole, n = shifted - kWhole;
  float r = x - n * 0.693145751953125f;  // the upper bits of ln 2: n * upper is exact
  r -= n * 1.42860682030941723e-6f;      // and the rest of ln 2
  float p = 0.00831253f;                 // the best polynomial of its degree on |r| <= ln(2) / 2 that is 1 at 0
  p = p * r + 0.04189011f;
  p = p * r + 0.16667114f;
  p = p * r + 0.49999232f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t exponent, bits;  // n is in the lowest bits of `shifted`; added to the exponent of p, it is a factor 2^n
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  __builtin_memcpy(&bits, &p, sizeof(bits));
  bits += exponent << 23;
  __builtin_memcpy(&p, &bits, sizeof(bits));
  return p;
}

// exp(x) for x <= 0; below -87 it is exp(-87), about 1e-38.
DETOPS_INLINE float exp_negative(float x) { return exp_within(x > -87.0f ? x : -87.0f); }
inline double exp_negative(double x) { return std::exp(x); }

// x as mantissa * 2^exponent, 1 <= mantissa < 2; x is positive and normal.
DETOPS_INLINE float mantissa(float x, int32_t& exponent) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  exponent = (bits >> 23) - 127;
  bits = (bits & 0x7fffff) | 0x3f800000;
  float m;
  __builtin_memcpy(&m, &bits, sizeof(m));
  return m;
}

// log(x) for positive, normal x, within 2 ulps: n ln 2 + 2 atanh((m - 1) / (m + 1)), m within a factor sqrt(2) of 1.
DETOPS_INLINE float log_of(float x) {
  int32_t n;
  float m = mantissa(x, n);
  const bool high = m > 1.41421356f;
  m = high ? 0.5f * m : m;
  const float power = static_cast<float>(high ? n + 1 : n);
  const float z = (m - 1.0f) / (m + 1.0f), s = z * z;
  float series = 2.0f / 9;
  series = series * s + 2.0f / 7;
  series = series * s + 2.0f / 5;
  series = series * s + 2.0f / 3;
  series = series * s + 2.0f;
  return z * series + power * 0.693147180559945309f;
}
inline double log_of(double x) { return std::log(x); }

}  // namespace detops
