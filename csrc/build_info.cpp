// What `detops.env()` reports about this library: compiler, flags, and the vector code that this machine runs.
#include "common.h"

#include <string>

#if defined(_WIN32)
#define DETOPS_EXPORT __declspec(dllexport)
#else
#define DETOPS_EXPORT __attribute__((visibility("default")))
#endif

namespace {

const char* vector_code() {
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(DETOPS_NO_CLONES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "x86-64-v3 (AVX2)";
  return "x86-64 baseline";
#else
  return "the compiler's default";
#endif
}

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

extern "C" DETOPS_EXPORT const char* detops_build_info() {
  static const std::string text = std::string(compiler()) + "\n" + DETOPS_FLAGS + "\n" + vector_code();
  return text.c_str();
}
