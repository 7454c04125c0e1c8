// Who waits for what: writers for room, readers for a seal. Pure bookkeeping; store process, event-loop thread.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "plasma/layout.h"

namespace ray::plasma {

// One request of one connection.
struct Asker {
  uint64_t connection;
  uint64_t request;
  friend auto operator<=>(const Asker&, const Asker&) = default;
};

struct RoomWaiter {
  Asker asker;
  uint64_t need_bytes;
  bool exact;
  int64_t deadline_ns;
  uint32_t restore_slot = kNoSlot;  // else: room to bring this object back from disk
  uint64_t restore_generation = 0;
};

// Writers in order of arrival. A large one that does not fit yet does not hold up a small one behind it: what the large
// one waits for may be released only by work that needs the small one.
class RoomQueue {
 public:
  void Add(const RoomWaiter& waiter) { waiters_.push_back(waiter); }
  // Calls try_one on each in order; those for which it returns true (answered) leave.
  // try_one may call Forget and ForgetConnection.
  template <typename Try>
  void Retry(Try try_one) {
    for (const RoomWaiter& w : std::exchange(waiters_, {})) {
      if (!try_one(w)) waiters_.push_back(w);
    }
  }
  void Forget(Asker asker) {
    std::erase_if(waiters_, [&](const RoomWaiter& w) { return w.asker == asker; });
  }
  void ForgetConnection(uint64_t connection) {
    std::erase_if(waiters_, [&](const RoomWaiter& w) { return w.asker.connection == connection; });
  }
  std::optional<int64_t> next_deadline_ns() const {
    std::optional<int64_t> next;
    for (const RoomWaiter& w : waiters_) {
      if (!next || w.deadline_ns < *next) next = w.deadline_ns;
    }
    return next;
  }
  size_t size() const { return waiters_.size(); }

 private:
  std::list<RoomWaiter> waiters_;
};

// Readers that wait until all of a set of keys are sealed. Keeps the counters in shared memory by which sealers know
// that somebody waits; a key must be looked up after Add, since it may have been sealed before the counter was seen.
class SealWatches {
 public:
  explicit SealWatches(ControlHeader* header) : header_(header) {}

  // False: that asker waits already.
  bool Add(Asker asker, std::span<const ObjectId> keys);
  // Returns the askers for whom that was the last key; they are forgotten.
  std::vector<Asker> Sealed(const ObjectId& key);
  void Forget(Asker asker);
  void ForgetConnection(uint64_t connection);
  size_t size() const { return missing_.size(); }

 private:
  struct Hash {
    size_t operator()(const ObjectId& key) const { return HashKey(key); }
  };
  void Drop(const ObjectId& key, Asker asker);

  ControlHeader* header_;
  std::map<Asker, std::vector<ObjectId>> missing_;
  std::unordered_multimap<ObjectId, Asker, Hash> by_key_;
};

}  // namespace ray::plasma
