// What goes to disk, what comes back. Part of Store; event-loop thread; no I/O.
//
// An object that is sealed, kept and not being read may leave memory. Its bytes are copied to disk while it stays
// kSealed, readable by everybody, for they cannot change. Only when they are there it is taken out of memory, by the
// handshake of eviction (layout.h): kEvicting is set, then the pins are looked at. A reader who came meanwhile has won,
// and the object stays, now with a copy on disk that makes the next attempt cost nothing. Else it is kSpilled: slot,
// key, pins and generation stay as they are, its extent is free.
//
// A reader of a spilled object pins it first, then asks. It gets a new extent, is read into it, and is kSealed again:
// the same generation, since it is the same object; its place is read after the pin (Client::Describe).
//
// Deleted at any of these moments it is kDeleting, by the client's own swap or by its ring; what is then under way ends
// first (kWriting and kRestoring count as pins), and its result is thrown away.
#include <algorithm>
#include <iterator>
#include <limits>
#include <set>

#include "common/clock.h"
#include "plasma/store.h"

namespace ray::plasma {

uint64_t Store::PinsOf(uint32_t slot) const {
  uint64_t pins = 0;
  for (const auto& [id, client] : clients_) {
    // Or, not plus: each half is zero exactly if all clients' are. Sequentially consistent as in Pinned.
    pins |= client.journal.pins[slot].load(std::memory_order_seq_cst);
  }
  return pins;
}

void Store::DropCopy(uint32_t slot) {
  const auto node = on_disk_.extract(slot);
  if (node.empty()) return;
  const DiskPlace& place = node.mapped().place;
  on_disk_in_order_.erase({place.file, place.offset});
  disk_freed_.push_back(place);
}

bool Store::TryDrop(uint32_t slot) {
  Slot& s = table_.slot(slot);
  uint64_t word = s.state.load(std::memory_order_acquire);
  if (StateOf(word) != State::kSealed || slot_lease_[slot] != 0 || (slot_flags_[slot] & kWriting) != 0) return false;
  const uint64_t generation = GenerationOf(word);
  if (!s.state.compare_exchange_strong(word, StateWord(generation, State::kEvicting), std::memory_order_seq_cst)) {
    return false;
  }
  const uint64_t pins = PinsOf(slot);
  if (ReadingPins(pins) != 0 || (pins != 0 && on_disk_.count(slot) == 0)) {
    s.state.store(StateWord(generation, State::kSealed), std::memory_order_seq_cst);
    return false;
  }
  uint64_t bytes = 0;
  const uint64_t offset = ExtentOf(slot, &bytes);
  if (pins == 0) {
    ++evicted_objects_;
    evicted_bytes_ += bytes;
    FreeSlot(slot);
    return true;
  }
  slot_flags_[slot] |= kNoBytes;
  if (extents_.Free(offset, bytes) == 0) ++bad_entries_;
  table_.header()->has_spilled.store(1, std::memory_order_relaxed);  // a hint
  // From here on a pin finds it spilled, and has it brought back.
  s.state.store(StateWord(generation, State::kSpilled), std::memory_order_seq_cst);
  return true;
}

bool Store::PlanSpill(uint64_t need_bytes, uint64_t want_bytes, bool may_write, std::vector<SpillWrite>* writes) {
  struct Piece {
    uint64_t offset, bytes;
    uint32_t slot;  // kNoSlot: nobody can move it
    int64_t last_used_ns;
  };
  Drain();
  for (auto& [id, client] : clients_) ReviewClient(client);
  std::vector<Piece> pieces;
  for (const auto& [id, lease] : leases_) pieces.push_back({lease.offset, lease.bytes, kNoSlot, 0});
  for (const auto& [slot, extent] : restoring_) pieces.push_back({extent.first, extent.second, kNoSlot, 0});
  for (uint32_t slot = 0; slot < slots_end_; ++slot) {
    const Slot& s = table_.slot(slot);
    const State state = StateOf(s.state.load(std::memory_order_acquire));
    if (state == State::kFree || slot_lease_[slot] != 0) continue;  // those in leases are covered by them
    uint64_t bytes = 0;
    const uint64_t offset = ExtentOf(slot, &bytes);
    if (bytes == 0) continue;
    const uint64_t pins = PinsOf(slot);
    const bool movable =
        state == State::kSealed && ReadingPins(pins) == 0 && (may_write || pins == 0 || on_disk_.count(slot) != 0);
    pieces.push_back({offset, bytes, movable ? slot : kNoSlot, s.last_used_ns.load(std::memory_order_relaxed)});
  }
  pieces.push_back({extents_.pool_bytes(), 0, kNoSlot, 0});
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.offset < b.offset; });

  // Windows [first, end) of movable pieces with the free bytes around them; of each beginning the shortest that is long
  // enough. The best is the one whose latest use is the longest ago: for a window of one object, the least recently
  // used.
  size_t best_first = 0, best_end = 0;
  bool found = false;
  const auto search = [&](uint64_t bytes) {
    int64_t best = std::numeric_limits<int64_t>::max();
    std::multiset<int64_t> uses;
    size_t end = 0;
    uint64_t begin = 0;  // of the free bytes before piece `first`
    for (size_t first = 0; first < pieces.size(); ++first) {
      if (end < first) end = first;
      while (pieces[end].offset < begin + bytes && pieces[end].slot != kNoSlot) uses.insert(pieces[end++].last_used_ns);
      const int64_t latest = uses.empty() ? 0 : *uses.rbegin();
      if (pieces[end].offset >= begin + bytes && (!found || latest < best)) {
        found = true;
        best = latest;
        best_first = first;
        best_end = end;
      }
      if (end > first) uses.erase(uses.find(pieces[first].last_used_ns));
      begin = std::max(begin, pieces[first].offset + pieces[first].bytes);
    }
  };
  search(ObjectExtentBytes(want_bytes, 0));
  if (!found) search(ObjectExtentBytes(need_bytes, 0));
  for (size_t i = best_first; found && i < best_end; ++i) {
    const uint32_t slot = pieces[i].slot;
    if ((slot_flags_[slot] & kWriting) != 0 || TryDrop(slot) || on_disk_.count(slot) != 0) continue;
    const Slot& s = table_.slot(slot);
    const uint64_t word = s.state.load(std::memory_order_acquire);
    // Read or deleted since we looked: then another plan is made when the rest is done.
    if (StateOf(word) != State::kSealed || ReadingPins(PinsOf(slot)) != 0) continue;
    const uint64_t data_bytes = s.data_bytes.load(std::memory_order_relaxed);
    const uint64_t metadata_bytes = s.metadata_bytes.load(std::memory_order_relaxed);
    if (data_bytes > pieces[i].bytes || metadata_bytes > pieces[i].bytes - data_bytes) {
      ++bad_entries_;  // its sizes are not those of its extent any more
      continue;
    }
    slot_flags_[slot] |= kWriting;
    writes->push_back({slot, GenerationOf(word), pieces[i].offset, LoadKey(s), data_bytes, metadata_bytes});
  }
  return found;
}

