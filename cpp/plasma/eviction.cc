// One pass over the table now and then, a pop otherwise; see eviction.h.
#include "plasma/eviction.h"

#include <algorithm>

namespace ray::plasma {

namespace {
constexpr size_t kCandidatesMin = 1024;
constexpr size_t kCandidatesShare = 8;  // of all sealed objects: a pass over n slots is paid back by n / 8 evictions
}  // namespace

uint32_t LeastRecentlyUsed::Next(const ObjectTable& table, uint32_t slots_end) {
  for (;;) {
    while (!queue_.empty()) {
      const Candidate c = queue_.back();
      queue_.pop_back();
      round_start_ns_ = std::max(round_start_ns_, c.last_used_ns);
      const Slot& s = table.slot(c.slot);
      if (s.state.load(std::memory_order_acquire) != c.state) continue;
      if (s.last_used_ns.load(std::memory_order_relaxed) != c.last_used_ns) continue;
      return c.slot;
    }
    Pass(table, slots_end);
    if (queue_.empty()) return kNoSlot;
  }
}

void LeastRecentlyUsed::Pass(const ObjectTable& table, uint32_t slots_end) {
  for (uint32_t i = 0; i < slots_end; ++i) {
    const Slot& s = table.slot(i);
    const uint64_t state = s.state.load(std::memory_order_acquire);
    if (StateOf(state) != State::kSealed) continue;
    const int64_t used = s.last_used_ns.load(std::memory_order_relaxed);
    if (used > round_start_ns_) queue_.push_back({used, state, i});
  }
  const auto older = [](const Candidate& a, const Candidate& b) { return a.last_used_ns < b.last_used_ns; };
  const size_t keep = std::max(kCandidatesMin, queue_.size() / kCandidatesShare);
  if (queue_.size() > keep) {
    std::nth_element(queue_.begin(), queue_.begin() + keep, queue_.end(), older);
    queue_.resize(keep);
  }
  std::sort(queue_.begin(), queue_.end(), [&](const Candidate& a, const Candidate& b) { return older(b, a); });
}

}  // namespace ray::plasma
