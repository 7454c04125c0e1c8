// Chooses what to evict: sealed objects, least recently used first. Store process, event-loop thread; no system calls.
//
// Nobody tells the store when an object is used: clients stamp the slot. So one pass over the table picks the oldest
// eighth, sorted, and later calls take from that; a candidate used or gone since is passed over. The order is exact LRU
// as of the pass; pins are not looked at here (the caller must, in the order layout.h prescribes).
#pragma once

#include <cstdint>
#include <vector>

#include "plasma/object_table.h"

namespace ray::plasma {

class LeastRecentlyUsed {
 public:
  // The next candidate among slots [0, slots_end), or kNoSlot when a whole pass finds none but those already handed out
  // since Restart().
  uint32_t Next(const ObjectTable& table, uint32_t slots_end);
  // Begins a new round: objects refused in the last one (pinned then) are candidates again.
  void Restart() { round_start_ns_ = 0; }

 private:
  struct Candidate {
    int64_t last_used_ns;
    uint64_t state;
    uint32_t slot;
  };
  void Pass(const ObjectTable& table, uint32_t slots_end);

  std::vector<Candidate> queue_;  // oldest last
  int64_t round_start_ns_ = 0;    // only objects used after this are taken by the next pass of this round
};

}  // namespace ray::plasma
