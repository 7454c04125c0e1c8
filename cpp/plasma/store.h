// Every decision of the store: what is lent to whom, what is evicted, what a dead client left. No sockets, no clock of
// its own.
//
// Store process, event-loop thread. Owns the truth about slots and extents in private memory; reads what clients wrote
// to shared memory with suspicion (bounds are checked; a lie can at worst leak or overwrite objects, which a client of
// the same user could do anyway, but never harms the store). The invariant, checked by Audit(): each slot is on the
// free list, in a lease, or in a chain; free ranges, leases' extents and objects outside leases cover the pool exactly
// once.
//
// A slot_flag is the store's private word on a slot, beside the shared state.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/status.h"
#include "plasma/eviction.h"
#include "plasma/extents.h"
#include "plasma/object_table.h"
#include "plasma/read_ahead.h"
#include "plasma/spill_files.h"

namespace ray::plasma {

using ClientId = uint64_t;  // never reused
using LeaseId = uint64_t;   // never reused

// Zeroed memory that costs nothing until touched.
template <typename T>
class LazyArray {
 public:
  explicit LazyArray(size_t n) : data_(static_cast<T*>(std::calloc(n, sizeof(T)))) {
    if (data_ == nullptr) std::abort();
  }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// A client's journal as the store maps it.
struct Journal {
  JournalHeader* header = nullptr;
  const std::atomic<uint64_t>* pins = nullptr;
};

struct Lent {
  LeaseId lease = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  std::vector<uint32_t> slots;
};

enum class LendResult { kLent, kNoRoom, kTooLarge };

struct ObjectEvent {
  ObjectId key;
  uint64_t data_bytes;
  uint64_t metadata_bytes;
  bool deleted;  // else sealed
};

// A sealed object whose bytes are to be copied to disk. They stay where they are until SpillWritten or SpillFailed.
struct SpillWrite {
  uint32_t slot;
  uint64_t generation, offset;
  ObjectId key;
  uint64_t data_bytes, metadata_bytes;
};

// What is on disk of an object; kept as long as the object, also after it was brought back.
struct DiskCopy {
  DiskPlace place;
  uint64_t data_bytes, metadata_bytes, checksum;
};

struct OnDisk {
  ReadAhead::Place place;
  uint64_t bytes;  // of its record
  uint32_t slot;
  std::optional<uint64_t> spilled;  // its generation, if it is not in memory
};

// A spilled object whose bytes are to be copied to `offset`, until EndRestore or AbortRestore.
struct SpillRead {
  uint64_t offset;
  ObjectId key;
  DiskCopy copy;
};

enum class RestoreStep {
  kHere,     // it is in memory
  kGone,     // no such object (any more)
  kRunning,  // it is being brought back
  kNoRoom,
  kStarted,
};

struct ClientUse {
  ClientId client;
  uint32_t pid;
  uint64_t pinned_bytes;
  uint64_t pinned_objects;
  uint64_t unsealed_bytes;
  uint64_t unsealed_objects;
  uint64_t lent_bytes;  // of extents it writes small objects into
};

struct StoreUse {
  uint64_t pool_bytes, free_bytes, largest_free_bytes;
  uint64_t sealed_objects, sealed_bytes, unsealed_objects, unsealed_bytes, deleting_objects, deleting_bytes;
  uint64_t slots, slots_free;
  uint64_t evicted_objects, evicted_bytes, bad_entries;
  uint64_t spilled_objects, spilled_bytes;
};

struct ObjectRow {
  ObjectId key;
  uint64_t data_bytes, metadata_bytes;
  State state;
  int64_t created_ns, sealed_ns;
  uint32_t creator_pid;
  uint64_t pins;
  std::vector<uint32_t> pinning_pids;
};

constexpr uint8_t kInDeleting = 1;  // slot is listed in deleting_
constexpr uint8_t kAnnounced = 2;   // its seal has become an event
constexpr uint8_t kWriting = 4;     // its bytes are being copied to disk
constexpr uint8_t kRestoring = 8;   // its bytes are being copied from disk
constexpr uint8_t kNoBytes = 16;    // kSpilled, or kDeleting and was that: nothing of the pool is its
constexpr uint8_t kLapsed = 32;     // slot is listed in lapsed_

constexpr size_t kLapsedLooks = 64;  // for each request: a microsecond or two

class Store {
 public:
  // table: formatted and empty.
  Store(ObjectTable table, uint64_t pool_bytes);

