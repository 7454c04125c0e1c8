// The store as its clients meet it: over the socket and in shared memory, many threads at once.
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <csignal>
#include <future>
#include <random>

#include "fixture.h"
#include "testing.h"

namespace ray::plasma {
namespace {

TEST(Server, GivesOneClientWhatAnotherHasSealed) {
  StoreThread store(16 << 20);
  auto a = store.Connect(), b = store.Connect();
  ASSERT_TRUE(a && b);
  for (uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1000}, kSmallObjectBytesMax, kSmallObjectBytesMax + 1, uint64_t{5 << 20}}) {
    EXPECT_TRUE(Put(a.get(), bytes, bytes) == Step::kDone);
    Place place;
    ASSERT_TRUE(Get(b.get(), bytes, &place) == Step::kDone);
    EXPECT_EQ(place.data_bytes, bytes);
    EXPECT_TRUE(Right(place.address, bytes, bytes));
    b->Unpin(place.slot);
  }
  EXPECT_EQ(Audit(a.get()), "");
}

TEST(Server, HidesAnObjectStillBeingWritten) {
  StoreThread store(16 << 20);
  auto a = store.Connect(), b = store.Connect();
  Place place, none;
  EXPECT_TRUE(Create(a.get(), Key(1), 100, &place) == Step::kDone);
  EXPECT_TRUE(Get(b.get(), 1, &none) == Step::kAbsent);
  EXPECT_TRUE(b->Contains(Key(1)) == Step::kAbsent);
  EXPECT_TRUE(b->TrySeal(Key(1)) == Step::kAbsent);
  EXPECT_TRUE(b->TryDelete(Key(1)) == Step::kAbsent);
  EXPECT_TRUE(Create(b.get(), Key(1), 100, &none) == Step::kExists);
  EXPECT_TRUE(a->TryAbort(Key(1)) == Step::kDone);
  a->Unpin(place.slot);
  EXPECT_TRUE(Put(b.get(), 1, 100) == Step::kDone);
  EXPECT_EQ(Audit(a.get()), "");
}

TEST(Server, SaysWhoHoldsWhatWhenItIsFull) {
  StoreThread store(8 << 20);
  auto a = store.Connect();
  Place place;
  EXPECT_TRUE(Create(a.get(), Key(1), 6 << 20, &place) == Step::kDone);
  std::string why;
  EXPECT_TRUE(Put(a.get(), 2, 4 << 20, 0.05, &why) == Step::kAsk);
  EXPECT_NE(why.find("pid " + std::to_string(getpid())), std::string::npos);
  EXPECT_NE(why.find("6291456 bytes unsealed in 1 objects"), std::string::npos);
  EXPECT_TRUE(Put(a.get(), 3, 9 << 20, 60, &why) == Step::kAsk);  // at once: it can never fit
  EXPECT_NE(why.find("never"), std::string::npos);
  a->Unpin(place.slot);
}

TEST(Server, LetsAWriterInWhenAnotherUnpinsSealsOrDies) {
  for (int how = 0; how < 3; ++how) {
    StoreThread store(8 << 20);
    auto a = store.Connect(), b = store.Connect();
    Place place;
    EXPECT_TRUE(Create(a.get(), Key(1), 6 << 20, &place) == Step::kDone);
    if (how != 2) EXPECT_TRUE(a->TrySealSlot(place.slot, place.generation) == Step::kDone);
    auto waiting = std::async(std::launch::async, [&] { return Put(b.get(), 2, 4 << 20, 30); });
    while (Stats(a.get()).waiting_for_room == 0) std::this_thread::yield();
    if (how == 0) a->Unpin(place.slot);
    if (how == 1) {
      EXPECT_TRUE(Delete(a.get(), 1) == Step::kDone);
      a->Unpin(place.slot);
    }
    if (how == 2) a.reset();
    EXPECT_TRUE(waiting.get() == Step::kDone);
    EXPECT_EQ(Audit(b.get()), "");
  }
}

