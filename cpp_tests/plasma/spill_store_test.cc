// What Store decides about spilling, by example and in a seeded simulation of clients and a disk; no I/O.
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "plasma/store.h"
#include "testing.h"

namespace ray::plasma {
namespace {

constexpr uint64_t kPoolBytes = 8 << 20;
constexpr uint64_t kMiB = 1 << 20;

ObjectId Key(uint64_t n) {
  uint8_t bytes[28] = {};
  std::memcpy(bytes + 16, &n, 8);
  return ObjectId::FromBytes(bytes);
}

struct FakeClient {
  std::unique_ptr<JournalHeader> header = std::make_unique<JournalHeader>();
  std::unique_ptr<std::atomic<uint64_t>[]> pins;
  ClientId id = 0;
};

struct World {
  World() {
    constexpr uint32_t kSlots = 512;
    const uint32_t buckets = ObjectTable::BucketsFor(kSlots);
    base.reset(std::aligned_alloc(kPageBytes, ControlBytes(kSlots, buckets)));
    std::memset(base.get(), 0, ControlBytes(kSlots, buckets));
    ObjectTable::Format(base.get(), kSlots, buckets, kPoolBytes);
    table = ObjectTable(base.get());
    store = std::make_unique<Store>(table, kPoolBytes);
  }
  FakeClient* NewClient() {
    auto client = std::make_unique<FakeClient>();
    client->pins = std::make_unique<std::atomic<uint64_t>[]>(table.slots());
    client->id =
        store->AddClient(1000 + static_cast<uint32_t>(clients.size()), {client->header.get(), client->pins.get()});
    clients.push_back(std::move(client));
    return clients.back().get();
  }
  // A sealed object that the client keeps; -1 if there is no room.
  int64_t Make(FakeClient* c, uint64_t n, uint64_t bytes, uint64_t reserve = 0) {
    Lent lent;
    if (store->Lend(c->id, bytes, true, &lent, reserve) != LendResult::kLent) return -1;
    Slot& s = table.slot(lent.slots[0]);
    StoreKey(&s, Key(n));
    s.offset = lent.offset;
    s.data_bytes = bytes;
    s.metadata_bytes = 0;
    s.creator = c->id;
    s.state = StateWord(GenerationOf(s.state), State::kCreated);
    if (table.Insert(lent.slots[0], Key(n), HashKey(Key(n)))) return -1;
    s.last_used_ns = ++now;
    s.state = StateWord(GenerationOf(s.state), State::kSealed);
    c->pins[lent.slots[0]] += kKeeping;
    return lent.slots[0];
  }
  State StateAt(int64_t slot) const { return StateOf(table.slot(static_cast<uint32_t>(slot)).state); }
  uint64_t Generation(int64_t slot) const { return GenerationOf(table.slot(static_cast<uint32_t>(slot)).state); }
  // As a client deletes: told, then done.
  void Delete(FakeClient* c, int64_t slot) {
    const uint64_t generation = Generation(slot);
    const uint64_t at = c->header->produced;
    c->header->ring[at % kRingEntries].slot_and_op =
        static_cast<uint64_t>(RingOp::kDelete) << 32 | static_cast<uint64_t>(slot);
    c->header->ring[at % kRingEntries].generation = generation;
    c->header->produced = at + 1;
    if (StateAt(slot) == State::kSealed || StateAt(slot) == State::kSpilled) {
      table.slot(static_cast<uint32_t>(slot)).state = StateWord(generation, State::kDeleting);
    }
  }
  DiskCopy CopyOf(const SpillWrite& w) {
    const DiskPlace place{1, disk_end, RecordBytes(w.data_bytes)};
    disk_end += place.bytes;
    live.insert(place.offset);
    return {place, w.data_bytes, w.metadata_bytes, 0};
  }
  void WriteAll(const std::vector<SpillWrite>& writes) {
    for (const SpillWrite& w : writes) store->SpillWritten(w.slot, CopyOf(w));
    Sweep();
  }
  void Sweep() {
    for (const DiskPlace& place : store->TakeFreedDisk()) EXPECT_EQ(live.erase(place.offset), 1u);
  }

