// cpp/channel/standby.h: the gate wakes its thread exactly when armed.
#include "channel/standby.h"

#include <sys/eventfd.h>

#include <atomic>
#include <thread>

#include "channel/fixture.h"
#include "channel/poller.h"
#include "testing.h"

namespace ray::channel {
namespace {

struct Gate {
  Poller poller;
  Standby standby{poller.fd()};
  int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  Gate() { poller.Add(bell, 1); }
  ~Gate() { close(bell); }
  void Ring() const {
    const uint64_t one = 1;
    (void)!write(bell, &one, sizeof one);
  }
  void Silence() const {
    uint64_t count;
    (void)!read(bell, &count, sizeof count);
  }
};

}  // namespace

TEST(Standby, StartsDisarmed) {
  Gate gate;
  gate.Ring();
  gate.standby.Kick();
  EXPECT_EQ(gate.standby.Wait(), 0);  // not 1, though the poller has an event
}

TEST(Standby, ArmedItWakesForAnEventThatIsAlreadyThere) {
  Gate gate;
  gate.Ring();
  EXPECT_EQ(gate.standby.Arm(), 0);
  EXPECT_EQ(gate.standby.Wait(), 1);
}

TEST(Standby, AWaitThatEndedHasDisarmedTheGate) {
  Gate gate;
  gate.Ring();
  gate.standby.Arm();
  EXPECT_EQ(gate.standby.Wait(), 1);
  gate.standby.Kick();
  EXPECT_EQ(gate.standby.Wait(), 0);
  gate.standby.Arm();
  EXPECT_EQ(gate.standby.Wait(), 1);
}

TEST(Standby, DisarmedInTimeItDoesNotWake) {
  Gate gate;
  gate.standby.Arm();
  EXPECT_EQ(gate.standby.Disarm(), 0);
  gate.Ring();
  gate.standby.Kick();
  EXPECT_EQ(gate.standby.Wait(), 0);
}

TEST(Standby, AKickIsNotLostBehindAnEvent) {
  Gate gate;
  gate.Ring();
  gate.standby.Kick();
  gate.standby.Arm();
  EXPECT_EQ(gate.standby.Wait(), 1);
  EXPECT_EQ(gate.standby.Wait(), 0);
}

TEST(Standby, AThreadAlreadyWaitingIsWokenByArmByAnEventAndByAKick) {
  Gate gate;
  std::atomic<int> wakes{0};
  std::thread background([&] {
    for (;;) {
      if (gate.standby.Wait() == 0) return;
      Event event;
      if (gate.poller.Wait(0, &event, 1) == 1) gate.Silence();
      wakes.fetch_add(1);
      wakes.notify_all();
    }
  });
  gate.Ring();
  gate.standby.Arm();  // by Arm: the event is there
  wakes.wait(0);
  gate.standby.Arm();
  gate.Ring();  // by the event: the gate is armed
  wakes.wait(1);
  gate.standby.Kick();
  background.join();
  EXPECT_EQ(wakes.load(), 2);
}

// Foreground and background take turns receiving, as engine and background receiver do; no event may be lost between
// them.
TEST(Standby, NoEventIsLostBetweenForegroundAndBackground) {
  Gate gate;
  std::atomic<int> heard{0};
  std::thread background([&] {
    while (gate.standby.Wait() == 1) {
      gate.Silence();
      heard.fetch_add(1);
      heard.notify_all();
    }
  });
  Event event;
  for (int i = 0; i < 2000; ++i) {
    const int before = heard.load();
    if (i % 2 == 0) {
      gate.standby.Arm();
      gate.Ring();
      heard.wait(before);  // the background has it
    } else {
      gate.standby.Disarm();
      gate.Ring();
      EXPECT_EQ(gate.poller.Wait(10'000, &event, 1), 1);  // we have it
      gate.Silence();
      EXPECT_EQ(heard.load(), before);
    }
  }
  gate.standby.Kick();
  background.join();
}

}  // namespace ray::channel
