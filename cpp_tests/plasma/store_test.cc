// Store's decisions, without sockets: the test plays the clients, writing to their journals and to the table as they
// would.
#include "plasma/store.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <random>

#include "common/clock.h"
#include "testing.h"

namespace ray::plasma {
namespace {

constexpr uint64_t kPoolBytes = 4 << 20;

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
  explicit World(uint32_t slots = 1024) {
    const uint32_t buckets = ObjectTable::BucketsFor(slots);
    const size_t bytes = ControlBytes(slots, buckets);
    base.reset(std::aligned_alloc(kPageBytes, bytes));
    std::memset(base.get(), 0, bytes);
    ObjectTable::Format(base.get(), slots, buckets, kPoolBytes);
    table = ObjectTable(base.get());
    store = std::make_unique<Store>(table, kPoolBytes);
  }
  FakeClient* NewClient() {
    auto client = std::make_unique<FakeClient>();
    client->pins = std::make_unique<std::atomic<uint64_t>[]>(table.slots());
    client->id =
        store->AddClient(static_cast<uint32_t>(1000 + clients.size()), {client->header.get(), client->pins.get()});
    clients.push_back(std::move(client));
    return clients.back().get();
  }
  // A large object of its own extent; -1 if there is no room.
  int64_t Make(FakeClient* c, uint64_t n, uint64_t bytes, bool seal = true) {
    Lent lent;
    if (store->Lend(c->id, bytes, true, &lent) != LendResult::kLent) return -1;
    Fill(c, lent.slots[0], lent.offset, n, bytes);
    if (table.Insert(lent.slots[0], Key(n), HashKey(Key(n)))) return -1;
    if (seal) Seal(lent.slots[0]);
    return lent.slots[0];
  }
  void Fill(FakeClient* c, uint32_t slot, uint64_t offset, uint64_t n, uint64_t bytes) {
    Slot& s = table.slot(slot);
    StoreKey(&s, Key(n));
    s.offset = offset;
    s.data_bytes = bytes;
    s.metadata_bytes = 0;
    s.creator = c->id;
    s.state = StateWord(GenerationOf(s.state), State::kCreated);
  }
  void Seal(uint32_t slot) {
    table.slot(slot).last_used_ns = ++now;
    table.slot(slot).sealed_ns = now;
    table.slot(slot).state = StateWord(GenerationOf(table.slot(slot).state), State::kSealed);
  }
  void Tell(FakeClient* c, RingOp op, uint32_t slot, uint64_t generation) {
    const uint64_t at = c->header->produced;
    c->header->ring[at % kRingEntries].slot_and_op = static_cast<uint64_t>(op) << 32 | slot;
    c->header->ring[at % kRingEntries].generation = generation;
    c->header->produced = at + 1;
  }
  void Delete(FakeClient* c, uint32_t slot) {
    const uint64_t generation = GenerationOf(table.slot(slot).state);
    Tell(c, RingOp::kDelete, slot, generation);
    table.slot(slot).state = StateWord(generation, State::kDeleting);
  }
  bool Has(uint64_t n) const { return table.Find(Key(n), HashKey(Key(n))).has_value(); }

