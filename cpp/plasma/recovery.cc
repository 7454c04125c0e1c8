// Undoing what a client left, and checking that the books are right afterwards. Part of Store; event-loop thread.
//
// A client can be killed at any instruction. What it may leave, and what is done:
//   pins                                      they were in its journal, which is no longer looked at
//   a deletion told but not done              done by draining its ring one last time
//   a lent slot being filled, unpublished     state kFree or kCreated, in no chain: back to the free list
//   a published, unsealed object              taken out of its chain, its bytes are free
//   a sealed object                           stays: it is everybody's
//   the rest of the extents lent to it        whatever no surviving object covers is free
//   spilled objects that it alone kept        gone: nobody could ask for them, and eviction looks at memory only
#include <algorithm>
#include <vector>

#include "plasma/store.h"

namespace ray::plasma {

void Store::ClientGone(ClientId id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  DrainClient(id, found->second);
  // From here on its pins count no more.
  const std::vector<LeaseId> leases = std::move(found->second.leases);
  const std::vector<Unsealed> unsealed = std::move(found->second.unsealed);
  clients_.erase(found);
  for (LeaseId lease : leases) EndLease(lease, true);
  for (const Unsealed& u : unsealed) {
    if (table_.slot(u.slot).state.load(std::memory_order_acquire) == StateWord(u.generation, State::kCreated)) {
      UndoCreated(u.slot);
    } else if (watched_) {
      SealEntry(u.slot, u.generation);
    }
  }
  ReclaimDeleted();
  LookAtLapsed(SIZE_MAX);
  if (!on_disk_.empty()) DropOrphans();
}

void Store::UndoCreated(uint32_t slot) {
  Slot& s = table_.slot(slot);
  const uint64_t generation = GenerationOf(s.state.load(std::memory_order_acquire));
  table_.Remove(slot);  // false if its writer died before the swap that publishes
  if (slot_lease_[slot] == 0) {
    uint64_t bytes = 0;
    const uint64_t offset = ExtentOf(slot, &bytes);
    if (extents_.Free(offset, bytes) == 0) ++bad_entries_;
  }
  ReturnSlot(slot, generation + 1);
}

// Ends a lease that its client's list no longer names. Slots with an object become the table's own; the others return
// to the free list, and of the extent whatever no object covers.
void Store::EndLease(LeaseId id, bool client_gone) {
  const auto node = leases_.extract(id);
  if (node.empty()) return;
  const Lease& lease = node.mapped();
  const uint64_t end = lease.offset + lease.bytes;
  const auto client = clients_.find(lease.client);
  std::vector<std::pair<uint64_t, uint64_t>> kept;
  for (uint32_t slot : lease.slots) {
    if (slot_lease_[slot] != id) continue;  // freed meanwhile, and perhaps lent to somebody else
    const uint64_t word = table_.slot(slot).state.load(std::memory_order_acquire);
    const State s = StateOf(word);
    if (s == State::kFree) {
      ReturnSlot(slot, GenerationOf(word) + 1);
      continue;
    }
    if (s == State::kCreated && client_gone) {
      UndoCreated(slot);
      continue;
    }
    slot_lease_[slot] = 0;
    if (s == State::kCreated && client != clients_.end()) {
      client->second.unsealed.push_back({slot, GenerationOf(word)});
    }
    // Its creator may die between the seal and telling the watchers; announcing twice has no effect.
    if (s == State::kSealed && watched_) Announce(slot);
    uint64_t bytes = 0;
    const uint64_t offset = ExtentOf(slot, &bytes);
    if (offset < lease.offset || offset + bytes > end) {
      ++bad_entries_;  // it claims bytes that were never lent to it
      continue;
    }
    kept.emplace_back(offset, bytes);
  }
  std::sort(kept.begin(), kept.end());
  uint64_t at = lease.offset;
  for (const auto& [offset, bytes] : kept) {
    if (offset > at && extents_.Free(at, offset - at) == 0) ++bad_entries_;
    at = std::max(at, offset + bytes);
  }
  if (at < end && extents_.Free(at, end - at) == 0) ++bad_entries_;
}

std::string Store::Audit() const {
  std::string wrong;
  const auto complain = [&](const std::string& what) {
    if (wrong.size() < 2000) wrong += what + "\n";
  };
  enum Place : uint8_t { kNowhere, kOnFreeList, kInLease, kOwnedByTable };
  std::vector<uint8_t> place(slots_end_, kNowhere);
  std::vector<uint8_t> chained(slots_end_, 0);
  for (uint32_t slot : free_slots_) {
    if (place[slot] != kNowhere) complain("slot " + std::to_string(slot) + " is on the free list twice");
    place[slot] = kOnFreeList;
    if (StateOf(table_.slot(slot).state.load()) != State::kFree)
      complain("slot " + std::to_string(slot) + " is free but not so marked");
  }
  std::vector<std::pair<uint64_t, uint64_t>> ranges(extents_.ranges().begin(), extents_.ranges().end());
  for (const auto& [id, lease] : leases_) {
    ranges.emplace_back(lease.offset, lease.bytes);
    if (clients_.find(lease.client) == clients_.end()) complain("lease " + std::to_string(id) + " has no client");
    for (uint32_t slot : lease.slots) {
      if (slot_lease_[slot] != id) continue;
      if (place[slot] != kNowhere) complain("slot " + std::to_string(slot) + " is lent and also elsewhere");
      place[slot] = kInLease;
    }
  }
  table_.ForEachChained([&](uint32_t bucket, uint32_t slot) {
    if (slot >= slots_end_)
      return complain("bucket " + std::to_string(bucket) + " leads to slot " + std::to_string(slot));
    if (chained[slot]++ != 0) complain("slot " + std::to_string(slot) + " is in two chains");
    if (!table_.BelongsTo(slot, bucket)) complain("slot " + std::to_string(slot) + " is in a chain of another key");
    const State s = StateOf(table_.slot(slot).state.load());
    if (s == State::kFree || s == State::kEvicting)
      complain("slot " + std::to_string(slot) + " is in a chain in state " + std::to_string(int(s)));
    if (place[slot] == kOnFreeList) complain("slot " + std::to_string(slot) + " is free and in a chain");
    if (place[slot] != kNowhere) return;
    place[slot] = kOwnedByTable;
    uint64_t bytes = 0;
    const uint64_t offset = ExtentOf(slot, &bytes);
    const bool spilled = (slot_flags_[slot] & kNoBytes) != 0;
    if (!spilled) ranges.emplace_back(offset, bytes);
    if (s == State::kSpilled && (!spilled || on_disk_.count(slot) == 0))
      complain("slot " + std::to_string(slot) + " is spilled, but not on disk or still in memory");
    if (s == State::kSealed && spilled) complain("slot " + std::to_string(slot) + " is sealed without any bytes");
  });
  for (const auto& [slot, extent] : restoring_) ranges.push_back(extent);
  for (const auto& [slot, copy] : on_disk_) {
    if (place[slot] != kOwnedByTable) complain("slot " + std::to_string(slot) + " has bytes on disk but no object");
  }
  if (on_disk_in_order_.size() != on_disk_.size()) complain("what is on disk is not the same in order");
  for (const auto& [at, slot] : on_disk_in_order_) {
    if (PlaceOf(slot) != at) complain("slot " + std::to_string(slot) + " does not lie on disk where the order says");
  }
  for (uint32_t slot = 0; slot < slots_end_; ++slot) {
    if (place[slot] == kNowhere) complain("slot " + std::to_string(slot) + " is lost");
    if (slot_lease_[slot] != 0 && place[slot] != kInLease)
      complain("slot " + std::to_string(slot) + " names a lease that does not name it");
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (const auto& [offset, bytes] : ranges) {
    if (offset > at) complain("bytes " + std::to_string(at) + " to " + std::to_string(offset) + " are lost");
    if (offset < at) complain("bytes from " + std::to_string(offset) + " are given twice");
    at = std::max(at, offset + bytes);
  }
  if (at != extents_.pool_bytes()) complain("bytes from " + std::to_string(at) + " to the end are lost");
  if (bad_entries_ != 0) complain(std::to_string(bad_entries_) + " entries of clients made no sense");
  return wrong;
}

}  // namespace ray::plasma