  std::unique_ptr<void, decltype(&std::free)> base{nullptr, &std::free};
  ObjectTable table;
  std::unique_ptr<Store> store;
  std::vector<std::unique_ptr<FakeClient>> clients;
  std::set<uint64_t> live;  // offsets of copies that the store has not freed
  uint64_t disk_end = 0;
  int64_t now = 0;
};

TEST(SpillStore, ChoosesThePieceWhoseLatestUseIsTheLongestAgo) {
  World w;
  FakeClient* c = w.NewClient();
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < 8; ++n) slots.push_back(w.Make(c, n, kMiB));
  w.table.slot(static_cast<uint32_t>(slots[0])).last_used_ns = ++w.now;
  EXPECT_EQ(w.Make(c, 10, 2 * kMiB), -1);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(2 * kMiB, 2 * kMiB, true, &writes));
  EXPECT_EQ(writes.size(), 2u);
  EXPECT_EQ(writes[0].slot, slots[1]);
  EXPECT_EQ(writes[1].slot, slots[2]);
  EXPECT_EQ(w.StateAt(slots[1]), State::kSealed);  // readable until it is on disk
  w.WriteAll(writes);
  EXPECT_EQ(w.StateAt(slots[1]), State::kSpilled);
  EXPECT_TRUE(w.table.Find(Key(1), HashKey(Key(1))).has_value());
  EXPECT_GE(w.Make(c, 10, 2 * kMiB), 0);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, EvictsWhatNobodyKeepsAndMovesNothingThatIsRead) {
  World w;
  FakeClient* c = w.NewClient();
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < 8; ++n) slots.push_back(w.Make(c, n, kMiB));
  for (const int i : {0, 2, 4, 6, 7}) c->pins[slots[i]] += kReading;
  c->pins[slots[3]] = 0;
  std::vector<SpillWrite> writes;
  EXPECT_FALSE(w.store->PlanSpill(2 * kMiB, 2 * kMiB, true, &writes));
  EXPECT_TRUE(w.store->PlanSpill(kMiB, 4 * kMiB, true, &writes));
  EXPECT_EQ(writes.size(), 1u);
  EXPECT_EQ(writes[0].slot, slots[1]);
  w.WriteAll(writes);
  EXPECT_GE(w.Make(c, 20, kMiB), 0);
  EXPECT_GE(w.Make(c, 21, kMiB), 0);  // evicts 3
  EXPECT_FALSE(w.table.Find(Key(3), HashKey(Key(3))).has_value());
  EXPECT_EQ(w.live.size(), 1u);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, AReaderWhoComesWhileItIsWrittenKeepsItInMemoryAndTheNextTimeItCostsNothing) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 8 * kMiB);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, true, &writes));
  c->pins[slot] += kReading;
  w.WriteAll(writes);
  EXPECT_EQ(w.StateAt(slot), State::kSealed);
  c->pins[slot] -= kReading;
  writes.clear();
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, false, &writes));  // even if the disk takes nothing more
  EXPECT_TRUE(writes.empty());
  EXPECT_EQ(w.StateAt(slot), State::kSpilled);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, BringsBackTheSameObjectAtAnotherPlace) {
  World w;
  FakeClient* c = w.NewClient();
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < 8; ++n) slots.push_back(w.Make(c, n, kMiB));
  const uint64_t generation = w.Generation(slots[0]);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, true, &writes));
  w.WriteAll(writes);
  EXPECT_GE(w.Make(c, 20, kMiB), 0);
  SpillRead read;
  EXPECT_EQ(w.store->StartRestore(slots[0], generation, &read), RestoreStep::kNoRoom);
  EXPECT_EQ(w.store->StartRestore(slots[0], generation + 1, &read), RestoreStep::kGone);
  w.Delete(c, slots[5]);
  c->pins[slots[5]] = 0;
  w.store->Drain();
  c->pins[slots[0]] += kReading;
  EXPECT_EQ(w.store->StartRestore(slots[0], generation, &read), RestoreStep::kStarted);
  EXPECT_EQ(w.store->StartRestore(slots[0], generation, &read), RestoreStep::kRunning);
  EXPECT_EQ(w.store->Audit(), "");
  w.store->EndRestore(slots[0], true);
  EXPECT_EQ(w.StateAt(slots[0]), State::kSealed);
  EXPECT_EQ(w.Generation(slots[0]), generation);
  EXPECT_EQ(w.table.slot(slots[0]).offset, read.offset);
  EXPECT_EQ(w.store->StartRestore(slots[0], generation, &read), RestoreStep::kHere);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, ADamagedObjectIsGoneAtOnceAndItsSlotWhenTheLastPinIs) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 8 * kMiB);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, true, &writes));
  w.WriteAll(writes);
  SpillRead read;
  EXPECT_EQ(w.store->StartRestore(slot, w.Generation(slot), &read), RestoreStep::kStarted);
  w.store->EndRestore(slot, false);
  w.Sweep();
  EXPECT_TRUE(w.live.empty());
  EXPECT_FALSE(w.table.Find(Key(1), HashKey(Key(1))).has_value());
  EXPECT_GE(w.Make(c, 1, 8 * kMiB), 0);  // made again under the same key
  EXPECT_EQ(w.store->Audit(), "");
  c->pins[slot] = 0;
  w.store->ReclaimDeleted();
  EXPECT_EQ(w.StateAt(slot), State::kFree);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, DeletedWhileWrittenOrReadNothingOfItStays) {
  World w;
  FakeClient* c = w.NewClient();
  int64_t slot = w.Make(c, 1, 8 * kMiB);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, true, &writes));
  w.Delete(c, slot);
  c->pins[slot] = 0;
  w.store->Drain();
  EXPECT_EQ(w.StateAt(slot), State::kDeleting);  // its bytes are being read
  w.WriteAll(writes);
  EXPECT_EQ(w.StateAt(slot), State::kFree);
  EXPECT_TRUE(w.live.empty());
  slot = w.Make(c, 2, 8 * kMiB);
  writes.clear();
  EXPECT_TRUE(w.store->PlanSpill(kMiB, kMiB, true, &writes));
  w.WriteAll(writes);
  SpillRead read;
  EXPECT_EQ(w.store->StartRestore(slot, w.Generation(slot), &read), RestoreStep::kStarted);
  w.Delete(c, slot);
  c->pins[slot] = 0;
  w.store->Drain();
  w.store->EndRestore(slot, true);
  w.Sweep();
  EXPECT_EQ(w.StateAt(slot), State::kFree);
  EXPECT_TRUE(w.live.empty());
  EXPECT_EQ(w.store->extents().free_bytes(), kPoolBytes);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, WhatADeadClientAloneHasKeptGoesFromTheDisk) {
  World w;
  FakeClient* a = w.NewClient();
  FakeClient* b = w.NewClient();
  const int64_t first = w.Make(a, 1, 4 * kMiB), second = w.Make(a, 2, 4 * kMiB);
  b->pins[second] += kKeeping;
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(8 * kMiB, 8 * kMiB, true, &writes));
  w.WriteAll(writes);
  w.store->ClientGone(a->id);
  w.Sweep();
  EXPECT_EQ(w.StateAt(first), State::kFree);
  EXPECT_EQ(w.StateAt(second), State::kSpilled);
  EXPECT_EQ(w.live.size(), 1u);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, AWriterLeavesRoomForTheLargestSpilledObject) {
  World w;
  FakeClient* c = w.NewClient();
  for (uint64_t n = 0; n < 4; ++n) w.Make(c, n, 2 * kMiB);
  EXPECT_EQ(w.store->ReserveBytes(), 0u);
  std::vector<SpillWrite> writes;
  EXPECT_TRUE(w.store->PlanSpill(2 * kMiB, 2 * kMiB, true, &writes));
  w.WriteAll(writes);
  EXPECT_EQ(w.store->ReserveBytes(), 2 * kMiB);
  EXPECT_EQ(w.Make(c, 10, kMiB, w.store->ReserveBytes()), -1);
  EXPECT_EQ(w.store->extents().free_bytes(), 2 * kMiB);
  EXPECT_EQ(w.store->Audit(), "");
}