  std::unique_ptr<void, decltype(&std::free)> base{nullptr, &std::free};
  ObjectTable table;
  std::unique_ptr<Store> store;
  std::vector<std::unique_ptr<FakeClient>> clients;
  int64_t now = 0;
};

TEST(Store, EvictsTheLeastRecentlyUsedFirst) {
  World w;
  FakeClient* c = w.NewClient();
  for (uint64_t n = 0; n < 4; ++n) w.Make(c, n, 1 << 20);
  w.table.slot(w.table.Find(Key(0), HashKey(Key(0)))->slot).last_used_ns = ++w.now;  // 0 is used: now 1 is the oldest
  EXPECT_GE(w.Make(c, 10, 1 << 20), 0);
  EXPECT_TRUE(w.Has(0));
  EXPECT_FALSE(w.Has(1));
  EXPECT_GE(w.Make(c, 11, 1 << 20), 0);
  EXPECT_FALSE(w.Has(2));
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, EvictsNothingThatAnyClientPins) {
  World w;
  FakeClient* a = w.NewClient();
  FakeClient* b = w.NewClient();
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < 4; ++n) slots.push_back(w.Make(a, n, 1 << 20));
  for (int64_t slot : slots) b->pins[slot] = 1;
  EXPECT_EQ(w.Make(a, 10, 1 << 20), -1);
  for (uint64_t n = 0; n < 4; ++n) EXPECT_TRUE(w.Has(n));
  const std::string text = w.store->DescribeHolders();
  EXPECT_NE(text.find("pid 1001: 4194304 bytes pinned in 4 objects"), std::string::npos);
  b->pins[slots[2]] = 0;
  EXPECT_GE(w.Make(a, 10, 1 << 20), 0);
  EXPECT_FALSE(w.Has(2));
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, EvictsNothingForARequestThatNoEvictionCanMeet) {
  World w;
  FakeClient* c = w.NewClient();
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < 4; ++n) slots.push_back(w.Make(c, n, 1 << 20));
  c->pins[slots[1]] = 1;  // so no more than 2 MiB can be had in one piece
  EXPECT_EQ(w.Make(c, 10, 3 << 20), -1);
  for (uint64_t n = 0; n < 4; ++n) EXPECT_TRUE(w.Has(n));
  EXPECT_GE(w.Make(c, 11, 2 << 20), 0);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, RefusesAtOnceWhatIsLargerThanThePool) {
  World w;
  FakeClient* c = w.NewClient();
  Lent lent;
  EXPECT_TRUE(w.store->Lend(c->id, kPoolBytes + 1, true, &lent) == LendResult::kTooLarge);
  EXPECT_TRUE(w.store->Lend(c->id, 0, true, &lent) == LendResult::kTooLarge);
  EXPECT_GE(w.Make(c, 1, kPoolBytes), 0);
}

TEST(Store, KeepsADeletedObjectUntilItsLastPinIsGone) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 3 << 20);
  c->pins[slot] = 2;
  w.Delete(c, slot);
  EXPECT_FALSE(w.Has(1));
  EXPECT_EQ(w.Make(c, 2, 3 << 20), -1);
  c->pins[slot] = 0;
  EXPECT_GE(w.Make(c, 2, 3 << 20), 0);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, DoesADeletionThatItsClientOnlyToldOf) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 1000);
  w.Tell(c, RingOp::kDelete, slot, GenerationOf(w.table.slot(slot).state));
  w.store->ClientGone(c->id);
  EXPECT_FALSE(w.Has(1));
  EXPECT_EQ(w.store->Audit(), "");
  EXPECT_EQ(w.store->Use().free_bytes, kPoolBytes);
}

