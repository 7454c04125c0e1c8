// Lending, draining, evicting, freeing. What a dead client left is undone in recovery.cc; store.h states the invariant.
#include "plasma/store.h"

#include <algorithm>
#include <cstdint>

#include "common/clock.h"

namespace ray::plasma {

namespace {
constexpr uint64_t kExtentBytesFirst = 64 << 10;  // an idle client holds no more than this
constexpr uint64_t kExtentBytesMax = 1 << 20;     // ~1,000 small objects per round trip: the trip no longer shows
constexpr uint64_t kBytesPerLentSlot = 512;
constexpr size_t kLentSlotsMin = 16;
constexpr size_t kLentSlotsMax = 2048;
constexpr size_t kEventsMax = 1 << 20;
constexpr uint64_t kFitCheckBytesMin = 1 << 20;
constexpr uint64_t kFitCheckLooksMax = 8 << 20;  // pins looked at for one request: some 10 ms
}  // namespace

Store::Store(ObjectTable table, uint64_t pool_bytes)
    : table_(table), extents_(pool_bytes), slot_lease_(table.slots()), slot_flags_(table.slots()) {}

ClientId Store::AddClient(uint32_t pid, Journal journal) {
  const ClientId id = next_client_++;
  clients_.emplace(id, Client{pid, journal, {}, {}, kExtentBytesFirst});
  return id;
}

bool Store::Pinned(uint32_t slot) const {
  if ((slot_flags_[slot] & (kWriting | kRestoring)) != 0) return true;
  for (const auto& [id, client] : clients_) {
    // Sequentially consistent, after the state was set: either we see the pin, or the pinner sees the state (layout.h).
    if (client.journal.pins[slot].load(std::memory_order_seq_cst) != 0) return true;
  }
  return false;
}

uint64_t Store::ExtentOf(uint32_t slot, uint64_t* bytes) const {
  const Slot& s = table_.slot(slot);
  const uint64_t pool = extents_.pool_bytes();
  if ((slot_flags_[slot] & kNoBytes) != 0) {
    *bytes = 0;
    return pool;
  }
  const uint64_t offset = std::min(s.offset.load(std::memory_order_relaxed), pool);
  const uint64_t data = std::min(s.data_bytes.load(std::memory_order_relaxed), pool);
  const uint64_t metadata = std::min(s.metadata_bytes.load(std::memory_order_relaxed), pool);
  *bytes = std::min(ObjectExtentBytes(data, metadata), pool - offset);
  return offset;
}

// ---- lending

LendResult Store::Lend(ClientId id, uint64_t need_bytes, bool exact, Lent* out, uint64_t reserve_bytes) {
  const uint64_t pool = extents_.pool_bytes();
  if (need_bytes == 0 || need_bytes > pool) return LendResult::kTooLarge;
  Client& client = clients_.at(id);
  Drain();
  ReviewClient(client);
  const uint64_t need = ObjectExtentBytes(need_bytes, 0);
  uint64_t want = need;
  if (!exact) {
    // No client may sit on more than a small share of the pool.
    const uint64_t share = std::clamp<uint64_t>(pool / 64 / clients_.size(), kExtentBytesFirst / 4, kExtentBytesMax);
    want = std::max(need, std::min(client.next_extent_bytes, share));
    client.next_extent_bytes = std::min(kExtentBytesMax, client.next_extent_bytes * 2);
  }
  TakeSlots(exact ? 1 : std::clamp<size_t>(want / kBytesPerLentSlot, kLentSlotsMin, kLentSlotsMax), &out->slots);
  std::optional<uint64_t> offset;
  if (!out->slots.empty()) {
    // For a comfortable extent not much is evicted; for the bytes needed, everything.
    if (want > need) offset = TakeEvicting(want, 2 * want);
    for (uint64_t less = want / 2; !offset && less > need; less /= 2) {
      want = less;
      offset = extents_.Take(less);
    }
    if (!offset) {
      want = need;
      offset = TakeEvicting(need, ~uint64_t{0});
    }
  }
  if (offset && reserve_bytes > 0) {
    const auto reserve = TakeEvicting(reserve_bytes, ~uint64_t{0});
    extents_.Free(reserve.value_or(*offset), reserve ? reserve_bytes : ObjectExtentBytes(want, 0));
    if (!reserve) offset.reset();
  }
  if (!offset) {
    for (uint32_t slot : out->slots) free_slots_.push_back(slot);
    out->slots.clear();
    return LendResult::kNoRoom;
  }
  out->lease = next_lease_++;
  out->offset = *offset;
  out->bytes = ObjectExtentBytes(want, 0);
  for (uint32_t slot : out->slots) slot_lease_[slot] = out->lease;
  client.leases.push_back(out->lease);
  leases_.emplace(out->lease, Lease{id, out->offset, out->bytes, exact, out->slots});
  return LendResult::kLent;
}

void Store::TakeSlots(size_t want, std::vector<uint32_t>* out) {
  const auto take = [&] {
    while (out->size() < want && !free_slots_.empty()) {
      out->push_back(free_slots_.back());
      free_slots_.pop_back();
    }
    while (out->size() < want && slots_end_ < table_.slots()) out->push_back(slots_end_++);
  };
  take();
  if (!out->empty()) return;
  ReclaimDeleted();
  LookAtLapsed(SIZE_MAX);
  lru_.Restart();
  uint64_t freed = 0, range = 0;
  while (free_slots_.size() < want && EvictOne(&freed, &range)) {
  }
  take();
}

std::optional<uint64_t> Store::TakeEvicting(uint64_t bytes, uint64_t evict_bytes_max) {
  if (auto offset = extents_.Take(bytes)) return offset;
  if (!deleting_.empty() || !lapsed_.empty()) {
    ReclaimDeleted();
    LookAtLapsed(SIZE_MAX);
    if (auto offset = extents_.Take(bytes)) return offset;
  }
  if (bytes >= kFitCheckBytesMin && !CouldFit(bytes)) return std::nullopt;
  uint64_t freed = 0;
  for (int round = 0; round < 2; ++round) {
    uint64_t range = 0;
    while (freed < evict_bytes_max && EvictOne(&freed, &range)) {
      if (range < bytes) continue;
      if (auto offset = extents_.Take(bytes)) return offset;
    }
    if (freed >= evict_bytes_max) break;
    lru_.Restart();  // the candidates left over from earlier calls are used up; look at everything once more
  }
  return extents_.Take(bytes);
}

// A large request that cannot be met however much is evicted must not empty the store, again and again while it waits.
bool Store::CouldFit(uint64_t bytes) const {
  if (uint64_t{slots_end_} * clients_.size() > kFitCheckLooksMax) return true;  // too long to find out
  std::vector<std::pair<uint64_t, uint64_t>> stay;
  for (const auto& [id, lease] : leases_) {
    const State s = StateOf(table_.slot(lease.slots[0]).state.load(std::memory_order_acquire));
    if (!lease.exact || s == State::kFree || s == State::kCreated) stay.emplace_back(lease.offset, lease.bytes);
  }
  for (const auto& [slot, extent] : restoring_) stay.push_back(extent);
  for (uint32_t slot = 0; slot < slots_end_; ++slot) {
    const State s = StateOf(table_.slot(slot).state.load(std::memory_order_acquire));
    if (s == State::kFree || (s != State::kCreated && !Pinned(slot))) continue;
    uint64_t length = 0;
    const uint64_t offset = ExtentOf(slot, &length);
    if (length > 0) stay.emplace_back(offset, length);
  }
  stay.emplace_back(extents_.pool_bytes(), 0);
  std::sort(stay.begin(), stay.end());
  uint64_t at = 0;
  for (const auto& [offset, length] : stay) {
    if (offset >= at + bytes) return true;
    at = std::max(at, offset + length);
  }
  return false;
}

bool Store::CloseLease(ClientId id, LeaseId lease) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.client != id) return false;
  Client& client = clients_.at(id);
  std::erase(client.leases, lease);
  EndLease(lease, false);
  return true;
}

