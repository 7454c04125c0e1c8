// The bytes that the plasma store and its clients share. Included by both sides and by the tests; nothing else
// describes them.
//
//   control segment (memfd; one; everybody reads and writes)         journal (memfd; one per client; that client and
//   the store)
//   +--------------------------------------------------+             +---------------------------------------------+
//   | ControlHeader      page 0: sizes, life, watches  |             | JournalHeader  ring of things to tell       |
//   | buckets            u64 each: version | slot + 1  |             | pins           u64 per slot of the table    |
//   | slots              128 bytes each                |             +---------------------------------------------+
//   +--------------------------------------------------+
//   pool (memfd, or an unnamed file in plasma_directory or on hugetlbfs): the objects' bytes. Object = data, then
//   metadata.
//
// The rules that make a kill at any instruction harmless:
// * A slot belongs to exactly one of: the store's free list; a lease (lent to one client); a chain of the table. Whom
// it is
//   lent to is known to the store alone, in memory that no client can write.
// * A lent slot is filled in private, then enters a chain by ONE compare-and-swap of the bucket's head. Only the store
// ever
//   takes a slot out of a chain. It bumps the bucket's version after that and before the slot is used again, so that
//   whoever walked through the slot meanwhile can tell.
// * CREATED becomes SEALED by ONE store. Who reads SEALED (acquire) may read every byte of the object.
// * A pin is a count in the pinning client's own journal, nowhere else: its death drops the journal and thereby exactly
// its pins.
//   Pin: add 1 to pins[slot], then check that the slot's state word is still what it was (same generation, SEALED).
//   Evict: set EVICTING, then look at pins[slot] of every client. Both sequentially consistent: one of the two sees the
//   other.
// * A deletion is first written to the client's ring, then done. The store does each ring entry again, to no effect if
// done.
#pragma once

#include <linux/futex.h>
#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "common/ids.h"
#include "common/limits.h"

