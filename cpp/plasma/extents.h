// Which bytes of the pool are free. The store's private bookkeeping: no client can damage it.
//
// Store process, event-loop thread; no system calls. Free ranges are kept coalesced and indexed by address and by size
// class. Lends low addresses first: touched pages lie low, so they are used again before fresh ones are asked of the
// kernel.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>

namespace ray::plasma {

class Extents {
 public:
  // All of [0, pool_bytes) is free. pool_bytes: a multiple of kObjectAlignBytes.
  explicit Extents(uint64_t pool_bytes);

  // Takes `bytes` (rounded up to kObjectAlignBytes, > 0) out of the free ranges, as low as a bounded search finds;
  // nothing if no free range is that long. Never evicts: that is Store's decision.
  std::optional<uint64_t> Take(uint64_t bytes);

  // Gives [offset, offset + bytes) back; returns the length of the free range that it is part of now. 0, and nothing is
  // changed, if any of it lies outside the pool or is free already.
  uint64_t Free(uint64_t offset, uint64_t bytes);

  // The pool ends at `bytes` from now on (its pages cannot be had beyond). All of [bytes, pool_bytes()) must be free.
  void Cap(uint64_t bytes);

  uint64_t pool_bytes() const { return pool_bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t largest_free_bytes() const;
  size_t range_count() const { return by_offset_.size(); }
  const std::map<uint64_t, uint64_t>& ranges() const { return by_offset_; }  // offset -> bytes

 private:
  void Add(uint64_t offset, uint64_t bytes);
  void Erase(std::map<uint64_t, uint64_t>::iterator range);

  uint64_t pool_bytes_;
  uint64_t free_bytes_ = 0;
  std::map<uint64_t, uint64_t> by_offset_;
  std::array<std::set<uint64_t>, 64> by_class_;  // offsets of ranges of [2^i, 2^(i+1)) bytes
};

}  // namespace ray::plasma