void Store::ReviewClient(Client& client) {
  std::erase_if(client.leases, [&](LeaseId id) {
    const Lease& lease = leases_.at(id);
    if (!lease.exact) return false;
    const uint32_t slot = lease.slots[0];
    const State s = StateOf(table_.slot(slot).state.load(std::memory_order_acquire));
    if (slot_lease_[slot] == id && (s == State::kFree || s == State::kCreated)) return false;
    EndLease(id, false);
    return true;
  });
  std::erase_if(client.unsealed, [&](const Unsealed& u) {
    if (watched_) SealEntry(u.slot, u.generation);
    return table_.slot(u.slot).state.load(std::memory_order_acquire) != StateWord(u.generation, State::kCreated);
  });
}

// ---- what clients tell through their rings

void Store::Drain() {
  for (auto& [id, client] : clients_) DrainClient(id, client);
}

void Store::DrainClient(ClientId id, Client& client) {
  JournalHeader& j = *client.journal.header;
  uint64_t at = j.consumed.load(std::memory_order_relaxed);
  const uint64_t end = j.produced.load(std::memory_order_acquire);
  if (end - at > kRingEntries) {  // not possible unless the client writes where it should not
    ++bad_entries_;
    j.consumed.store(end, std::memory_order_release);
    return;
  }
  for (; at != end; ++at) {
    const RingEntry& e = j.ring[at % kRingEntries];
    const uint64_t what = e.slot_and_op.load(std::memory_order_relaxed);
    const uint64_t generation = e.generation.load(std::memory_order_relaxed);
    const uint32_t slot = static_cast<uint32_t>(what);
    const RingOp op = static_cast<RingOp>(what >> 32);
    if (slot >= slots_end_) {
      ++bad_entries_;
    } else if (op == RingOp::kDelete) {
      DeleteEntry(id, slot, generation);
    } else if (op == RingOp::kSealed) {
      SealEntry(slot, generation);
    } else if (op == RingOp::kLapse) {
      LapseEntry(slot, generation);
    } else if (op == RingOp::kUnpinned) {
      if ((slot_flags_[slot] & kLapsed) != 0) TryLapse(slot, generation);
    } else {
      ++bad_entries_;
    }
  }
  j.consumed.store(end, std::memory_order_release);
}

