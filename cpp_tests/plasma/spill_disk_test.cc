// Places in files, threads that write and read them, and a whole store that spills, its clients dying meanwhile.
#include "plasma/spill_disk.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <random>
#include <thread>

#include "fixture.h"
#include "plasma/checksum.h"
#include "plasma/read_ahead.h"
#include "testing.h"

namespace ray::plasma {
namespace {

constexpr uint64_t kMiB = 1 << 20;

TEST(SpillFiles, FillsFilesOneAfterTheOtherInTurnInEachDirectory) {
  SpillFiles files({{"a", "b"}, ~uint64_t{0}, 3 * kMiB});
  std::vector<DiskPlace> places;
  for (int i = 0; i < 8; ++i) places.push_back(*files.Take(kMiB, 0));
  EXPECT_EQ(files.DirectoryOf(places[0].file), "a");
  EXPECT_EQ(places[2].file, places[0].file);
  EXPECT_EQ(files.DirectoryOf(places[3].file), "b");
  EXPECT_EQ(places[1].offset, RecordBytes(kMiB));
  EXPECT_EQ(files.files(), 3u);
  EXPECT_TRUE(files.Free(places[0]) == SpillFiles::Freed::kRange);
  EXPECT_TRUE(files.Free(places[2]) == SpillFiles::Freed::kRange);
  EXPECT_TRUE(files.Free(places[1]) == SpillFiles::Freed::kFile);
  for (int i = 3; i < 8; ++i) files.Free(places[i]);
  EXPECT_EQ(files.files(), 0u);
  EXPECT_EQ(files.bytes(), 0u);
}

TEST(SpillFiles, RefusesBeyondItsCapAndSaysSo) {
  SpillFiles files({{"a"}, 2 * RecordBytes(kMiB)});
  const auto first = files.Take(kMiB, 0);
  EXPECT_TRUE(files.Take(kMiB, 0).has_value());
  EXPECT_FALSE(files.Take(1, 0).has_value());
  EXPECT_NE(files.Why().find("no more than"), std::string::npos);
  files.Free(*first);
  EXPECT_TRUE(files.Take(kMiB, 0).has_value());
}

TEST(SpillFiles, PassesAFullDirectoryOverUntilSomethingInItIsFreedOrTimeHasPassed) {
  SpillFiles files({{"a", "b"}});
  const auto a = files.Take(kMiB, 0), lost = files.Take(kMiB, 0);
  files.Free(*lost);
  files.DirectoryFull("a", "No space left on device", 0);
  const auto b = files.Take(kMiB, 1);
  EXPECT_EQ(files.DirectoryOf(b->file), "b");
  files.DirectoryFull("b", "No space left on device", 1);
  EXPECT_FALSE(files.Take(kMiB, 2).has_value());
  EXPECT_EQ(files.Why(), "b: No space left on device");
  EXPECT_TRUE(files.Take(kMiB, SpillFiles::kFullNs + 2).has_value());
  files.DirectoryFull("a", "", SpillFiles::kFullNs + 2);
  files.DirectoryFull("b", "", SpillFiles::kFullNs + 2);
  EXPECT_FALSE(files.Take(kMiB, SpillFiles::kFullNs + 3).has_value());
  files.Free(*a);
  EXPECT_TRUE(files.Take(kMiB, SpillFiles::kFullNs + 3).has_value());
}

TEST(Checksum, IsTheSameHoweverTheBytesAreCutAndChangesWithEachBit) {
  std::vector<uint8_t> bytes(1000);
  std::mt19937 random(7);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  const auto sum = [&](uint64_t cut) {
    Checksum s;
    s.Add(bytes.data(), cut);
    s.Add(bytes.data() + cut, bytes.size() - cut);
    return s.value();
  };
  const uint64_t whole = sum(0);
  EXPECT_EQ(sum(64), whole);
  EXPECT_EQ(sum(640), whole);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_NE(sum(0), whole);
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
  bytes.push_back(0);
  EXPECT_NE(sum(0), whole);
}

TEST(Checksum, TellsBlocksThatChangedPlacesAndOneBitWrongInEachOfTwo) {
  constexpr size_t kBlock = 4096;
  std::vector<uint8_t> bytes(8 * kBlock);
  std::mt19937 random(8);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  const auto sum = [](const std::vector<uint8_t>& of) {
    Checksum s;
    s.Add(of.data(), of.size());
    return s.value();
  };
  const uint64_t whole = sum(bytes);
  for (size_t i = 0; i < 8; ++i) {
    for (size_t j = 0; j < i; ++j) {
      std::vector<uint8_t> other = bytes;
      std::swap_ranges(other.begin() + i * kBlock, other.begin() + (i + 1) * kBlock, other.begin() + j * kBlock);
      EXPECT_NE(sum(other), whole);
      for (size_t bit = 0; bit < 64; ++bit) {
        other = bytes;
        other[i * kBlock + bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        other[j * kBlock + bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        EXPECT_NE(sum(other), whole);
      }
    }
  }
}

TEST(ReadAhead, ReadsFurtherAndFurtherForWhoeverReadsInARow) {
  using Place = ReadAhead::Place;
  ReadAhead reader;
  EXPECT_EQ(reader.Asked({1, 8}, Place{1, 4}), 0u);
  EXPECT_EQ(reader.Asked({1, 12}, Place{1, 8}), ReadAhead::kBytesMin);
  reader.Began({1, 16});
  reader.Began({2, 0});
  EXPECT_EQ(reader.Asked({1, 12}, Place{1, 8}), ReadAhead::kBytesMin);      // the same question once more
  EXPECT_EQ(reader.Asked({2, 0}, Place{1, 16}), 2 * ReadAhead::kBytesMin);  // what was begun is not there yet
  EXPECT_EQ(reader.Asked({2, 4}, Place{2, 0}), ReadAhead::kBytesMax);       // the first that was not begun
  EXPECT_EQ(reader.Asked({2, 8}, Place{2, 4}), ReadAhead::kBytesMax);
  EXPECT_EQ(reader.Asked({2, 0}, Place{1, 16}), 0u);  // backwards
  EXPECT_EQ(reader.Asked({7, 0}, Place{6, 4}), 0u);   // elsewhere
  EXPECT_EQ(reader.Asked({0, 0}, std::nullopt), 0u);
}

SpillOptions InTmp() {
  SpillOptions options;
  options.limits.directories = {"/tmp"};
  options.limits.file_bytes = 8 * kMiB;
  options.batch_bytes = 4 * kMiB;
  options.disk.disk_use_max = 1;
  return options;
}

Step Keep(Client* c, uint64_t n, uint64_t bytes) {
  Place place;
  if (const Step step = Create(c, Key(n), bytes, &place, 20); step != Step::kDone) return step;
  Fill(place.address, bytes, n);
  c->TrySealSlot(place.slot, place.generation);
  const Step step = c->TryPin(Key(n));
  c->Unpin(place.slot);
  return step;
}

Step GetBack(Client* c, uint64_t n, Place* place) {
  Step step = Get(c, n, place);
  if (step == Step::kSpilled) step = c->Restore(Within(20), place).ok() ? Step::kDone : Step::kAbsent;
  return step;
}

TEST(Spilling, SeveralClientsShareFourTimesAsMuchAsThereIsRoom) {
  StoreThread store(32 * kMiB, InTmp());
  constexpr uint64_t kClients = 3, kEach = 60, kBytes = 700'000;
  std::vector<std::thread> threads;
  std::atomic<uint64_t> wrong{0};
  // What is let go of may be evicted: all keep everything until that has been looked at.
  std::barrier all_keep(kClients + 1), looked(kClients + 1);
  for (uint64_t t = 0; t < kClients; ++t) {
    threads.emplace_back([&, t] {
      const auto c = store.Connect();
      std::mt19937 random(static_cast<uint32_t>(t));
      for (uint64_t i = 0; i < kEach; ++i) {
        if (Keep(c.get(), t * 1000 + i, kBytes) != Step::kDone) ++wrong;
        const uint64_t n = t * 1000 + random() % (i + 1);
        Place place;
        if (GetBack(c.get(), n, &place) != Step::kDone) {
          ++wrong;
          continue;
        }
        if (!Right(place.address, kBytes, n)) ++wrong;
        c->Unpin(place.slot);
      }
      all_keep.arrive_and_wait();
      looked.arrive_and_wait();
      for (uint64_t i = 0; i < kEach; ++i) {
        c->UnpinKey(Key(t * 1000 + i));
        Delete(c.get(), t * 1000 + i);
      }
      if (!c->Sync({}).ok()) ++wrong;
    });
  }
  const auto c = store.Connect();
  all_keep.arrive_and_wait();
  EXPECT_EQ(Stats(c.get()).evicted_objects, 0u);
  looked.arrive_and_wait();
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0u);
  const StatsAnswer stats = Stats(c.get());
  EXPECT_GT(stats.written_objects, 0u);
  EXPECT_GT(stats.restored_objects, 0u);
  EXPECT_EQ(stats.disk_objects, 0u);
  EXPECT_EQ(Audit(c.get()), "");
}

// A child keeps, reads and deletes under pressure, and is killed somewhere; the store has its books right, and gives
// back all that the child alone kept.
TEST(Spilling, AClientThatIsKilledAnywhereLeavesNothingOnDisk) {
  StoreThread store(16 * kMiB, InTmp());
  const auto c = store.Connect();
  std::mt19937 random(11);
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      std::shared_ptr<Client> own;
      if (!Client::Connect(store.socket(), {}, &own).ok()) _exit(1);
      for (uint64_t i = 0;; ++i) {
        Keep(own.get(), 100'000 + i, 900'000);
        Place place;
        if (GetBack(own.get(), 100'000 + i / 2, &place) == Step::kDone) own->Unpin(place.slot);
        if (i > 40) {
          own->UnpinKey(Key(100'000 + i - 40));
          Delete(own.get(), 100'000 + i - 40);
        }
      }
    }
    usleep(10'000 + random() % 60'000);  // where it dies is left to chance
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status));
    // The store has seen its end when nobody but us is connected.
    while (Stats(c.get()).clients > 1) usleep(1000);
    for (int i = 0; i < 1000 && Stats(c.get()).disk_objects > 0; ++i) {
      uint64_t freed = 0;
      static_cast<void>(c->Evict(~uint64_t{0}, {}, &freed));  // what was kept by nobody any more but still in memory
      usleep(1000);
    }
    EXPECT_EQ(Stats(c.get()).disk_objects, 0u);
    EXPECT_EQ(Audit(c.get()), "");
  }
}

TEST(Spilling, ADirectoryThatIsNotThereIsSaidToWhoeverWaitsForRoom) {
  SpillOptions options = InTmp();
  options.limits.directories = {"/nowhere"};
  StoreThread store(4 * kMiB, options);
  const auto c = store.Connect();
  for (uint64_t n = 0; n < 3; ++n) EXPECT_TRUE(Keep(c.get(), n, kMiB) == Step::kDone);
  std::string why;
  Place place;
  EXPECT_TRUE(Create(c.get(), Key(9), 2 * kMiB, &place, 0.2, &why) == Step::kAsk);
  EXPECT_NE(why.find("/nowhere: No such file or directory"), std::string::npos);
  EXPECT_EQ(Audit(c.get()), "");
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