void Store::SpillWritten(uint32_t slot, const DiskCopy& copy) {
  slot_flags_[slot] &= static_cast<uint8_t>(~kWriting);
  if (on_disk_.empty()) largest_spilled_bytes_ = 0;
  on_disk_[slot] = copy;
  on_disk_in_order_[{copy.place.file, copy.place.offset}] = slot;
  largest_spilled_bytes_ = std::max(largest_spilled_bytes_, SpilledBytes(slot));
  // If it was deleted meanwhile, ReclaimDeleted frees it with its copy.
  if (!TryDrop(slot)) ReclaimDeleted();
}

void Store::SpillFailed(uint32_t slot) {
  slot_flags_[slot] &= static_cast<uint8_t>(~kWriting);
  ReclaimDeleted();
}

uint64_t Store::SpilledBytes(uint32_t slot) const {
  const auto copy = on_disk_.find(slot);
  if (copy == on_disk_.end()) return 0;
  return ObjectExtentBytes(copy->second.data_bytes, copy->second.metadata_bytes);
}

std::optional<ReadAhead::Place> Store::PlaceOf(uint32_t slot) const {
  const auto copy = on_disk_.find(slot);
  if (copy == on_disk_.end()) return std::nullopt;
  return ReadAhead::Place{copy->second.place.file, copy->second.place.offset};
}

OnDisk Store::Describe(const std::pair<const ReadAhead::Place, uint32_t>& entry) const {
  const auto& [place, slot] = entry;
  const uint64_t word = table_.slot(slot).state.load(std::memory_order_acquire);
  OnDisk found{place, on_disk_.at(slot).place.bytes, slot, std::nullopt};
  if (StateOf(word) == State::kSpilled) found.spilled = GenerationOf(word);
  return found;
}

std::optional<OnDisk> Store::OnDiskBefore(const ReadAhead::Place& at) const {
  const auto found = on_disk_in_order_.lower_bound(at);
  if (found == on_disk_in_order_.begin()) return std::nullopt;
  return Describe(*std::prev(found));
}