// Clients put, read, keep, delete and die; a disk takes its time, fails and lies. After each event the books must be
// right, and what is found must be what was made.
void Simulate(uint32_t seed) {
  std::mt19937 random(seed);
  const auto any = [&](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random); };
  World w;
  std::vector<FakeClient*> clients = {w.NewClient(), w.NewClient(), w.NewClient()};
  struct Held {
    FakeClient* client;
    int64_t slot;
    uint64_t generation, pin;
  };
  std::vector<Held> held;
  std::vector<SpillWrite> writing;
  std::vector<uint32_t> reading;
  uint64_t next = 1;
  for (int step = 0; step < 3000; ++step) {
    FakeClient* c = clients[any(clients.size())];
    switch (any(9)) {
      case 0:
      case 1: {
        const uint64_t n = next++;
        const int64_t slot = w.Make(c, n, 64 + any(kMiB), any(2) == 0 ? w.store->ReserveBytes() : 0);
        if (slot >= 0) held.push_back({c, slot, w.Generation(slot), kKeeping});
        break;
      }
      case 2: {  // a reader pins, and asks if it is spilled
        if (held.empty()) break;
        const Held h = held[any(held.size())];
        const State state = w.StateAt(h.slot);
        if (w.Generation(h.slot) != h.generation || (state != State::kSealed && state != State::kSpilled)) break;
        c->pins[h.slot] += kReading;
        held.push_back({c, h.slot, h.generation, kReading});
        w.table.slot(static_cast<uint32_t>(h.slot)).last_used_ns = ++w.now;
        SpillRead read;
        if (state == State::kSpilled &&
            w.store->StartRestore(static_cast<uint32_t>(h.slot), h.generation, &read) == RestoreStep::kStarted) {
          reading.push_back(static_cast<uint32_t>(h.slot));
        }
        break;
      }
      case 3:
      case 4: {  // somebody lets go; of what he keeps, mostly by deleting it
        if (held.empty()) break;
        const size_t i = any(held.size());
        const Held h = held[i];
        held.erase(held.begin() + static_cast<int64_t>(i));
        h.client->pins[h.slot] -= h.pin;
        if (h.pin == kKeeping && any(4) != 0 && w.Generation(h.slot) == h.generation) w.Delete(h.client, h.slot);
        break;
      }
      case 5: {
        if (!writing.empty()) break;
        const uint64_t need = 64 + any(2 * kMiB);
        static_cast<void>(w.store->PlanSpill(need, need + any(kMiB), any(4) != 0, &writing));
        break;
      }
      case 6: {
        if (writing.empty()) break;
        const SpillWrite write = writing.back();
        writing.pop_back();
        if (any(8) == 0) {
          w.store->SpillFailed(write.slot);
        } else {
          w.store->SpillWritten(write.slot, w.CopyOf(write));
        }
        break;
      }
      case 7: {
        if (reading.empty()) break;
        const uint32_t slot = reading.back();
        reading.pop_back();
        const uint64_t how = any(10);
        if (how == 0) {
          w.store->AbortRestore(slot);
        } else {
          w.store->EndRestore(slot, how != 1);
        }
        break;
      }
      default: {
        w.store->Drain();
        w.store->ReclaimDeleted();
        if (any(60) == 0) {  // a client dies, another comes
          w.store->ClientGone(c->id);
          std::erase_if(held, [&](const Held& h) { return h.client == c; });
          std::erase(clients, c);
          clients.push_back(w.NewClient());
        }
      }
    }
    w.Sweep();
    const std::string wrong = w.store->Audit();
    EXPECT_EQ(wrong, "");
    if (!wrong.empty()) {
      std::fprintf(stderr, "seed %u, step %d\n", seed, step);
      return;
    }
    for (const Held& h : held) {
      // Nothing that is read has been moved or reused; nothing that is kept has been evicted.
      if (w.Generation(h.slot) != h.generation) {
        EXPECT_EQ(w.Generation(h.slot), h.generation);
        std::fprintf(stderr, "seed %u, step %d: a pinned object has gone\n", seed, step);
        return;
      }
    }
  }
  for (const SpillWrite& write : writing) w.store->SpillFailed(write.slot);
  for (const uint32_t slot : reading) w.store->EndRestore(slot, true);
  for (FakeClient* c : clients) w.store->ClientGone(c->id);
  w.store->Evict(kPoolBytes);
  w.Sweep();
  EXPECT_EQ(w.live.size(), 0u);
  EXPECT_EQ(w.store->extents().free_bytes(), kPoolBytes);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(SpillStore, KeepsItsBooksWhateverClientsAndDisksDo) {
  for (uint32_t seed = 1; seed <= 40; ++seed) Simulate(seed);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
