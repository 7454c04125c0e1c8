// See waiters.h.
#include "plasma/waiters.h"

#include <algorithm>

namespace ray::plasma {

bool SealWatches::Add(Asker asker, std::span<const ObjectId> keys) {
  if (missing_.contains(asker)) return false;
  std::vector<ObjectId>& missing = missing_[asker];
  for (const ObjectId& key : keys) {
    if (std::find(missing.begin(), missing.end(), key) != missing.end()) continue;
    missing.push_back(key);
    by_key_.emplace(key, asker);
    // Sequentially consistent, before the look-up that follows; the sealer stores kSealed, then reads this counter.
    header_->seal_watch[HashKey(key) % kSealWatches].fetch_add(1, std::memory_order_seq_cst);
  }
  return true;
}

void SealWatches::Drop(const ObjectId& key, Asker asker) {
  const auto [first, last] = by_key_.equal_range(key);
  for (auto i = first; i != last; ++i) {
    if (i->second != asker) continue;
    by_key_.erase(i);
    header_->seal_watch[HashKey(key) % kSealWatches].fetch_sub(1, std::memory_order_seq_cst);
    return;
  }
}

std::vector<Asker> SealWatches::Sealed(const ObjectId& key) {
  std::vector<Asker> waiting, done;
  const auto [first, last] = by_key_.equal_range(key);
  for (auto i = first; i != last; ++i) waiting.push_back(i->second);
  for (Asker asker : waiting) {
    Drop(key, asker);
    std::vector<ObjectId>& missing = missing_[asker];
    std::erase(missing, key);
    if (!missing.empty()) continue;
    missing_.erase(asker);
    done.push_back(asker);
  }
  return done;
}

void SealWatches::Forget(Asker asker) {
  const auto node = missing_.extract(asker);
  if (node.empty()) return;
  for (const ObjectId& key : node.mapped()) Drop(key, asker);
}

void SealWatches::ForgetConnection(uint64_t connection) {
  std::vector<Asker> gone;
  for (auto i = missing_.lower_bound({connection, 0}); i != missing_.end() && i->first.connection == connection; ++i) {
    gone.push_back(i->first);
  }
  for (Asker asker : gone) Forget(asker);
}

}  // namespace ray::plasma
