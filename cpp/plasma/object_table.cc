// Chained hashing whose chains change only at the head (anyone, one swap) or by removal (the store). See layout.h.
#include "plasma/object_table.h"

#include "plasma/crash_point.h"

namespace ray::plasma {

namespace {
// Load factor is at most 1, so a real chain is short; a longer walk has strayed through recycled slots.
constexpr uint32_t kChainSteps = 4096;

// Bucket: version << 32 | slot + 1.
constexpr uint32_t HeadSlot(uint64_t head) { return static_cast<uint32_t>(head); }
constexpr uint64_t NextHead(uint64_t head, uint32_t slot_plus_1) { return ((head >> 32) + 1) << 32 | slot_plus_1; }

bool Visible(State s) {
  return s == State::kCreated || s == State::kSealed || s == State::kEvicting || s == State::kSpilled;
}
}  // namespace

ObjectTable::ObjectTable(void* base) : header_(static_cast<ControlHeader*>(base)) {
  slots_ = header_->slots;
  bucket_count_ = header_->buckets;
  char* bytes = static_cast<char*>(base);
  bucket_array_ = reinterpret_cast<std::atomic<uint64_t>*>(bytes + kBucketsOffset);
  slot_array_ = reinterpret_cast<Slot*>(bytes + SlotsOffset(bucket_count_));
}

uint32_t ObjectTable::BucketsFor(uint32_t slots) {
  uint32_t buckets = 1;
  while (buckets < slots) buckets *= 2;
  return buckets;
}

void ObjectTable::Format(void* base, uint32_t slots, uint32_t buckets, uint64_t pool_bytes) {
  auto* header = static_cast<ControlHeader*>(base);
  header->magic = kControlMagic;
  header->version = kLayoutVersion;
  header->slots = slots;
  header->buckets = buckets;
  header->pool_bytes = pool_bytes;
  header->control_bytes = ControlBytes(slots, buckets);
}

std::optional<Found> ObjectTable::Walk(uint64_t head, const ObjectId& key) const {
  uint32_t at = HeadSlot(head);
  for (uint32_t step = 0; at != 0 && at <= slots_ && step < kChainSteps; ++step) {
    const Slot& s = slot_array_[at - 1];
    const uint64_t state = s.state.load(std::memory_order_acquire);
    if (Visible(StateOf(state)) && LoadKey(s) == key) {
      // The key belongs to this state only if the slot was not recycled while we compared.
      const uint64_t again = s.state.load(std::memory_order_acquire);
      if (GenerationOf(again) == GenerationOf(state) && Visible(StateOf(again))) return Found{at - 1, again};
    }
    at = s.next.load(std::memory_order_acquire);
  }
  return std::nullopt;
}

std::optional<Found> ObjectTable::Find(const ObjectId& key, uint64_t hash) const {
  std::atomic<uint64_t>& b = bucket(hash);
  uint64_t head = b.load(std::memory_order_acquire);
  for (;;) {
    if (auto found = Walk(head, key)) return found;
    // Nothing: true only if the chain is still the one that we walked (a removal under our feet could lead us astray).
    const uint64_t now = b.load(std::memory_order_acquire);
    if (now == head) return std::nullopt;
    head = now;
  }
}

std::optional<Found> ObjectTable::Insert(uint32_t mine, const ObjectId& key, uint64_t hash) const {
  std::atomic<uint64_t>& b = bucket(hash);
  uint64_t head = b.load(std::memory_order_acquire);
  for (;;) {
    if (auto found = Walk(head, key)) return found;
    slot_array_[mine].next.store(HeadSlot(head), std::memory_order_relaxed);
    RAY_CRASH_POINT();
    // Succeeds only if no slot of this bucket came or went since `head` was read, so the walk above still holds.
    // Release: whoever finds the slot finds its key and place. Killed before: the slot is merely lent. After: it is
    // found.
    if (b.compare_exchange_strong(head, NextHead(head, mine + 1), std::memory_order_acq_rel,
                                  std::memory_order_acquire)) {
      RAY_CRASH_POINT();
      return std::nullopt;
    }
  }
}

bool ObjectTable::Remove(uint32_t slot) const {
  std::atomic<uint64_t>& b = bucket(HashKey(LoadKey(slot_array_[slot])));
  const uint32_t wanted = slot + 1;
  uint64_t head = b.load(std::memory_order_acquire);
  const uint32_t after = slot_array_[slot].next.load(std::memory_order_relaxed);
  while (HeadSlot(head) == wanted) {
    if (b.compare_exchange_weak(head, NextHead(head, after), std::memory_order_acq_rel, std::memory_order_acquire)) {
      return true;
    }
  }
  // In the middle: others insert at the head only and nobody else removes, so the predecessor cannot change under us.
  uint32_t at = HeadSlot(head);
  for (uint32_t step = 0; at != 0 && at <= slots_ && step <= slots_; ++step) {
    Slot& s = slot_array_[at - 1];
    const uint32_t next = s.next.load(std::memory_order_relaxed);
    if (next == wanted) {
      s.next.store(after, std::memory_order_release);
      // The version tells readers and inserters that walked over the slot to walk again.
      while (!b.compare_exchange_weak(head, NextHead(head, HeadSlot(head)), std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      }
      return true;
    }
    at = next;
  }
  return false;
}

}  // namespace ray::plasma