  // The journal must stay mapped until ClientGone returns.
  ClientId AddClient(uint32_t pid, Journal journal);
  // Undoes all it left: pins, unsealed objects, leases. Its threads must have ended, or have promised never to write
  // again.
  void ClientGone(ClientId client);

  // Lends an extent of >= need_bytes (exactly, for `exact`, and then with one slot). Evicts if it must. kNoRoom:
  // everything left is pinned, unsealed or lent. reserve_bytes: a free range of that length must be left; see
  // ReserveBytes.
  LendResult Lend(ClientId client, uint64_t need_bytes, bool exact, Lent* out, uint64_t reserve_bytes = 0);
  // The client says it will create nothing more under this lease.
  bool CloseLease(ClientId client, LeaseId lease);

  // The kernel has no page beyond `bytes`: the pool ends there. Whatever was lent beyond must have been returned.
  void Cap(uint64_t bytes) { extents_.Cap(bytes / kObjectAlignBytes * kObjectAlignBytes); }

  // Reads every client's ring and does what it says. Bounded by clients * kRingEntries.
  void Drain();
  // Frees deleted objects whose last pin is gone, and lapsed ones, of which it looks at kLapsedLooks in turn: whoever
  // lets go of one says so by the ring, and those that others keep may be many.
  void ReclaimDeleted();
  // Evicts until at least so many bytes are freed or nothing is left to evict; returns the bytes freed.
  uint64_t Evict(uint64_t bytes);

  // ---- spilling (spill.cc). Who reads and writes files, and where, is the caller's matter (spiller.h).

  // Makes room for an extent of need_bytes, rather want_bytes (>= need_bytes), at once or by what is to be written:
  // chooses the piece of the pool whose latest use is the longest ago and that holds nothing but free bytes and objects
  // that nobody reads. Drops what is on disk already or unpinned. False: there is no such piece.
  // may_write false: no disk takes anything, so only what is there already may go.
  bool PlanSpill(uint64_t need_bytes, uint64_t want_bytes, bool may_write, std::vector<SpillWrite>* writes);
  // What writers should leave free so that spilled objects can be read one after the other, even if the disk is full:
  // room for the largest of them.
  uint64_t ReserveBytes() const { return on_disk_.empty() ? 0 : largest_spilled_bytes_; }
  // It is on disk; now, unless somebody reads it, its memory is free. In whatever state the object is.
  void SpillWritten(uint32_t slot, const DiskCopy& copy);
  void SpillFailed(uint32_t slot);
  // For a reader who has pinned the slot. Takes an extent, evicting as Lend does.
  uint64_t SpilledBytes(uint32_t slot) const;  // the extent it needs to come back; 0: it is not spilled
  RestoreStep StartRestore(uint32_t slot, uint64_t generation, SpillRead* out);
  // Of the objects on disk, in memory too or not, that before and that behind this one, as they lie in the files.
  std::optional<OnDisk> OnDiskBefore(const ReadAhead::Place& at) const;
  std::optional<OnDisk> OnDiskAfter(const ReadAhead::Place& at) const;
  std::optional<ReadAhead::Place> PlaceOf(uint32_t slot) const;
  // Its bytes are back; or (not ok) damaged, and the object lost.
  void EndRestore(uint32_t slot, bool ok);
  // Not begun, because its extent cannot be used: as if StartRestore had not been called.
  void AbortRestore(uint32_t slot);
  // Copies on disk that nobody needs any more, since the last call.
  std::vector<DiskPlace> TakeFreedDisk() { return std::exchange(disk_freed_, {}); }

  // Whether seals are to become events although nobody told of them (an idle store shall not collect any).
  void set_watched(bool watched) { watched_ = watched; }
  // Seals that clients told of (they do while watched) or that came to light, and deletions of announced objects while
  // there are subscribers; since the last call, in order.
  std::vector<ObjectEvent> TakeEvents() { return std::exchange(events_, {}); }
  // Objects that are sealed now; calls them announced.
  std::vector<ObjectEvent> SealedNow();

  StoreUse Use() const;
  std::vector<ClientUse> Holders() const;
  // A paragraph for a person whose create found no room.
  std::string DescribeHolders() const;
  // Rows of slots >= *cursor, at most max_rows; advances *cursor, to slots() at the end.
  std::vector<ObjectRow> List(uint32_t* cursor, size_t max_rows) const;

