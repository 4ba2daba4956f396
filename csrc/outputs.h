// Memory for large results.
#pragma once

#include "common.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace detops {

constexpr uintptr_t kLargeOutput = uintptr_t(4) << 20;  // bytes, as in NumPy

// Asks for huge pages for a new tensor that will be written throughout. Linux hands out fresh memory page by page, and
// with its usual pages of 4 KiB this takes longer than writing them. Only a hint: where huge pages are switched off, or
// not to be had, nothing changes.
inline Tensor in_huge_pages(Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes >= kLargeOutput && tensor.is_cpu()) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace detops