TEST(Server, WakesWhoWaitsForASealAndForgetsWhoGaveUp) {
  StoreThread store(8 << 20);
  auto a = store.Connect(), b = store.Connect();
  EXPECT_TRUE(b->WaitSealed({Key(1), Key(2)}, Within(0.02)).code() == StatusCode::kTimedOut);
  auto waiting =
      std::async(std::launch::async, [&] { return b->WaitSealed({Key(1), Key(2), Key(1)}, Within(30)).ok(); });
  while (Stats(a.get()).waiting_for_seal == 0) std::this_thread::yield();
  EXPECT_TRUE(Put(a.get(), 1, 10) == Step::kDone);
  EXPECT_TRUE(Put(a.get(), 2, 10) == Step::kDone);
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(Stats(a.get()).waiting_for_seal, 0u);
  EXPECT_TRUE(b->WaitSealed({Key(2)}, Within(30)).ok());
}

TEST(Server, TellsSubscribersOfEachSealAndDeletion) {
  StoreThread store(8 << 20);
  auto a = store.Connect(), s = store.Connect();
  EXPECT_TRUE(Put(a.get(), 1, 10) == Step::kDone);
  EXPECT_TRUE(s->Subscribe().ok());
  std::vector<EventRow> rows;
  while (rows.empty()) ASSERT_TRUE(s->NextEvents(Within(10), &rows).ok());
  EXPECT_EQ(NumberOf(rows[0].key), 1u);
  rows.clear();
  for (uint64_t n = 2; n < 3002; ++n) ASSERT_TRUE(Put(a.get(), n, 10) == Step::kDone);
  EXPECT_TRUE(Delete(a.get(), 1) == Step::kDone);
  while (rows.size() < 3001) ASSERT_TRUE(s->NextEvents(Within(10), &rows).ok());
  for (uint64_t i = 0; i < 3000; ++i) ASSERT_EQ(NumberOf(rows[i].key), i + 2);
  EXPECT_EQ(rows[3000].deleted, 1u);
}

TEST(Server, IsSeenDeadByEachCallOnceItHasEnded) {
  StoreThread store(8 << 20);
  auto a = store.Connect();
  EXPECT_TRUE(Put(a.get(), 1, 10) == Step::kDone);
  Place place;
  EXPECT_TRUE(Get(a.get(), 1, &place) == Step::kDone);
  auto waiting = std::async(std::launch::async, [&] { return a->WaitSealed({Key(9)}, {}).code(); });
  while (Stats(a.get()).waiting_for_seal == 0) std::this_thread::yield();
  store.Stop();
  EXPECT_TRUE(waiting.get() == StatusCode::kDisconnected);
  EXPECT_TRUE(a->died());
  Place none;
  EXPECT_TRUE(a->TryGet(Key(1), &none) == Step::kDied);
  EXPECT_TRUE(a->TryCreate(Key(2), 10, 0, &none) == Step::kDied);
  EXPECT_TRUE(Right(place.address, 10, 1));  // what is mapped stays readable
  a->Unpin(place.slot);
}

TEST(Server, RefusesASecondStoreOnItsSocketButNotAfterItsDeath) {
  StoreThread store(1 << 20);
  ServerOptions options;
  options.pool.bytes = 1 << 20;
  options.socket_path = store.socket();
  options.handle_signals = false;
  std::unique_ptr<Server> second;
  EXPECT_TRUE(Server::Create(options, &second).code() == StatusCode::kAlreadyExists);
  EXPECT_TRUE(store.Connect() != nullptr);
}