  // Derives every index anew from shared memory; "" or what is wrong. O(slots); for tests and tools.
  std::string Audit() const;

  const Extents& extents() const { return extents_; }
  uint32_t slots() const { return table_.slots(); }

 private:
  struct Unsealed {
    uint32_t slot;
    uint64_t generation;
  };
  struct Client {
    uint32_t pid;
    Journal journal;
    std::vector<LeaseId> leases;
    std::vector<Unsealed> unsealed;  // left over from closed leases
    uint64_t next_extent_bytes;
  };
  struct Lease {
    ClientId client;
    uint64_t offset, bytes;
    bool exact;
    std::vector<uint32_t> slots;
  };

  bool Pinned(uint32_t slot) const;
  uint64_t PinsOf(uint32_t slot) const;  // of all clients; each half is right as to being zero
  void DropCopy(uint32_t slot);          // of what is on disk
  OnDisk Describe(const std::pair<const ReadAhead::Place, uint32_t>& entry) const;
  bool TryDrop(uint32_t slot);  // takes an object that nobody reads out of memory: evicts or spills it
  void DropOrphans();           // spilled objects that nobody keeps
  uint64_t ExtentOf(uint32_t slot, uint64_t* bytes) const;  // clamped to the pool
  void DrainClient(ClientId id, Client& client);
  void DeleteEntry(ClientId id, uint32_t slot, uint64_t generation);
  void SealEntry(uint32_t slot, uint64_t generation);
  void LapseEntry(uint32_t slot, uint64_t generation);
  bool TryLapse(uint32_t slot, uint64_t generation);  // true: it is gone
  void LookAtLapsed(size_t looks);
  bool TryReclaim(uint32_t slot);  // a kDeleting slot; true if it is free now
  // kEvicting or kDeleting, unpinned, -> free list. Returns the length of the free range that its bytes have joined, 1
  // if they stay with an open lease.
  uint64_t FreeSlot(uint32_t slot);
  void ReturnSlot(uint32_t slot, uint64_t generation);
  bool EvictOne(uint64_t* freed_bytes, uint64_t* range_bytes);
  std::optional<uint64_t> TakeEvicting(uint64_t bytes, uint64_t evict_bytes_max);
  bool CouldFit(uint64_t bytes) const;  // if everything that may be evicted were
  void TakeSlots(size_t want, std::vector<uint32_t>* out);
  void ReviewClient(
      Client& client);  // closes exact leases whose object is sealed; forgets unsealed that are sealed now
  void EndLease(LeaseId id, bool client_gone);
  void UndoCreated(uint32_t slot);
  void Announce(uint32_t slot);

  ObjectTable table_;
  Extents extents_;
  LeastRecentlyUsed lru_;
  std::map<ClientId, Client> clients_;
  std::unordered_map<LeaseId, Lease> leases_;
  LazyArray<LeaseId> slot_lease_;  // 0: on the free list, or the table's own
  LazyArray<uint8_t> slot_flags_;
  std::vector<uint32_t> free_slots_;                   // used before; taken from the back
  uint32_t slots_end_ = 0;                             // slots from here on were never used
  std::vector<uint32_t> deleting_;                     // kDeleting and pinned when last looked at
  std::vector<std::pair<uint32_t, uint64_t>> lapsed_;  // slot, generation: nobody owns it, pinned when last looked at
  size_t lapsed_at_ = 0;                               // whose turn it is
  std::vector<ObjectEvent> events_;
  std::unordered_map<uint32_t, DiskCopy> on_disk_;                         // by slot
  std::map<ReadAhead::Place, uint32_t> on_disk_in_order_;                  // slots, as they lie in the files
  std::unordered_map<uint32_t, std::pair<uint64_t, uint64_t>> restoring_;  // by slot: the extent it is read into
  std::vector<DiskPlace> disk_freed_;
  uint64_t largest_spilled_bytes_ = 0;  // since on_disk_ was last empty
  bool watched_ = false;
  ClientId next_client_ = 1;
  LeaseId next_lease_ = 1;
  uint64_t evicted_objects_ = 0, evicted_bytes_ = 0, bad_entries_ = 0;
};

}  // namespace ray::plasma