std::optional<OnDisk> Store::OnDiskAfter(const ReadAhead::Place& at) const {
  const auto found = on_disk_in_order_.upper_bound(at);
  if (found == on_disk_in_order_.end()) return std::nullopt;
  return Describe(*found);
}

RestoreStep Store::StartRestore(uint32_t slot, uint64_t generation, SpillRead* out) {
  if (slot >= slots_end_) return RestoreStep::kGone;
  const Slot& s = table_.slot(slot);
  const uint64_t word = s.state.load(std::memory_order_acquire);
  if (word == StateWord(generation, State::kSealed)) return RestoreStep::kHere;
  const auto copy = on_disk_.find(slot);
  if (word != StateWord(generation, State::kSpilled) || copy == on_disk_.end()) return RestoreStep::kGone;
  if ((slot_flags_[slot] & kRestoring) != 0) return RestoreStep::kRunning;
  const uint64_t bytes = ObjectExtentBytes(copy->second.data_bytes, copy->second.metadata_bytes);
  const auto offset = TakeEvicting(bytes, ~uint64_t{0});
  if (!offset) return RestoreStep::kNoRoom;
  slot_flags_[slot] |= kRestoring;
  restoring_[slot] = {*offset, bytes};
  *out = {*offset, LoadKey(s), copy->second};
  return RestoreStep::kStarted;
}

void Store::EndRestore(uint32_t slot, bool ok) {
  const auto node = restoring_.extract(slot);
  if (node.empty()) return;
  const auto [offset, bytes] = node.mapped();
  slot_flags_[slot] &= static_cast<uint8_t>(~kRestoring);
  Slot& s = table_.slot(slot);
  uint64_t word = s.state.load(std::memory_order_acquire);
  const uint64_t generation = GenerationOf(word);
  if (ok && StateOf(word) == State::kSpilled) {
    const DiskCopy& copy = on_disk_.at(slot);
    s.offset.store(offset, std::memory_order_relaxed);
    s.data_bytes.store(copy.data_bytes, std::memory_order_relaxed);
    s.metadata_bytes.store(copy.metadata_bytes, std::memory_order_relaxed);
    // Used just now, although perhaps nobody reads it yet (kAhead): it shall not be the next to go.
    s.last_used_ns.store(NowNs(), std::memory_order_relaxed);
    // Publishes bytes and place: whoever reads kSealed reads both. Fails if it was deleted just now.
    if (s.state.compare_exchange_strong(word, StateWord(generation, State::kSealed), std::memory_order_seq_cst)) {
      slot_flags_[slot] &= static_cast<uint8_t>(~kNoBytes);
      return;
    }
  }
  if (extents_.Free(offset, bytes) == 0) ++bad_entries_;
  if (StateOf(word) == State::kSpilled &&
      s.state.compare_exchange_strong(word, StateWord(generation, State::kDeleting), std::memory_order_seq_cst)) {
    DropCopy(slot);  // lost: invisible from now on; the slot is free when those who pinned it have noticed
    slot_flags_[slot] |= kInDeleting;
    deleting_.push_back(slot);
  }
  ReclaimDeleted();
}

void Store::AbortRestore(uint32_t slot) {
  const auto node = restoring_.extract(slot);
  if (node.empty()) return;
  slot_flags_[slot] &= static_cast<uint8_t>(~kRestoring);
  if (extents_.Free(node.mapped().first, node.mapped().second) == 0) ++bad_entries_;
  ReclaimDeleted();
}

// Nobody has a count of them any more, so their death or release can have been the last that is heard of them.
void Store::DropOrphans() {
  std::vector<uint32_t> spilled;
  for (const auto& [slot, copy] : on_disk_) {
    if ((slot_flags_[slot] & (kNoBytes | kRestoring)) == kNoBytes && PinsOf(slot) == 0) spilled.push_back(slot);
  }
  for (const uint32_t slot : spilled) {
    Slot& s = table_.slot(slot);
    uint64_t word = s.state.load(std::memory_order_acquire);
    if (StateOf(word) != State::kSpilled) continue;
    const uint64_t generation = GenerationOf(word);
    if (!s.state.compare_exchange_strong(word, StateWord(generation, State::kEvicting), std::memory_order_seq_cst)) {
      continue;
    }
    if (PinsOf(slot) != 0) {
      s.state.store(StateWord(generation, State::kSpilled), std::memory_order_seq_cst);
      continue;
    }
    ++evicted_objects_;
    FreeSlot(slot);
  }
}

}  // namespace ray::plasma
