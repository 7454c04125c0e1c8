// cpp/channel/poller.h: what is reported, when, and from which thread.
#include "channel/poller.h"

#include <sys/eventfd.h>

#include <thread>

#include "channel/fixture.h"
#include "common/clock.h"
#include "testing.h"

namespace ray::channel {
namespace {

// An eventfd: readable once written; always writable.
struct Bell {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  ~Bell() { close(fd); }
  void Ring() const {
    const uint64_t one = 1;
    (void)!write(fd, &one, sizeof one);
  }
};

}  // namespace

TEST(Poller, ReportsWhatIsWantedUnderItsKey) {
  Poller poller;
  Bell a, b;
  Event events[4];
  EXPECT_EQ(poller.Add(a.fd, 1), 0);
  EXPECT_EQ(poller.Add(b.fd, 2), 0);
  EXPECT_EQ(poller.Wait(0, events, 4), 0);
  b.Ring();
  ASSERT_EQ(poller.Wait(10'000, events, 4), 1);
  EXPECT_EQ(events[0].key, 2u);
  EXPECT_TRUE(events[0].readable && !events[0].writable && !events[0].hangup);
  EXPECT_EQ(poller.Wait(0, events, 4), 1);  // level-triggered
  EXPECT_EQ(poller.Want(b.fd, 7, false, true), 0);
  ASSERT_EQ(poller.Wait(0, events, 4), 1);
  EXPECT_EQ(events[0].key, 7u);
  EXPECT_TRUE(events[0].writable && !events[0].readable);
  EXPECT_EQ(poller.Remove(b.fd), 0);
  EXPECT_EQ(poller.Wait(0, events, 4), 0);
}

TEST(Poller, SaysWhyADescriptorCanNotBeAddedOrChanged) {
  Poller poller;
  Bell bell;
  EXPECT_EQ(poller.Want(bell.fd, 1, true, true), ENOENT);
  EXPECT_EQ(poller.Add(bell.fd, 1), 0);
  EXPECT_EQ(poller.Add(bell.fd, 1), EEXIST);
  EXPECT_EQ(poller.Add(-1, 1), EBADF);
}

TEST(Poller, ReportsAPeersEndAsHangupAndReadableEvenIfNothingIsWanted) {
  Poller poller;
  Event events[4];
  for (bool want : {true, false}) {
    int both[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both), 0);
    poller.Add(both[0], 3);
    if (!want) poller.Want(both[0], 3, false, false);
    EXPECT_EQ(poller.Wait(0, events, 4), 0);
    close(both[1]);
    ASSERT_EQ(poller.Wait(10'000, events, 4), 1);
    EXPECT_TRUE(events[0].hangup && events[0].readable);
    poller.Remove(both[0]);
    close(both[0]);
  }
}

TEST(Poller, TheTimerRingsOnceAtItsTime) {
  Poller poller;
  Event events[4];
  const int64_t start = NowNs();
  poller.SetTimer(5 * kNsPerMs);
  ASSERT_EQ(poller.Wait(10'000, events, 4), 1);
  EXPECT_EQ(events[0].key, kTimerKey);
  EXPECT_GE(NowNs() - start, 5 * kNsPerMs);
  EXPECT_EQ(poller.Wait(0, events, 4), 0);
}

TEST(Poller, ANewTimerReplacesTheOldAndZeroDisarms) {
  Poller poller;
  Event events[4];
  poller.SetTimer(1);
  poller.SetTimer(3600 * kNsPerS);
  EXPECT_EQ(poller.Wait(2, events, 4), 0);
  poller.SetTimer(1);
  poller.SetTimer(0);
  EXPECT_EQ(poller.Wait(2, events, 4), 0);
}

TEST(Poller, AWaitOnAnotherThreadSeesWhatIsAddedMeanwhile) {
  Poller poller;
  Bell bell;
  bell.Ring();
  Event events[4];
  int count = 0;
  std::thread waiter([&] { count = poller.Wait(10'000, events, 4); });
  poller.Add(bell.fd, 9);
  waiter.join();
  ASSERT_EQ(count, 1);
  EXPECT_EQ(events[0].key, 9u);
}

TEST(Poller, ASignalEndsAWait) {
  struct sigaction action{}, old{};
  action.sa_handler = [](int) {};
  sigaction(SIGALRM, &action, &old);
  Poller poller;
  Event events[4];
  ualarm(10'000, 10'000);  // again and again, for the case that the first comes before the wait
  EXPECT_EQ(poller.Wait(10'000, events, 4), -EINTR);
  ualarm(0, 0);
  sigaction(SIGALRM, &old, nullptr);
}

TEST(Poller, ReturnsNoMoreEventsThanThereIsRoomFor) {
  Poller poller;
  std::vector<std::unique_ptr<Bell>> bells;
  for (uint64_t i = 0; i < 5; ++i) {
    bells.push_back(std::make_unique<Bell>());
    bells.back()->Ring();
    poller.Add(bells.back()->fd, i);
  }
  Event events[2];
  EXPECT_EQ(poller.Wait(0, events, 2), 2);
}

}  // namespace ray::channel
