// Pixels that each of some masks shares with each of others, from run lengths: the CPU kernel of rle_overlaps.
//
// Pairs whose extents do not meet share nothing. Most masks have few runs in any column: their first runs, their second
// ones and so on are kept by column, and compared a vector of columns at a time. Of other pairs, two masks of few runs
// are merged run by run. Where that is more work than looking at every pixel, 64 at once, the runs become bits, a strip
// of the image at a time, so that the bits of all masks stay in the cache.
#include "run_lengths.h"

namespace detops {
namespace {

constexpr int64_t kStrip = 1 << 15;  // positions; 4 KiB of bits per mask
constexpr int64_t kWords = kStrip / 64;
constexpr int64_t kWordsPerRun = 8;  // words that take as long to compare as one run to merge

constexpr int64_t kMostLayers = 6;

// The runs of a mask by column, cut where columns end: layer k has the k-th run of each column that has so many.
struct Layers {
  struct Layer {
    int64_t first, last;              // columns [first, last)
    std::vector<int32_t> begin, end;  // rows of each; both 0 where there is no run
  };
  std::vector<Layer> layers;
  bool whole = false;  // whether these are all runs

  Layers() = default;
  Layers(const RunLengths& masks, int64_t n, const Measures& extent, int64_t height, int64_t pixels) {
    std::vector<uint8_t> used(extent.x2 - extent.x1);
    int64_t column = 0, top = 0;
    whole = true;
    masks.each(n, pixels, [&](int64_t first, int64_t end) {
      while (whole && first < end) {
        for (; first - top >= height; ++column) top += height;
        const int64_t until = std::min(end, top + height);
        const size_t k = used[column - extent.x1]++;
        whole = k < kMostLayers;
        if (!whole) break;
        if (k == layers.size()) layers.push_back({column, column, {}, {}});
        Layer& layer = layers[k];
        for (; layer.last < column; ++layer.last) layer.begin.push_back(0), layer.end.push_back(0);
        layer.begin.push_back(static_cast<int32_t>(first - top)),
            layer.end.push_back(static_cast<int32_t>(until - top));
        ++layer.last;
        first = until;
      }
    });
    if (!whole) layers.clear();
  }
};

DETOPS_CLONES int64_t shared_rows(const int32_t* begin, const int32_t* end, const int32_t* other_begin,
                                  const int32_t* other_end, int64_t columns) {
  int32_t shared = 0;  // an image has fewer than 2^31 pixels
  for (int64_t c = 0; c < columns; ++c) {
    const int32_t from = begin[c] > other_begin[c] ? begin[c] : other_begin[c];
    const int32_t to = end[c] < other_end[c] ? end[c] : other_end[c];
    shared += to > from ? to - from : 0;
  }
  return shared;
}

int64_t shared_layers(const Layers& a, const Layers& b) {
  int64_t shared = 0;
  for (const Layers::Layer& p : a.layers) {
    for (const Layers::Layer& q : b.layers) {
      const int64_t first = std::max(p.first, q.first), last = std::min(p.last, q.last);
      if (first >= last) continue;
      shared += shared_rows(p.begin.data() + first - p.first, p.end.data() + first - p.first,
                            q.begin.data() + first - q.first, q.end.data() + first - q.first, last - first);
    }
  }
  return shared;
}

int64_t merged(const int32_t* a, const int32_t* a_end, const int32_t* b, const int32_t* b_end) {
  int64_t shared = 0, left_a = a < a_end ? *a : 0, left_b = b < b_end ? *b : 0;
  bool one_a = false, one_b = false;
  while (a < a_end && b < b_end) {
    const int64_t step = std::min(left_a, left_b);
    shared += one_a && one_b ? step : 0;
    left_a -= step, left_b -= step;
    if (left_a <= 0) {
      one_a = !one_a;
      if (++a < a_end) left_a = *a;
    }
    if (left_b <= 0) {
      one_b = !one_b;
      if (++b < b_end) left_b = *b;
    }
  }
  return shared;
}

DETOPS_CLONES int64_t shared_bits(const uint64_t* a, const uint64_t* b, int64_t count) {
  int64_t shared = 0;
  for (int64_t i = 0; i < count; ++i) shared += __builtin_popcountll(a[i] & b[i]);
  return shared;
}

// One side's masks: how large they are, and their bits in the strip that is being looked at.
class Side {
 public:
  Side(const Tensor& counts, const Tensor& offsets, int64_t height, int64_t pixels)
      : masks(counts, offsets), extents(masks.count), layers(masks.count), pixels_(pixels), cursor_(masks.count),
        low(masks.count), high(masks.count) {
    torch::stable::parallel_for(0, masks.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        extents[n] = Measures(masks, n, height, pixels);
        layers[n] = Layers(masks, n, extents[n], height, pixels);
      }
    });
  }

  void allocate() {
    bits_.resize(masks.count * kWords);
    for (int64_t n = 0; n < masks.count; ++n) cursor_[n] = {masks.begin(n), 0, false};
  }

  const uint64_t* bits(int64_t n) const { return bits_.data() + n * kWords; }

