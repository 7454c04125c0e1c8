// See mapped_pages.h.
#include "plasma/mapped_pages.h"

#include <sys/mman.h>

#include <algorithm>

#include "plasma/layout.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ray::plasma {

MappedPages::MappedPages(uint8_t* base, uint64_t pool_bytes, uint64_t page_bytes)
    : base_(base),
      pool_bytes_(pool_bytes),
      page_bytes_(page_bytes),
      whole_(std::make_unique<std::atomic<uint8_t>[]>(pool_bytes / kChunkBytes + 1)) {}

void MappedPages::Map(uint64_t from, uint64_t to, Reach reach) {
  if (page_bytes_ > kPageBytes) return;
  while (from < to) {
    const uint64_t chunk = from / kChunkBytes;
    const uint64_t chunk_from = chunk * kChunkBytes;
    const uint64_t chunk_end = std::min(pool_bytes_, chunk_from + kChunkBytes);
    const uint64_t end = std::min(to, chunk_end);
    if (whole_[chunk].load(std::memory_order_relaxed) == 0) {
      const uint64_t page_from = reach == Reach::kChunks ? chunk_from : from / kPageBytes * kPageBytes;
      const uint64_t page_end = reach == Reach::kChunks ? chunk_end : end;
      const bool done = madvise(base_ + page_from, page_end - page_from, MADV_POPULATE_WRITE) == 0;
      if (done && page_from == chunk_from && page_end == chunk_end) whole_[chunk].store(1, std::memory_order_relaxed);
    }
    from = end;
  }
}

}  // namespace ray::plasma