TEST(Store, IgnoresADeletionOfAnObjectThatHasGoneAndTellsTheSameTwice) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 200 << 10);
  const uint64_t generation = GenerationOf(w.table.slot(slot).state);
  w.Tell(c, RingOp::kDelete, slot, generation);
  w.Tell(c, RingOp::kDelete, slot, generation);
  w.Tell(c, RingOp::kDelete, slot, generation + 1);
  w.store->Drain();
  EXPECT_FALSE(w.Has(1));
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, FreesALapsedObjectAtOnceIfNobodyPinsIt) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 3 << 20);
  w.Tell(c, RingOp::kLapse, slot, GenerationOf(w.table.slot(slot).state));
  w.store->Drain();
  EXPECT_FALSE(w.Has(1));
  EXPECT_EQ(w.store->Use().free_bytes, kPoolBytes);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, KeepsALapsedObjectFindableUntilItsLastPinIsGone) {
  World w;
  FakeClient* owner = w.NewClient();
  FakeClient* first = w.NewClient();
  FakeClient* second = w.NewClient();
  const int64_t slot = w.Make(owner, 1, 3 << 20);
  for (FakeClient* c : {owner, first, second}) c->pins[slot] = 1;
  w.store->ClientGone(owner->id);
  for (int twice = 0; twice < 2; ++twice) {
    w.Tell(first, RingOp::kLapse, slot, GenerationOf(w.table.slot(slot).state));
  }
  w.store->Drain();
  EXPECT_TRUE(w.Has(1));
  first->pins[slot] = 0;
  w.store->ReclaimDeleted();
  EXPECT_TRUE(w.Has(1));
  EXPECT_EQ(w.store->Evict(kPoolBytes), 0u);
  w.store->ClientGone(second->id);  // it dies with its pin: that is the last one's end
  EXPECT_FALSE(w.Has(1));
  EXPECT_EQ(w.store->Use().free_bytes, kPoolBytes);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, FreesTheOneThatIsLetGoOfAmongManyLapsedOnesAtOnceAndTheRestWithTheirKeeper) {
  World w;
  FakeClient* keeper = w.NewClient();
  FakeClient* other = w.NewClient();
  constexpr uint64_t kMany = 4 * kLapsedLooks;
  std::vector<int64_t> slots;
  for (uint64_t n = 0; n < kMany; ++n) {
    slots.push_back(w.Make(keeper, n, 1000));
    keeper->pins[slots[n]] = 1;
    w.Tell(other, RingOp::kLapse, slots[n], GenerationOf(w.table.slot(slots[n]).state));
    w.store->Drain();
  }
  keeper->pins[slots[kMany - 1]] = 0;
  w.Tell(keeper, RingOp::kUnpinned, slots[kMany - 1], GenerationOf(w.table.slot(slots[kMany - 1]).state));
  w.store->Drain();
  EXPECT_FALSE(w.Has(kMany - 1));
  keeper->pins[slots[kMany - 2]] = 0;  // nobody says so: its turn comes
  for (uint64_t looks = 0; looks < kMany; looks += kLapsedLooks) w.store->ReclaimDeleted();
  EXPECT_FALSE(w.Has(kMany - 2));
  EXPECT_TRUE(w.Has(0));
  const int64_t owned = w.Make(other, kMany, 1000);
  w.Tell(other, RingOp::kUnpinned, owned, GenerationOf(w.table.slot(owned).state));
  w.store->Drain();
  EXPECT_TRUE(w.Has(kMany));
  w.store->ClientGone(keeper->id);
  for (uint64_t n = 0; n < kMany; ++n) EXPECT_FALSE(w.Has(n));
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, LetsNoLaterObjectInTheSamePlaceLapse) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 1000);
  const uint64_t generation = GenerationOf(w.table.slot(slot).state);
  c->pins[slot] = 1;
  w.Tell(c, RingOp::kLapse, slot, generation);
  w.store->Drain();
  w.Delete(c, slot);
  c->pins[slot] = 0;
  w.store->Drain();
  const int64_t again = w.Make(c, 2, 1000);
  w.Tell(c, RingOp::kLapse, slot, generation);
  w.store->Drain();
  w.store->ReclaimDeleted();
  EXPECT_GE(again, 0);
  EXPECT_TRUE(w.Has(2));
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, SurvivesRingsAndSlotsFullOfNonsense) {
  World w;
  FakeClient* c = w.NewClient();
  const int64_t slot = w.Make(c, 1, 1000, false);
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    Slot& s = w.table.slot(slot);
    s.offset = random();
    s.data_bytes = random();
    s.metadata_bytes = random();
    for (int i = 0; i < 50; ++i)
      w.Tell(c, static_cast<RingOp>(random() % 6), static_cast<uint32_t>(random()), random() % 4);
    if (round % 10 == 0) c->header->produced += random() % 100000;
    w.store->Drain();
    w.store->Evict(1 << 20);
    w.store->Use();
  }
  w.store->ClientGone(c->id);
  FakeClient* d = w.NewClient();
  EXPECT_GE(w.Make(d, 2, 1 << 20), 0);
}

TEST(Store, LendsWhatIsLeftWhenAComfortableExtentIsNotToBeHad) {
  World w;
  FakeClient* a = w.NewClient();
  const int64_t slot = w.Make(a, 1, kPoolBytes - 8192);
  a->pins[slot] = 1;
  Lent lent;
  EXPECT_TRUE(w.store->Lend(a->id, 4096, false, &lent) == LendResult::kLent);
  EXPECT_GE(lent.bytes, 4096u);
  EXPECT_EQ(w.store->Audit(), "");
}