TEST(Server, NamesWhatIsMissingForAPoolInADirectory) {
  std::unique_ptr<Pool> pool;
  EXPECT_NE(Pool::Create({1 << 20, "/no/such/place", false}, &pool).message().find("/no/such/place"),
            std::string::npos);
  EXPECT_NE(Pool::Create({1 << 20, "/proc/self/exe", false}, &pool).message().find("not a directory"),
            std::string::npos);
  EXPECT_NE(Pool::Create({1 << 20, "/dev/shm", true}, &pool).message().find("not a hugetlbfs mount"),
            std::string::npos);
  EXPECT_NE(Pool::Create({uint64_t{1} << 45, "/dev/shm", false}, &pool).message().find("bytes available"),
            std::string::npos);
}

TEST(Server, KeepsWhatAForkedChildReadsAndLetsItDoNothingElse) {
  StoreThread store(8 << 20);
  auto a = store.Connect();
  EXPECT_TRUE(Put(a.get(), 1, 1000) == Step::kDone);
  Place place;
  EXPECT_TRUE(Get(a.get(), 1, &place) == Step::kDone);
  const pid_t child = fork();
  if (child == 0) {
    Place none;
    const bool ok = Right(place.address, 1000, 1) && a->died() && a->TryGet(Key(1), &none) == Step::kDied;
    a->Unpin(place.slot);
    _exit(ok ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  // The child's unpin had no effect: still pinned, so not evicted.
  uint64_t freed = 0;
  EXPECT_TRUE(a->Evict(1000, {}, &freed).ok());
  EXPECT_EQ(freed, 0u);
  a->Unpin(place.slot);
}

// Everything at once in a pool too small for it: what is read is right, and in the end the books are.
TEST(Server, StandsManyClientsThatPutGetDeleteAndEvict) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 3000;
  constexpr uint64_t kKeys = 200;
  StoreThread store(4 << 20);
  std::atomic<int> wrong{0}, got{0}, put{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      auto c = store.Connect();
      for (int i = 0; i < kRounds; ++i) {
        const uint64_t n = random() % kKeys;
        const uint64_t bytes = n % 10 == 0 ? 150000 + n : 100 * n;
        switch (random() % 8) {
          case 0:
            if (Delete(c.get(), n) == Step::kDied) ++wrong;
            break;
          case 1: {
            uint64_t freed = 0;
            if (random() % 20 == 0 && !c->Evict(100000, {}, &freed).ok()) ++wrong;
            break;
          }
          case 2:
          case 3:
          case 4: {
            const Step step = Put(c.get(), n, bytes);
            if (step == Step::kDone) ++put;
            if (step != Step::kDone && step != Step::kExists) ++wrong;
            break;
          }
          default: {
            Place place;
            const Step step = Get(c.get(), n, &place);
            if (step == Step::kAbsent) break;
            if (step != Step::kDone || place.data_bytes != bytes || !Right(place.address, bytes, n)) ++wrong;
            if (step == Step::kDone) c->Unpin(place.slot);
            ++got;
          }
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_GT(got.load(), 0);
  EXPECT_GT(put.load(), 0);
  auto c = store.Connect();
  EXPECT_EQ(Audit(c.get()), "");
  const StatsAnswer s = Stats(c.get());
  EXPECT_EQ(s.unsealed_objects, 0u);
  EXPECT_EQ(s.deleting_objects, 0u);
  EXPECT_EQ(s.bad_entries, 0u);
}

// One client object used by several threads, some of which wait for answers while others receive.
TEST(Server, ServesSeveralThreadsOfOneClient) {
  StoreThread store(4 << 20);
  auto c = store.Connect();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 500; ++i) {
        const uint64_t n = i * 4 + t;
        if (Put(c.get(), n, n % 7 == 0 ? 140000 : 3000) != Step::kDone) ++wrong;
        if (i % 10 == 0 && c->WaitSealed({Key(n)}, Within(30)).code() == StatusCode::kDisconnected) ++wrong;
        if (i % 25 == 0 && c->WaitSealed({Key(1 << 20)}, Within(0.001)).code() != StatusCode::kTimedOut) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(Audit(c.get()), "");
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
