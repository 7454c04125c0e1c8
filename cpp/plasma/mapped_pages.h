// Puts pages of the pool into this process's page table in bulk, and remembers which are in it.
//
// The kernel enters 4 kB pages one fault at a time (1.4 us each); asked for many at once it takes a third of that. Even
// finding out that they are there already costs 0.4 us a page, more than to copy it: hence the memory, a byte for each
// MiB. What the kernel has taken out again meanwhile (swapped) is faulted in when it is touched, as ever.
//
// One per mapping of the pool. Any thread: two that map the same pages at once only do it twice.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace ray::plasma {

class MappedPages {
 public:
  static constexpr uint64_t kChunkBytes = 1 << 20;
  enum class Reach {
    kExact,   // nothing beyond the range may be made real
    kChunks,  // all of the chunks that it begins and ends in is real already, and may be mapped along with it
  };

  // base: of a writable mapping of the whole pool; outlives this. Huge pages need none of it.
  MappedPages(uint8_t* base, uint64_t pool_bytes, uint64_t page_bytes);
  // [from, to) of the pool. A refusal costs time only: the pages are then faulted in one by one.
  void Map(uint64_t from, uint64_t to, Reach reach);

 private:
  uint8_t* const base_;
  const uint64_t pool_bytes_, page_bytes_;
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;  // per chunk: all of it is mapped
};

}  // namespace ray::plasma