void Store::DeleteEntry(ClientId id, uint32_t slot, uint64_t generation) {
  Slot& s = table_.slot(slot);
  uint64_t sealed = StateWord(generation, State::kSealed);
  uint64_t created = StateWord(generation, State::kCreated);
  const uint64_t deleting = StateWord(generation, State::kDeleting);
  // The client may have died between telling and doing; so it is done here again, to no effect if it was done.
  uint64_t spilled = StateWord(generation, State::kSpilled);
  if (!s.state.compare_exchange_strong(sealed, deleting, std::memory_order_seq_cst) &&
      !s.state.compare_exchange_strong(spilled, deleting, std::memory_order_seq_cst) &&
      s.creator.load(std::memory_order_relaxed) == id) {
    s.state.compare_exchange_strong(created, deleting, std::memory_order_seq_cst);
  }
  if (s.state.load(std::memory_order_seq_cst) != deleting || (slot_flags_[slot] & kInDeleting) != 0) return;
  if (!TryReclaim(slot)) {
    slot_flags_[slot] |= kInDeleting;
    deleting_.push_back(slot);
  }
}

void Store::LapseEntry(uint32_t slot, uint64_t generation) {
  if (TryLapse(slot, generation) || (slot_flags_[slot] & kLapsed) != 0) return;
  slot_flags_[slot] |= kLapsed;
  lapsed_.emplace_back(slot, generation);
}

// As eviction does it, so that whoever pins it this moment either has it or finds it gone.
bool Store::TryLapse(uint32_t slot, uint64_t generation) {
  Slot& s = table_.slot(slot);
  uint64_t word = s.state.load(std::memory_order_acquire);
  if (GenerationOf(word) != generation || (StateOf(word) != State::kSealed && StateOf(word) != State::kSpilled)) {
    return true;  // deleted or evicted meanwhile; or never sealed, and then its maker's to undo
  }
  if (Pinned(slot)) return false;
  const State before = StateOf(word);
  if (!s.state.compare_exchange_strong(word, StateWord(generation, State::kEvicting), std::memory_order_seq_cst)) {
    return StateOf(word) == State::kDeleting;
  }
  if (Pinned(slot)) {
    s.state.store(StateWord(generation, before), std::memory_order_seq_cst);
    return false;
  }
  FreeSlot(slot);
  return true;
}

void Store::SealEntry(uint32_t slot, uint64_t generation) {
  const uint64_t word = table_.slot(slot).state.load(std::memory_order_acquire);
  if (word == StateWord(generation, State::kSealed) || word == StateWord(generation, State::kSpilled)) Announce(slot);
}

void Store::Announce(uint32_t slot) {
  if ((slot_flags_[slot] & kAnnounced) != 0 || events_.size() >= kEventsMax) return;
  slot_flags_[slot] |= kAnnounced;
  const Slot& s = table_.slot(slot);
  events_.push_back({LoadKey(s), s.data_bytes.load(std::memory_order_relaxed),
                     s.metadata_bytes.load(std::memory_order_relaxed), false});
}

