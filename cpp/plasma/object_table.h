// The object table in shared memory: key -> slot. Lock-free; used by every client and by the store on the same bytes.
//
// A view on memory mapped by somebody else; copying it is cheap. Any thread. Clients find and insert; Remove is the
// store's alone (one thread). A peer that is killed inside any function here leaves the table valid: see the rules in
// layout.h.
#pragma once

#include <cstdint>
#include <optional>

#include "plasma/layout.h"

namespace ray::plasma {

struct Found {
  uint32_t slot;
  uint64_t state;  // the state word under which the key was compared
};

class ObjectTable {
 public:
  ObjectTable() = default;
  // base: a control segment, mapped and formatted (Format), whose header has been checked by the caller.
  explicit ObjectTable(void* base);

  // Writes an empty table for that many slots into zeroed memory of ControlBytes() bytes. The life mutex is not
  // touched.
  static void Format(void* base, uint32_t slots, uint32_t buckets, uint64_t pool_bytes);
  static uint32_t BucketsFor(uint32_t slots);

  ControlHeader* header() const { return header_; }
  uint32_t slots() const { return slots_; }
  Slot& slot(uint32_t i) const { return slot_array_[i]; }

  // The one slot of that key which is created, sealed, spilled or being evicted; objects being deleted are passed over.
  std::optional<Found> Find(const ObjectId& key, uint64_t hash) const;

  // Publishes a filled slot (kCreated, key set) that is lent to the caller. Returns nothing if done; what is there
  // instead (never both: two inserters of one key race on one word).
  std::optional<Found> Insert(uint32_t mine, const ObjectId& key, uint64_t hash) const;

  // Store only. Takes the slot out of its key's chain; false if it was never put there (its writer died before that).
  bool Remove(uint32_t slot) const;

  // Store only, for Audit: every chained slot. visit(bucket, slot).
  template <typename Visit>
  void ForEachChained(Visit visit) const {
    for (uint32_t b = 0; b < bucket_count_; ++b) {
      uint32_t at = static_cast<uint32_t>(bucket_array_[b].load(std::memory_order_acquire));
      for (uint32_t step = 0; at != 0 && at <= slots_ && step <= slots_; ++step) {
        visit(b, at - 1);
        at = slot_array_[at - 1].next.load(std::memory_order_acquire);
      }
    }
  }
  bool BelongsTo(uint32_t slot, uint32_t bucket) const {
    return (HashKey(LoadKey(slot_array_[slot])) & (bucket_count_ - 1)) == bucket;
  }

 private:
  std::optional<Found> Walk(uint64_t head, const ObjectId& key) const;
  std::atomic<uint64_t>& bucket(uint64_t hash) const { return bucket_array_[hash & (bucket_count_ - 1)]; }

  ControlHeader* header_ = nullptr;
  std::atomic<uint64_t>* bucket_array_ = nullptr;
  Slot* slot_array_ = nullptr;
  uint32_t slots_ = 0;
  uint32_t bucket_count_ = 0;
};

}  // namespace ray::plasma