namespace ray::plasma {

constexpr uint64_t kControlMagic = 0x31'6f'72'74'6e'6f'63'70;  // "pcontro1"
constexpr uint32_t kLayoutVersion = 3;
constexpr size_t kPageBytes = 4096;
constexpr size_t kObjectAlignBytes = 64;  // numpy, Arrow and non-temporal stores like cache lines
constexpr uint32_t kNoSlot = 0xffffffff;

// One slot per so many bytes of pool; a pool of smaller objects than this runs out of slots and evicts for them.
constexpr uint64_t kPoolBytesPerSlot = 4096;
constexpr uint32_t kSlotsMin = 4096;
constexpr uint32_t kSlotsMax = 1u << 24;

enum class State : uint8_t {
  kFree = 0,      // unpublished: on the free list, or lent and not yet in a chain
  kCreated = 1,   // being written (and possibly not yet in its chain)
  kSealed = 2,    // immutable, visible
  kDeleting = 3,  // invisible; memory is reused once nobody pins it
  kEvicting = 4,  // the store is deciding: becomes kSealed again or goes; ask the store (kSync) to know
  kSpilled = 5,   // immutable, but its bytes are on disk only; pin it and ask the store to bring them back (kRestore)
};

// A pin, as counted in a journal: of one who reads the bytes where they are, in the low half; or, in the high half, of
// one who only wants the object to be there when it is asked for: its bytes may go to disk meanwhile.
constexpr uint64_t kReading = 1;
constexpr uint64_t kKeeping = uint64_t{1} << 32;
constexpr uint32_t ReadingPins(uint64_t pins) { return static_cast<uint32_t>(pins); }
constexpr uint32_t KeepingPins(uint64_t pins) { return static_cast<uint32_t>(pins >> 32); }

// Slot.state: generation << 8 | State. The generation grows each time the store takes the slot back, never repeats.
constexpr uint64_t StateWord(uint64_t generation, State s) { return generation << 8 | static_cast<uint64_t>(s); }
constexpr State StateOf(uint64_t word) { return static_cast<State>(word & 0xff); }
constexpr uint64_t GenerationOf(uint64_t word) { return word >> 8; }

// Every field is atomic because readers may look at a slot that is being recycled; they find out by the state word.
// Place and sizes are relaxed: published by the bucket's swap or by the seal.
struct alignas(kCacheLineBytes) Slot {
  std::atomic<uint64_t> state;
  std::atomic<uint32_t> next;  // slot + 1 of the next in the chain; 0 ends it
  std::atomic<uint32_t> key32;
  std::atomic<uint64_t> key64[3];
  std::atomic<uint64_t> offset;  // in the pool, multiple of kObjectAlignBytes
  std::atomic<uint64_t> data_bytes;
  // second cache line: what a lookup that fails does not need
  std::atomic<uint64_t> metadata_bytes;
  std::atomic<int64_t> last_used_ns;  // CLOCK_MONOTONIC: seal, latest get, latest release
  std::atomic<int64_t> created_ns;
  std::atomic<int64_t> sealed_ns;
  std::atomic<uint64_t> creator;  // the store's number for the client that made it
  std::atomic<uint32_t> creator_pid;
  uint32_t zero;
  uint64_t reserved[2];
};
static_assert(sizeof(Slot) == 2 * kCacheLineBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == 8);

// Release and acquire, so that a reader who saw any word of a recycled slot's new key also sees its new generation.
inline void StoreKey(Slot* slot, const ObjectId& key) {
  uint64_t words[3];
  uint32_t last;
  std::memcpy(words, key.bytes, 24);
  std::memcpy(&last, key.bytes + 24, 4);
  for (int i = 0; i < 3; ++i) slot->key64[i].store(words[i], std::memory_order_release);
  slot->key32.store(last, std::memory_order_release);
}
inline ObjectId LoadKey(const Slot& slot) {
  uint64_t words[3];
  for (int i = 0; i < 3; ++i) words[i] = slot.key64[i].load(std::memory_order_acquire);
  const uint32_t last = slot.key32.load(std::memory_order_acquire);
  ObjectId key;
  std::memcpy(key.bytes, words, 24);
  std::memcpy(key.bytes + 24, &last, 4);
  return key;
}

// What an object takes of the pool.
constexpr uint64_t ObjectExtentBytes(uint64_t data_bytes, uint64_t metadata_bytes) {
  const uint64_t n = data_bytes + metadata_bytes;
  return n == 0 ? kObjectAlignBytes : (n + kObjectAlignBytes - 1) / kObjectAlignBytes * kObjectAlignBytes;
}

// Keys are not random (a counter is in them), so all 28 bytes are mixed.
inline uint64_t HashKey(const ObjectId& key) {
  uint64_t words[4] = {0, 0, 0, 0};
  std::memcpy(words, key.bytes, sizeof(key.bytes));
  uint64_t h = 0x9e3779b97f4a7c15ull;
  for (uint64_t w : words) {
    const __uint128_t product = static_cast<__uint128_t>(h ^ w) * 0xd6e8feb86659fd93ull;
    h = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  return h;
}

constexpr uint32_t kSealWatches = 512;

struct ControlHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slots;
  uint32_t buckets;  // a power of two >= slots
  uint32_t zero;
  uint64_t pool_bytes;
  uint64_t control_bytes;
  int32_t server_pid;
  std::atomic<uint32_t>
      has_spilled;  // 1 from the first object that went to disk on: until then nobody need look for any
  // Robust, held by the store's main thread for life. When the store dies, of whatever cause, the kernel sets
  // FUTEX_OWNER_DIED in the lock word; so one load tells every client, without a system call, whether the store lives.
  alignas(kCacheLineBytes) pthread_mutex_t life;
  // Nonzero while a writer waits for room: then (and only then) the last unpin of an object rings the doorbell.
  alignas(kCacheLineBytes) std::atomic<uint32_t> room_wanted;
  std::atomic<uint32_t> subscribers;  // nonzero: every seal and delete is told to the store at once
  // Someone waits for a key whose hash falls here: its seal is told to the store at once.
  alignas(kCacheLineBytes) std::atomic<uint32_t> seal_watch[kSealWatches];
};
static_assert(sizeof(ControlHeader) <= kPageBytes);

// The futex word of `life` (glibc keeps it first, and would break every binary by moving it).
inline std::atomic<uint32_t>* LifeWord(ControlHeader* header) {
  return reinterpret_cast<std::atomic<uint32_t>*>(&header->life);
}
inline bool StoreDied(ControlHeader* header) {
  return (LifeWord(header)->load(std::memory_order_relaxed) & FUTEX_OWNER_DIED) != 0;
}

constexpr uint64_t RoundUpToPage(uint64_t n) { return (n + kPageBytes - 1) / kPageBytes * kPageBytes; }
constexpr uint64_t kBucketsOffset = kPageBytes;
constexpr uint64_t SlotsOffset(uint32_t buckets) { return kBucketsOffset + RoundUpToPage(uint64_t{buckets} * 8); }
constexpr uint64_t ControlBytes(uint32_t slots, uint32_t buckets) {
  return SlotsOffset(buckets) + RoundUpToPage(uint64_t{slots} * sizeof(Slot));
}

// What a client tells the store. Written by the client before the deed (kDelete) or after it (kSealed, kUnpinned).
// kLapse asks the store to do it: the object goes as soon as nobody pins it. kUnpinned: that may be now, if it has
// lapsed.
enum class RingOp : uint32_t { kDelete = 1, kSealed = 2, kLapse = 3, kUnpinned = 4 };
struct RingEntry {
  std::atomic<uint64_t> slot_and_op;  // op << 32 | slot
  std::atomic<uint64_t> generation;
};
constexpr uint32_t kRingEntries = 1024;
static_assert((kRingEntries & (kRingEntries - 1)) == 0);

struct JournalHeader {
  alignas(kCacheLineBytes) std::atomic<uint64_t> produced;  // by the client; entry i is at i % kRingEntries
  alignas(kCacheLineBytes) std::atomic<uint64_t> consumed;  // by the store
  alignas(kCacheLineBytes) RingEntry ring[kRingEntries];
};
constexpr uint64_t kPinsOffset = RoundUpToPage(sizeof(JournalHeader));
constexpr uint64_t JournalBytes(uint32_t slots) { return kPinsOffset + RoundUpToPage(uint64_t{slots} * 8); }

}  // namespace ray::plasma