TEST(Store, EvictsForAPlaceInTheTableWhenThatIsFull) {
  World w(64);
  FakeClient* c = w.NewClient();
  for (uint64_t n = 0; n < 64; ++n) EXPECT_GE(w.Make(c, n, 64), 0);
  EXPECT_GE(w.Make(c, 100, 64), 0);
  EXPECT_FALSE(w.Has(0));
  EXPECT_EQ(w.store->Audit(), "");
}

// A long random life with several clients that do everything, and die; the books must be right after each step.
TEST(Store, KeepsItsBooksThroughARandomLife) {
  std::mt19937_64 random(11);
  World w(512);
  std::vector<FakeClient*> alive;
  struct Small {
    Lent lent;
    size_t next = 0;
    uint64_t at = 0;
  };
  std::map<FakeClient*, Small> small;
  uint64_t n = 0;
  for (int step = 0; step < 6000; ++step) {
    if (alive.empty() || (alive.size() < 5 && random() % 50 == 0)) alive.push_back(w.NewClient());
    FakeClient* c = alive[random() % alive.size()];
    switch (random() % 10) {
      case 0:
      case 1:
        w.Make(c, ++n, 1 + random() % (300 << 10), random() % 4 != 0);
        break;
      case 2:
      case 3:
      case 4: {  // a small object in a lent extent, left at any stage
        Small& s = small[c];
        const uint64_t bytes = 1 + random() % 5000;
        if (s.lent.lease == 0 || s.next == s.lent.slots.size() ||
            s.at + ObjectExtentBytes(bytes, 0) > s.lent.offset + s.lent.bytes) {
          if (s.lent.lease != 0) EXPECT_TRUE(w.store->CloseLease(c->id, s.lent.lease));
          s = Small();
          if (w.store->Lend(c->id, bytes, false, &s.lent) != LendResult::kLent) {
            s = Small();
            break;
          }
          s.at = s.lent.offset;
        }
        const uint32_t slot = s.lent.slots[s.next];
        w.Fill(c, slot, s.at, ++n, bytes);
        if (random() % 20 == 0) {  // thinks better of it
          w.table.slot(slot).state = StateWord(GenerationOf(w.table.slot(slot).state) + 1, State::kFree);
          break;
        }
        ++s.next;
        s.at += ObjectExtentBytes(bytes, 0);
        EXPECT_FALSE(w.table.Insert(slot, Key(n), HashKey(Key(n))));
        if (random() % 8 != 0) w.Seal(slot);
        break;
      }
      case 5:
      case 6: {  // pin or unpin whatever is visible
        const uint64_t which = n == 0 ? 0 : 1 + random() % n;
        const auto found = w.table.Find(Key(which), HashKey(Key(which)));
        if (found && StateOf(found->state) == State::kSealed) c->pins[found->slot] = random() % 2;
        break;
      }
      case 7: {
        const uint64_t which = n == 0 ? 0 : 1 + random() % n;
        const auto found = w.table.Find(Key(which), HashKey(Key(which)));
        if (!found || StateOf(found->state) != State::kSealed) break;
        if (random() % 3 == 0) {
          w.Tell(c, RingOp::kLapse, found->slot, GenerationOf(found->state));
        } else {
          w.Delete(c, found->slot);
        }
        break;
      }
      case 8:
        if (random() % 2 == 0) w.store->Evict(random() % (1 << 20));
        break;
      default:
        if (random() % 12 == 0) {
          w.store->ClientGone(c->id);
          small.erase(c);
          std::erase(alive, c);
        }
    }
    if (step % 7 == 0) {
      w.store->Drain();
      const std::string wrong = w.store->Audit();
      ASSERT_EQ(wrong, "");
    }
  }
  for (FakeClient* c : alive) w.store->ClientGone(c->id);
  w.store->Evict(kPoolBytes);
  EXPECT_EQ(w.store->Audit(), "");
  EXPECT_EQ(w.store->Use().free_bytes, kPoolBytes);
  EXPECT_EQ(w.store->Use().slots_free, 512u);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
