// What the store tells about itself: use, holders, list. Part of Store; read-only; event-loop thread.
#include <algorithm>

#include "plasma/store.h"

namespace ray::plasma {

namespace {
constexpr size_t kPinningPidsMax = 16;  // per object listed
constexpr size_t kHoldersMax = 12;      // named in a message; the rest are summed up

std::string Bytes(uint64_t n) {
  char text[32];
  if (n >= 10ull << 30) {
    std::snprintf(text, sizeof(text), "%.1f GiB", n / double(1ull << 30));
  } else if (n >= 10ull << 20) {
    std::snprintf(text, sizeof(text), "%.1f MiB", n / double(1ull << 20));
  } else {
    std::snprintf(text, sizeof(text), "%llu bytes", static_cast<unsigned long long>(n));
  }
  return text;
}
}  // namespace

StoreUse Store::Use() const {
  StoreUse use{};
  use.pool_bytes = extents_.pool_bytes();
  use.free_bytes = extents_.free_bytes();
  use.largest_free_bytes = extents_.largest_free_bytes();
  use.slots = table_.slots();
  use.slots_free = free_slots_.size() + (table_.slots() - slots_end_);
  use.evicted_objects = evicted_objects_;
  use.evicted_bytes = evicted_bytes_;
  use.bad_entries = bad_entries_;
  for (uint32_t i = 0; i < slots_end_; ++i) {
    uint64_t bytes = 0;
    ExtentOf(i, &bytes);
    switch (StateOf(table_.slot(i).state.load(std::memory_order_acquire))) {
      case State::kCreated:
        ++use.unsealed_objects;
        use.unsealed_bytes += bytes;
        break;
      case State::kSealed:
        ++use.sealed_objects;
        use.sealed_bytes += bytes;
        break;
      case State::kSpilled: {
        const auto copy = on_disk_.find(i);
        if (copy == on_disk_.end()) break;
        ++use.spilled_objects;
        use.spilled_bytes += ObjectExtentBytes(copy->second.data_bytes, copy->second.metadata_bytes);
        break;
      }
      case State::kDeleting:
        ++use.deleting_objects;
        use.deleting_bytes += bytes;
        break;
      default:
        break;
    }
  }
  return use;
}

std::vector<ClientUse> Store::Holders() const {
  std::vector<ClientUse> holders;
  for (const auto& [id, client] : clients_) {
    ClientUse use{id, client.pid, 0, 0, 0, 0, 0};
    for (LeaseId lease : client.leases) {
      const auto& l = leases_.at(lease);
      if (!l.exact) use.lent_bytes += l.bytes;
    }
    for (uint32_t i = 0; i < slots_end_; ++i) {
      const Slot& s = table_.slot(i);
      const State state = StateOf(s.state.load(std::memory_order_acquire));
      if (state == State::kFree) continue;
      uint64_t bytes = 0;
      ExtentOf(i, &bytes);
      if (state == State::kCreated) {
        if (s.creator.load(std::memory_order_relaxed) != id) continue;
        ++use.unsealed_objects;
        use.unsealed_bytes += bytes;
      } else if (client.journal.pins[i].load(std::memory_order_acquire) != 0) {
        ++use.pinned_objects;
        use.pinned_bytes += bytes;
      }
    }
    holders.push_back(use);
  }
  return holders;
}

std::string Store::DescribeHolders() const {
  std::vector<ClientUse> holders = Holders();
  std::sort(holders.begin(), holders.end(), [](const ClientUse& a, const ClientUse& b) {
    return a.pinned_bytes + a.unsealed_bytes + a.lent_bytes > b.pinned_bytes + b.unsealed_bytes + b.lent_bytes;
  });
  std::string text = "The store has " + Bytes(extents_.pool_bytes()) + ", of which " + Bytes(extents_.free_bytes()) +
                     " are free (largest piece: " + Bytes(extents_.largest_free_bytes()) + ")";
  if (free_slots_.empty() && slots_end_ == table_.slots()) {
    text += ", but no place for one more object in its table of " + std::to_string(table_.slots());
  }
  text += ". What is left is held by:";
  for (size_t i = 0; i < holders.size(); ++i) {
    if (i == kHoldersMax) {
      text += "\n  and " + std::to_string(holders.size() - i) + " more processes";
      break;
    }
    const ClientUse& h = holders[i];
    text += "\n  pid " + std::to_string(h.pid) + ": " + Bytes(h.pinned_bytes) + " pinned in " +
            std::to_string(h.pinned_objects) + " objects, " + Bytes(h.unsealed_bytes) + " unsealed in " +
            std::to_string(h.unsealed_objects) + " objects, " + Bytes(h.lent_bytes) + " lent for small objects";
  }
  return text;
}

std::vector<ObjectRow> Store::List(uint32_t* cursor, size_t max_rows) const {
  std::vector<ObjectRow> rows;
  while (*cursor < slots_end_ && rows.size() < max_rows) {
    const uint32_t i = (*cursor)++;
    const Slot& s = table_.slot(i);
    const State state = StateOf(s.state.load(std::memory_order_acquire));
    if (state == State::kFree) continue;
    ObjectRow row{LoadKey(s),
                  s.data_bytes.load(std::memory_order_relaxed),
                  s.metadata_bytes.load(std::memory_order_relaxed),
                  state,
                  s.created_ns.load(std::memory_order_relaxed),
                  s.sealed_ns.load(std::memory_order_relaxed),
                  s.creator_pid.load(std::memory_order_relaxed),
                  0,
                  {}};
    for (const auto& [id, client] : clients_) {
      const uint64_t pins = client.journal.pins[i].load(std::memory_order_acquire);
      if (pins == 0) continue;
      row.pins += uint64_t{ReadingPins(pins)} + KeepingPins(pins);
      if (row.pinning_pids.size() < kPinningPidsMax) row.pinning_pids.push_back(client.pid);
    }
    rows.push_back(std::move(row));
  }
  if (*cursor >= slots_end_) *cursor = table_.slots();
  return rows;
}

}  // namespace ray::plasma
