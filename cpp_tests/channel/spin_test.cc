// cpp/channel/spin.h: what polling finds, and how waits that poll in vain become fewer.
#include "channel/spin.h"

#include <sys/eventfd.h>

#include "channel/fixture.h"
#include "channel/limits.h"
#include "testing.h"

namespace ray::channel {
namespace {

struct Waiter {
  Poller poller;
  int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  Event events[4];
  Waiter() { poller.Add(bell, 1); }
  ~Waiter() { close(bell); }
  void Ring() const {
    const uint64_t one = 1;
    (void)!write(bell, &one, sizeof one);
  }
  void Silence() const {
    uint64_t count;
    (void)!read(bell, &count, sizeof count);
  }
};

constexpr int kManyCores = 8;

}  // namespace

TEST(Spin, ReturnsAnEventThatIsThere) {
  Waiter waiter;
  Spin spin(kManyCores);
  waiter.Ring();
  ASSERT_EQ(spin.Wait(waiter.poller, -1, waiter.events, 4), 1);
  EXPECT_EQ(waiter.events[0].key, 1u);
}

TEST(Spin, SleepsForTheRestOfTheTimeAfterPolling) {
  Waiter waiter;
  Spin spin(kManyCores);
  const int64_t began = NowNs();
  EXPECT_EQ(spin.Wait(waiter.poller, 20, waiter.events, 4), 0);
  EXPECT_TRUE(NowNs() - began >= 20 * kNsPerMs);
}

TEST(Spin, PollingInVainDoublesTheWaitsThatSleepAtOnce) {
  Waiter waiter;
  Spin spin(kManyCores);
  int skipped = 0;
  for (int expected = 1; expected < 2 * kSpinSkipMax; expected = 2 * expected + 1) {
    EXPECT_EQ(spin.Wait(waiter.poller, 1, waiter.events, 4), 0);  // polls, in vain
    skipped = spin.waits_to_skip();
    EXPECT_EQ(skipped, expected < kSpinSkipMax ? expected : kSpinSkipMax);
    waiter.Ring();  // what the skipped waits find says nothing about polling
    for (int i = 0; i < skipped; ++i) EXPECT_EQ(spin.Wait(waiter.poller, -1, waiter.events, 4), 1);
    waiter.Silence();
    EXPECT_EQ(spin.waits_to_skip(), 0);
  }
  EXPECT_EQ(skipped, kSpinSkipMax);
}

TEST(Spin, PollingThatFoundSomethingStartsTheCountAnew) {
  Waiter waiter;
  Spin spin(kManyCores);
  EXPECT_EQ(spin.Wait(waiter.poller, 1, waiter.events, 4), 0);
  EXPECT_EQ(spin.Wait(waiter.poller, 1, waiter.events, 4), 0);  // slept at once
  waiter.Ring();
  EXPECT_TRUE(spin.Ready(waiter.poller));
  waiter.Silence();
  EXPECT_FALSE(spin.Ready(waiter.poller));
  EXPECT_EQ(spin.waits_to_skip(), 1);
}

TEST(Spin, ReadyTakesNoEvent) {
  Waiter waiter;
  Spin spin(kManyCores);
  waiter.poller.SetTimer(1);  // Poller::Wait would take it off the timer
  EXPECT_EQ(waiter.poller.Wait(1000, waiter.events, 4), 1);
  waiter.Ring();
  EXPECT_TRUE(spin.Ready(waiter.poller));
  EXPECT_TRUE(spin.Ready(waiter.poller));
  EXPECT_EQ(waiter.poller.Wait(0, waiter.events, 4), 1);
}

TEST(Spin, AWaitThatMayNotBlockDoesNotPollEither) {
  Waiter waiter;
  Spin spin(kManyCores);
  EXPECT_EQ(spin.Wait(waiter.poller, 0, waiter.events, 4), 0);
  EXPECT_EQ(spin.waits_to_skip(), 0);
}

TEST(Spin, OnOneCoreItNeverPolls) {
  Waiter waiter;
  Spin spin(1);
  waiter.Ring();
  EXPECT_FALSE(spin.Ready(waiter.poller));
  EXPECT_EQ(spin.Wait(waiter.poller, -1, waiter.events, 4), 1);
  waiter.Silence();
  EXPECT_EQ(spin.Wait(waiter.poller, 1, waiter.events, 4), 0);
  EXPECT_EQ(spin.waits_to_skip(), 0);
}

}  // namespace ray::channel
