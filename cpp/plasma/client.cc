// The client's work in shared memory. Connecting and asking are in client_requests.cc; client.h says who may call what.
#include "plasma/client.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/clock.h"
#include "common/copy.h"
#include "plasma/crash_point.h"

namespace ray::plasma {

namespace {
constexpr uint64_t kDeletedBytesToRing = 256 << 10;  // so much may wait for the store's next look at the rings
constexpr int kSpinsWhileEvicting = 200;  // the store decides within a microsecond, unless it has lost its core
constexpr size_t kMapInBulkBytesMin = 256 << 10;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

// ---- find and pin

Step Client::FindAndPin(const ObjectId& key, uint64_t pin, Found* out) {
  const uint64_t hash = HashKey(key);
  for (int spins = 0;;) {
    if (died()) return Step::kDied;
    const auto found = table_.Find(key, hash);
    if (!found) return Step::kAbsent;
    const State state = StateOf(found->state);
    if (state != State::kSealed) [[unlikely]] {
      if (state == State::kCreated) return Step::kAbsent;
      if (state == State::kEvicting) {
        if (++spins > kSpinsWhileEvicting) return Step::kAsk;
        Pause();
        continue;
      }
    }
    pins_[found->slot].fetch_add(pin, std::memory_order_seq_cst);
    RAY_CRASH_POINT();
    // After the pin, in the one order that both sides see: if this still reads kSealed of the same generation, whoever
    // evicts or frees later sees our pin.
    if (table_.slot(found->slot).state.load(std::memory_order_seq_cst) == found->state) {
      *out = *found;
      return state == State::kSealed ? Step::kDone : Step::kSpilled;
    }
    Unpin(found->slot, pin);
  }
}

void Client::Describe(uint32_t slot, Place* out) {
  Slot& s = table_.slot(slot);
  out->data_bytes = s.data_bytes.load(std::memory_order_relaxed);
  out->metadata_bytes = s.metadata_bytes.load(std::memory_order_relaxed);
  // After the pin: an object that was spilled and restored has another place, and stays there from now on.
  out->address = readable_ + s.offset.load(std::memory_order_relaxed);
  s.last_used_ns.store(NowNs(), std::memory_order_relaxed);
}

Step Client::TryGet(const ObjectId& key, Place* out) {
  Found found;
  const Step step = FindAndPin(key, kReading, &found);
  if (step != Step::kDone && step != Step::kSpilled) return step;
  out->slot = found.slot;
  out->generation = GenerationOf(found.state);
  Describe(found.slot, out);
  return step;
}

Step Client::TryPin(const ObjectId& key) {
  Found found;
  const Step step = FindAndPin(key, kKeeping, &found);
  if (step != Step::kDone && step != Step::kSpilled) return step;
  std::lock_guard<std::mutex> lock(mutex_);
  plain_pins_[std::string(reinterpret_cast<const char*>(key.bytes), sizeof(key.bytes))].push_back(found.slot);
  return Step::kDone;  // also if its bytes are on disk: it is kept
}

bool Client::UnpinKey(const ObjectId& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = plain_pins_.find(std::string(reinterpret_cast<const char*>(key.bytes), sizeof(key.bytes)));
  if (found == plain_pins_.end()) return false;
  // The one pinned last: if the key was deleted and made anew meanwhile, that is what the caller can mean.
  const uint32_t slot = found->second.back();
  found->second.pop_back();
  if (found->second.empty()) plain_pins_.erase(found);
  Unpin(slot, kKeeping);
  return true;
}

void Client::Unpin(uint32_t slot) { Unpin(slot, kReading); }

void Client::Unpin(uint32_t slot, uint64_t pin) {
  if (Forked()) return;  // the pin is our parent's
  table_.slot(slot).last_used_ns.store(NowNs(), std::memory_order_relaxed);
  RAY_CRASH_POINT();
  // Others of ours read it on; if they only keep it, it may be spilled now.
  if (ReadingPins(pins_[slot].fetch_sub(pin, std::memory_order_seq_cst) - pin) != 0) return;
  RAY_CRASH_POINT();
  // A writer waits for room: the store has set this before it looked at our pin, or will see the pin gone.
  if (table_.header()->room_wanted.load(std::memory_order_seq_cst) != 0) RingDoorbell();
}

Step Client::Contains(const ObjectId& key) const {
  if (died()) return Step::kDied;
  const auto found = table_.Find(key, HashKey(key));
  if (!found) return Step::kAbsent;
  if (StateOf(found->state) == State::kEvicting) return Step::kAsk;
  return StateOf(found->state) == State::kCreated ? Step::kAbsent : Step::kDone;
}

bool Client::Unsealed(uint32_t slot, uint64_t generation) const {
  return table_.slot(slot).state.load(std::memory_order_acquire) == StateWord(generation, State::kCreated);
}

// ---- create and seal

Step Client::TryCreate(const ObjectId& key, uint64_t data_bytes, uint64_t metadata_bytes, Place* out) {
  if (died()) return Step::kDied;
  const uint64_t bytes = ObjectExtentBytes(data_bytes, metadata_bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > kSmallObjectBytesMax) {
    const auto own = std::find_if(own_.begin(), own_.end(), [&](const Extent& e) { return e.end - e.at == bytes; });
    if (own == own_.end()) {
      // Ask for nothing if it is there already.
      const auto found = table_.Find(key, HashKey(key));
      return found && StateOf(found->state) != State::kEvicting ? Step::kExists : Step::kAsk;
    }
    const Step step = Publish(own->slots[0], own->at, key, data_bytes, metadata_bytes, out);
    if (step == Step::kDone) {
      own_.erase(own);
    } else if (step == Step::kExists) {
      const ReturnRequest back{own->lease};
      static_cast<void>(connection_->Tell(Message::kReturn, 0, &back, sizeof(back)));  // a dead store needs it not
      own_.erase(own);
    }
    return step;
  }
  Extent& e = extent_;
  if (e.end - e.at < bytes || e.next_slot == e.slots.size()) return Step::kAsk;
  const Step step = Publish(e.slots[e.next_slot], e.at, key, data_bytes, metadata_bytes, out);
  if (step == Step::kDone) {
    ++e.next_slot;
    e.at += bytes;
  }
  return step;
}

Step Client::Publish(uint32_t slot, uint64_t offset, const ObjectId& key, uint64_t data_bytes, uint64_t metadata_bytes,
                     Place* out) {
  // Killed before Insert's swap: the slot is merely lent to us, and goes back with the lease.
  Slot& s = table_.slot(slot);
  const uint64_t generation = GenerationOf(s.state.load(std::memory_order_relaxed));
  StoreKey(&s, key);
  s.offset.store(offset, std::memory_order_relaxed);
  s.data_bytes.store(data_bytes, std::memory_order_relaxed);
  s.metadata_bytes.store(metadata_bytes, std::memory_order_relaxed);
  s.creator.store(id_, std::memory_order_relaxed);
  s.creator_pid.store(static_cast<uint32_t>(own_pid_), std::memory_order_relaxed);
  s.created_ns.store(NowNs(), std::memory_order_relaxed);
  RAY_CRASH_POINT();
  pins_[slot].fetch_add(kReading,
                        std::memory_order_seq_cst);  // the creator's own; before anybody can find, seal or delete it
  RAY_CRASH_POINT();
  s.state.store(StateWord(generation, State::kCreated), std::memory_order_release);
  RAY_CRASH_POINT();
  const auto found = table_.Insert(slot, key, HashKey(key));
  if (found) {
    pins_[slot].fetch_sub(kReading, std::memory_order_seq_cst);
    // A new generation: one who strayed here must not take the next key for this one.
    s.state.store(StateWord(generation + 1, State::kFree), std::memory_order_release);
    return StateOf(found->state) == State::kEvicting ? Step::kAsk : Step::kExists;
  }
  *out = {writable_ + offset, data_bytes, metadata_bytes, slot, generation};
  return Step::kDone;
}

Step Client::TrySeal(const ObjectId& key) {
  if (died()) return Step::kDied;
  const auto found = table_.Find(key, HashKey(key));
  if (!found || StateOf(found->state) != State::kCreated ||
      table_.slot(found->slot).creator.load(std::memory_order_relaxed) != id_) {
    return Step::kAbsent;
  }
  return TrySealSlot(found->slot, GenerationOf(found->state));
}

Step Client::TrySealSlot(uint32_t slot, uint64_t generation) {
  if (died()) return Step::kDied;
  Slot& s = table_.slot(slot);
  const int64_t now = NowNs();
  s.sealed_ns.store(now, std::memory_order_relaxed);
  s.last_used_ns.store(now, std::memory_order_relaxed);
  RAY_CRASH_POINT();
  // Publishes the bytes: whoever reads kSealed reads all of them. Sequentially consistent because a watcher that is not
  // seen by the loads below has yet to look this key up, and will find it sealed.
  s.state.store(StateWord(generation, State::kSealed), std::memory_order_seq_cst);
  RAY_CRASH_POINT();
  ControlHeader* header = table_.header();
  if (header->subscribers.load(std::memory_order_seq_cst) == 0 &&
      header->seal_watch[HashKey(LoadKey(s)) % kSealWatches].load(std::memory_order_seq_cst) == 0) {
    return Step::kDone;
  }
  // Killed before the ring is written: the store finds it sealed when it undoes us, and tells.
  std::unique_lock<std::mutex> lock(mutex_);
  const bool told = PushRing(RingOp::kSealed, slot, generation);
  lock.unlock();
  RingDoorbell();
  return told ? Step::kDone : Step::kAsk;
}

Step Client::TryAbort(const ObjectId& key) {
  if (died()) return Step::kDied;
  const auto found = table_.Find(key, HashKey(key));
  if (!found || StateOf(found->state) != State::kCreated ||
      table_.slot(found->slot).creator.load(std::memory_order_relaxed) != id_) {
    return Step::kAbsent;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t generation = GenerationOf(found->state);
  if (!PushRing(RingOp::kDelete, found->slot, generation)) return Step::kAsk;
  uint64_t created = StateWord(generation, State::kCreated);
  table_.slot(found->slot).state.compare_exchange_strong(created, StateWord(generation, State::kDeleting));
  RingDoorbell();
  return Step::kDone;
}

Step Client::TryDelete(const ObjectId& key) {
  if (died()) return Step::kDied;
  const auto found = table_.Find(key, HashKey(key));
  if (!found || StateOf(found->state) == State::kCreated) return Step::kAbsent;
  Slot& s = table_.slot(found->slot);
  const uint64_t generation = GenerationOf(found->state);
  const uint64_t bytes = s.data_bytes.load(std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(mutex_);
  // First told, then done: killed in between, the store does it.
  if (!PushRing(RingOp::kDelete, found->slot, generation)) return Step::kAsk;
  RAY_CRASH_POINT();
  uint64_t sealed = StateWord(generation, State::kSealed);
  // Fails if somebody else deletes it, or the store is evicting it; if it keeps it after all, it does what the ring
  // says.
  uint64_t spilled = StateWord(generation, State::kSpilled);
  if (!s.state.compare_exchange_strong(sealed, StateWord(generation, State::kDeleting), std::memory_order_seq_cst) &&
      sealed == spilled) {
    s.state.compare_exchange_strong(spilled, StateWord(generation, State::kDeleting), std::memory_order_seq_cst);
  }
  RAY_CRASH_POINT();
  deleted_bytes_ += bytes;
  const ControlHeader* header = table_.header();
  const uint64_t waiting =
      journal_->produced.load(std::memory_order_relaxed) - journal_->consumed.load(std::memory_order_relaxed);
  if (deleted_bytes_ >= kDeletedBytesToRing || waiting >= kRingEntries / 2 ||
      header->room_wanted.load(std::memory_order_seq_cst) != 0 ||
      header->subscribers.load(std::memory_order_seq_cst) != 0) {
    deleted_bytes_ = 0;
    RingDoorbell();
  }
  return Step::kDone;
}

Step Client::TryLapse(const ObjectId& key) {
  if (died()) return Step::kDied;
  const auto found = table_.Find(key, HashKey(key));
  if (!found || StateOf(found->state) == State::kCreated) return Step::kAbsent;
  std::lock_guard<std::mutex> lock(mutex_);
  if (!PushRing(RingOp::kLapse, found->slot, GenerationOf(found->state))) return Step::kAsk;
  RAY_CRASH_POINT();
  RingDoorbell();
  return Step::kDone;
}

void Client::Unpinned(const ObjectId& key) {
  const auto found = table_.Find(key, HashKey(key));
  if (died() || !found) return;
  std::lock_guard<std::mutex> lock(mutex_);
  // With a full ring it is one of many that the store looks at in turn.
  static_cast<void>(PushRing(RingOp::kUnpinned, found->slot, GenerationOf(found->state)));
  RingDoorbell();
}

bool Client::PushRing(RingOp op, uint32_t slot, uint64_t generation) {
  JournalHeader& j = *journal_;
  const uint64_t at = j.produced.load(std::memory_order_relaxed);
  if (at - j.consumed.load(std::memory_order_acquire) >= kRingEntries) return false;
  RingEntry& e = j.ring[at % kRingEntries];
  e.slot_and_op.store(static_cast<uint64_t>(op) << 32 | slot, std::memory_order_relaxed);
  e.generation.store(generation, std::memory_order_relaxed);
  RAY_CRASH_POINT();
  j.produced.store(at + 1, std::memory_order_release);  // publishes the entry
  return true;
}

void Client::RingDoorbell() {
  const uint64_t one = 1;
  // EAGAIN: the counter is full, so it rings already. Anything else: the store has died, as the next call will say.
  if (write(doorbell_fd_, &one, sizeof(one)) < 0) return;
}

// ---- copying

void Client::Copy(void* dest, const void* source, size_t bytes) {
  auto* to = static_cast<uint8_t*>(dest);
  const bool ours = to >= writable_ && to + bytes <= writable_ + pool_bytes_;
  if (!ours || bytes < kMapInBulkBytesMin) return ParallelCopy(dest, source, bytes);
  struct Range {
    Client* client;
    uint64_t offset;
  } range{this, static_cast<uint64_t>(to - writable_)};
  ParallelCopy(
      dest, source, bytes,
      [](void* context, size_t from, size_t end) {
        const auto* r = static_cast<const Range*>(context);
        r->client->mapped_->Map(r->offset + from, r->offset + end, MappedPages::Reach::kExact);
      },
      &range);
}

void Client::Prepare(const void* dest, size_t bytes) {
  const auto from = static_cast<uint64_t>(static_cast<const uint8_t*>(dest) - writable_);
  if (from < pool_bytes_ && bytes <= pool_bytes_ - from) mapped_->Map(from, from + bytes, MappedPages::Reach::kExact);
}

}  // namespace ray::plasma
