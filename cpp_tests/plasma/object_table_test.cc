// The table alone: what one thread sees, and what many threads on the same bytes must not break (run under TSan too).
#include "plasma/object_table.h"

#include <array>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "testing.h"

namespace ray::plasma {
namespace {

struct Memory {
  explicit Memory(uint32_t slots, uint32_t buckets) {
    const size_t bytes = ControlBytes(slots, buckets);
    base.reset(std::aligned_alloc(kPageBytes, bytes));
    std::memset(base.get(), 0, bytes);
    ObjectTable::Format(base.get(), slots, buckets, 1 << 20);
    table = ObjectTable(base.get());
  }
  std::unique_ptr<void, decltype(&std::free)> base{nullptr, &std::free};
  ObjectTable table;
};

ObjectId Key(uint32_t n) {
  uint8_t bytes[28] = {};
  std::memcpy(bytes + 5, &n, 4);
  return ObjectId::FromBytes(bytes);
}

// As Client does it.
bool Put(const ObjectTable& t, uint32_t slot, uint64_t generation, const ObjectId& key) {
  Slot& s = t.slot(slot);
  StoreKey(&s, key);
  s.state.store(StateWord(generation, State::kCreated), std::memory_order_release);
  return !t.Insert(slot, key, HashKey(key));
}

uint32_t SlotOf(const ObjectTable& t, const ObjectId& key) {
  const auto found = t.Find(key, HashKey(key));
  return found ? found->slot : kNoSlot;
}

TEST(ObjectTable, FindsWhatWasInsertedAndNothingElse) {
  Memory m(64, 8);  // 8 chains of 8
  for (uint32_t i = 0; i < 64; ++i) EXPECT_TRUE(Put(m.table, i, 0, Key(i)));
  for (uint32_t i = 0; i < 64; ++i) {
    const auto found = m.table.Find(Key(i), HashKey(Key(i)));
    ASSERT_TRUE(found);
    EXPECT_EQ(found->slot, i);
    EXPECT_EQ(StateOf(found->state), State::kCreated);
  }
  EXPECT_FALSE(m.table.Find(Key(64), HashKey(Key(64))));
}

TEST(ObjectTable, KeepsOneObjectPerKey) {
  Memory m(8, 2);
  EXPECT_TRUE(Put(m.table, 0, 0, Key(1)));
  EXPECT_FALSE(Put(m.table, 1, 0, Key(1)));
  m.table.slot(0).state.store(StateWord(0, State::kSealed));
  EXPECT_FALSE(Put(m.table, 1, 1, Key(1)));
}

TEST(ObjectTable, HidesAnObjectThatIsBeingDeletedSoThatItsKeyCanBeUsedAgain) {
  Memory m(8, 2);
  EXPECT_TRUE(Put(m.table, 0, 0, Key(1)));
  m.table.slot(0).state.store(StateWord(0, State::kDeleting));
  EXPECT_FALSE(m.table.Find(Key(1), HashKey(Key(1))));
  EXPECT_TRUE(Put(m.table, 1, 0, Key(1)));
  EXPECT_EQ(SlotOf(m.table, Key(1)), 1u);
  EXPECT_TRUE(m.table.Remove(0));
  EXPECT_EQ(SlotOf(m.table, Key(1)), 1u);
}

TEST(ObjectTable, RemovesFromHeadMiddleAndEndOfAChain) {
  for (uint32_t gone = 0; gone < 3; ++gone) {
    Memory m(3, 1);
    for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(Put(m.table, i, 0, Key(i)));
    EXPECT_TRUE(m.table.Remove(gone));
    EXPECT_FALSE(m.table.Remove(gone));
    for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(m.table.Find(Key(i), HashKey(Key(i))).has_value(), i != gone);
  }
}

TEST(ObjectTable, EndsAWalkThroughChainsThatSomebodyHasMadeCircular) {
  Memory m(4, 1);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(Put(m.table, i, 0, Key(i)));
  m.table.slot(0).next.store(3);  // the last leads to the first
  EXPECT_FALSE(m.table.Find(Key(9), HashKey(Key(9))));
  m.table.slot(0).next.store(4000);  // and out of the table
  EXPECT_FALSE(m.table.Find(Key(9), HashKey(Key(9))));
}

// Inserters race for the same few keys while one thread, in the store's role, removes and recycles; finders check that
// a slot which they found under a key and whose generation has not changed still has that key.
TEST(ObjectTable, StandsInsertersFindersAndARecyclerAtOnce) {
  constexpr uint32_t kSlots = 64, kKeys = 24;
  constexpr int kInserters = 2, kRounds = 20000;
  Memory m(kSlots, 4);
  // Slots go to inserters and back through one mailbox each: the store's lending, reduced to its order of events.
  std::array<std::atomic<uint32_t>, kInserters> lent;
  for (auto& l : lent) l = 0;
  std::atomic<bool> stop{false};
  std::atomic<int> inserted{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kInserters; ++t) {
    threads.emplace_back([&, t] {
      uint32_t n = t;
      while (!stop) {
        const uint32_t slot_plus_1 = lent[t].load(std::memory_order_acquire);
        if (slot_plus_1 == 0) {
          std::this_thread::yield();
          continue;
        }
        Slot& s = m.table.slot(slot_plus_1 - 1);
        const ObjectId key = Key(n = (n * 7 + 5) % kKeys);
        if (Put(m.table, slot_plus_1 - 1, GenerationOf(s.state.load()), key)) {
          s.state.store(StateWord(GenerationOf(s.state.load()), State::kSealed));
          ++inserted;
          lent[t].store(0, std::memory_order_release);
        } else {
          s.state.store(StateWord(GenerationOf(s.state.load()) + 1, State::kFree));
        }
      }
    });
  }
  threads.emplace_back([&] {
    for (uint32_t n = 0; !stop; ++n) {
      const ObjectId key = Key(n % kKeys);
      const auto found = m.table.Find(key, HashKey(key));
      if (!found) continue;
      const ObjectId has = LoadKey(m.table.slot(found->slot));
      if (m.table.slot(found->slot).state.load() == found->state && !(has == key)) ++wrong;
    }
  });
  std::vector<uint32_t> free;
  for (uint32_t i = 0; i < kSlots; ++i) free.push_back(i);
  // The threads may not have begun when the rounds are over.
  for (int round = 0; round < kRounds || inserted < 2000; ++round) {
    for (auto& l : lent) {
      if (l.load(std::memory_order_acquire) != 0 || free.empty()) continue;
      l.store(free.back() + 1, std::memory_order_release);
      free.pop_back();
    }
    // At most one object of a key is visible, and it can be removed.
    const ObjectId key = Key(round % kKeys);
    const auto found = m.table.Find(key, HashKey(key));
    if (!found || StateOf(found->state) != State::kSealed) continue;
    Slot& s = m.table.slot(found->slot);
    s.state.store(StateWord(GenerationOf(found->state), State::kEvicting));
    if (!m.table.Remove(found->slot)) ++wrong;
    s.state.store(StateWord(GenerationOf(found->state) + 1, State::kFree));
    free.push_back(found->slot);
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_GT(inserted.load(), 0);
  std::vector<int> seen(kKeys);
  m.table.ForEachChained([&](uint32_t bucket, uint32_t slot) {
    EXPECT_TRUE(m.table.BelongsTo(slot, bucket));
    for (uint32_t k = 0; k < kKeys; ++k) seen[k] += LoadKey(m.table.slot(slot)) == Key(k);
  });
  for (int n : seen) EXPECT_LE(n, 1);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