std::vector<ObjectEvent> Store::SealedNow() {
  std::vector<ObjectEvent> sealed;
  for (uint32_t i = 0; i < slots_end_; ++i) {
    const Slot& s = table_.slot(i);
    const State state = StateOf(s.state.load(std::memory_order_acquire));
    if (state != State::kSealed && state != State::kSpilled) continue;
    slot_flags_[i] |= kAnnounced;
    sealed.push_back({LoadKey(s), s.data_bytes.load(std::memory_order_relaxed),
                      s.metadata_bytes.load(std::memory_order_relaxed), false});
  }
  return sealed;
}

// ---- freeing and evicting

bool Store::TryReclaim(uint32_t slot) {
  if (Pinned(slot)) return false;
  FreeSlot(slot);
  return true;
}

void Store::LookAtLapsed(size_t looks) {
  for (looks = std::min(looks, lapsed_.size()); looks > 0; --looks) {
    if (lapsed_at_ >= lapsed_.size()) lapsed_at_ = 0;
    const auto [slot, generation] = lapsed_[lapsed_at_];
    if (TryLapse(slot, generation)) {
      lapsed_[lapsed_at_] = lapsed_.back();
      lapsed_.pop_back();
    } else {
      ++lapsed_at_;
    }
  }
}

void Store::ReclaimDeleted() {
  std::erase_if(deleting_, [&](uint32_t slot) { return TryReclaim(slot); });
  LookAtLapsed(kLapsedLooks);
}

uint64_t Store::FreeSlot(uint32_t slot) {
  Slot& s = table_.slot(slot);
  const uint64_t word = s.state.load(std::memory_order_relaxed);
  if (table_.header()->subscribers.load(std::memory_order_relaxed) != 0 && (slot_flags_[slot] & kAnnounced) != 0 &&
      events_.size() < kEventsMax) {
    events_.push_back({LoadKey(s), s.data_bytes.load(std::memory_order_relaxed),
                       s.metadata_bytes.load(std::memory_order_relaxed), true});
  }
  table_.Remove(slot);
  if (!on_disk_.empty()) DropCopy(slot);
  if ((slot_flags_[slot] & kNoBytes) != 0) {
    ReturnSlot(slot, GenerationOf(word) + 1);
    return 1;
  }
  uint64_t bytes = 0;
  const uint64_t offset = ExtentOf(slot, &bytes);
  uint64_t range = 1;
  if (const LeaseId lease = slot_lease_[slot]; lease != 0) {
    // Its bytes come back with the rest of the lease; at once if this was all there was to it.
    slot_lease_[slot] = 0;
    ReturnSlot(slot, GenerationOf(word) + 1);
    if (const Lease& l = leases_.at(lease); l.exact) {
      std::erase(clients_.at(l.client).leases, lease);
      EndLease(lease, false);
      range = bytes;
    }
    return range;
  }
  range = extents_.Free(offset, bytes);
  if (range == 0) ++bad_entries_;
  ReturnSlot(slot, GenerationOf(word) + 1);
  return range;
}

void Store::ReturnSlot(uint32_t slot, uint64_t generation) {
  table_.slot(slot).state.store(StateWord(generation, State::kFree), std::memory_order_release);
  slot_flags_[slot] = 0;
  slot_lease_[slot] = 0;
  free_slots_.push_back(slot);
}

bool Store::EvictOne(uint64_t* freed_bytes, uint64_t* range_bytes) {
  for (;;) {
    const uint32_t slot = lru_.Next(table_, slots_end_);
    if (slot == kNoSlot) return false;
    if (Pinned(slot)) continue;  // a cheap look first, so that pinned objects never flicker
    Slot& s = table_.slot(slot);
    uint64_t word = s.state.load(std::memory_order_acquire);
    if (StateOf(word) != State::kSealed) continue;
    const uint64_t generation = GenerationOf(word);
    if (!s.state.compare_exchange_strong(word, StateWord(generation, State::kEvicting), std::memory_order_seq_cst))
      continue;
    if (Pinned(slot)) {
      s.state.store(StateWord(generation, State::kSealed), std::memory_order_seq_cst);
      continue;
    }
    uint64_t bytes = 0;
    ExtentOf(slot, &bytes);
    ++evicted_objects_;
    evicted_bytes_ += bytes;
    *freed_bytes += bytes;
    *range_bytes = FreeSlot(slot);
    return true;
  }
}

uint64_t Store::Evict(uint64_t bytes) {
  Drain();
  uint64_t freed = 0, range = 0;
  for (int round = 0; round < 2 && freed < bytes; ++round) {
    while (freed < bytes && EvictOne(&freed, &range)) {
    }
    if (freed < bytes) lru_.Restart();
  }
  return freed;
}

}  // namespace ray::plasma