  // Writes the bits of the strip [begin, begin + kStrip); strips come in order.
  void decode(int64_t n, int64_t begin) {
    uint64_t* words = bits_.data() + n * kWords;
    std::fill(words, words + kWords, 0);
    low[n] = kWords, high[n] = 0;
    Cursor& at = cursor_[n];
    while (at.count < masks.end(n) && at.position < begin + kStrip) {
      const int64_t next = std::min(at.position + std::max<int64_t>(*at.count, 0), pixels_);
      if (at.one && at.position < next) {
        const int64_t first = std::max(at.position - begin, int64_t{0}), end = std::min(next - begin, kStrip);
        if (first < end) fill(words, first, end, n);
      }
      if (next > begin + kStrip) break;  // goes on in the next strip
      at.position = next, at.one = !at.one, ++at.count;
    }
  }

  const RunLengths masks;
  std::vector<Measures> extents;
  std::vector<Layers> layers;

 private:
  struct Cursor {
    const int32_t* count = nullptr;
    int64_t position = 0;  // where this run begins
    bool one = false;
  };

  void fill(uint64_t* words, int64_t first, int64_t end, int64_t n) {
    const int64_t from = first >> 6, to = (end - 1) >> 6;
    const uint64_t head = ~uint64_t{0} << (first & 63), tail = ~uint64_t{0} >> (63 - ((end - 1) & 63));
    low[n] = std::min(low[n], from), high[n] = std::max(high[n], to + 1);
    if (from == to) {
      words[from] |= head & tail;
      return;
    }
    words[from] |= head;
    for (int64_t w = from + 1; w < to; ++w) words[w] = ~uint64_t{0};
    words[to] |= tail;
  }

  int64_t pixels_;
  std::vector<Cursor> cursor_;
  std::vector<uint64_t> bits_;

 public:
  std::vector<int64_t> low, high;  // words of the strip that are not 0
};

enum : uint8_t { kApart, kLayers, kMerged, kBits };

uint8_t way(const Side& a, int64_t i, const Side& b, int64_t j, int64_t height) {
  const Measures &p = a.extents[i], &q = b.extents[j];
  const int64_t left = std::max(p.x1, q.x1), right = std::min(p.x2, q.x2);
  if (left >= right || std::max(p.y1, q.y1) >= std::min(p.y2, q.y2)) return kApart;
  if (a.layers[i].whole && b.layers[j].whole) return kLayers;
  const int64_t runs = (a.masks.end(i) - a.masks.begin(i)) + (b.masks.end(j) - b.masks.begin(j));
  return runs * kWordsPerRun <= (right - left) * height / 64 + kWords ? kMerged : kBits;
}

Tensor rle_overlaps(const Tensor counts, const Tensor offsets, const Tensor other_counts, const Tensor other_offsets,
                    int64_t height, int64_t width) {
  RunLengths::check("", counts, offsets);
  RunLengths::check("other_", other_counts, other_offsets);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX / width,
                  "height, width: expected at least 1, and less than 2^31 pixels");
  const int64_t pixels = height * width;
  Side a(counts, offsets, height, pixels), b(other_counts, other_offsets, height, pixels);
  const int64_t rows = a.masks.count, columns = b.masks.count;
  Tensor out = torch::stable::new_empty(counts, {rows, columns}, ScalarType::Long);
  int64_t* shared = static_cast<int64_t*>(out.mutable_data_ptr());
  // Of masks and themselves half the pairs are enough.
  const bool same = counts.const_data_ptr() == other_counts.const_data_ptr() &&
                    offsets.const_data_ptr() == other_offsets.const_data_ptr() && rows == columns;
  std::vector<uint8_t> dense(rows * columns), any(rows);
  // Calls each(i, first) for all rows, where columns from `first` on are to be compared; long rows and short ones in
  // turns, so that all threads have as much to do.
  const auto compare = [&](const auto& each) {
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = !same ? k : k % 2 == 0 ? k / 2 : rows - 1 - k / 2;
        each(i, same ? i : 0);
      }
    });
  };
  compare([&](int64_t i, int64_t first) {
    for (int64_t j = first; j < columns; ++j) {
      const uint8_t kind = way(a, i, b, j, height);
      dense[i * columns + j] = kind == kBits;
      any[i] |= kind == kBits;
      int64_t& found = shared[i * columns + j] = 0;
      if (kind == kLayers) found = shared_layers(a.layers[i], b.layers[j]);
      if (kind == kMerged) found = merged(a.masks.begin(i), a.masks.end(i), b.masks.begin(j), b.masks.end(j));
    }
  });
  if (std::any_of(any.begin(), any.end(), [](uint8_t v) { return v != 0; })) {
    a.allocate(), b.allocate();
    for (int64_t strip = 0; strip < pixels; strip += kStrip) {
      torch::stable::parallel_for(0, rows + columns, 4, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) n < rows ? a.decode(n, strip) : b.decode(n - rows, strip);
      });
      compare([&](int64_t i, int64_t first) {
        for (int64_t j = first; any[i] && j < columns; ++j) {
          if (!dense[i * columns + j]) continue;
          const int64_t from = std::max(a.low[i], b.low[j]), to = std::min(a.high[i], b.high[j]);
          if (from < to) shared[i * columns + j] += shared_bits(a.bits(i) + from, b.bits(j) + from, to - from);
        }
      });
    }
  }
  for (int64_t i = 0; same && i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j) shared[i * columns + j] = shared[j * columns + i];
  }
  return out;
}

}  // namespace
}  // namespace detops

STABLE_TORCH_LIBRARY_IMPL(detops, CPU, m) { m.impl("rle_overlaps", TORCH_BOX(&detops::rle_overlaps)); }
