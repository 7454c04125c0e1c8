// Polling for a moment before going to sleep. A core that idles takes 5 to 40 us to wake on the virtual machines we
// measured, several times what a call costs (README: futex round trip); whoever waits for the answer to a small call is
// better off looking again until it is there. Bounded twice: a wait polls for kSpinNs at the most, and each wait that
// polled in vain doubles the number of waits that then sleep at once, so that a process whose answers are long in
// coming spends next to nothing on it and an idle one nothing at all.
//
// One object per receiver; used by the one thread that receives at the time.
#pragma once

#include "channel/poller.h"

namespace ray::channel {

class Spin {
 public:
  Spin();
  explicit Spin(int cores) : alone_(cores == 1) {}

  // Poller::Wait with that habit. Without the lock, by the receiving thread.
  int Wait(Poller& poller, int timeout_ms, Event* out, int max);

  // The same for a thread that is about to sleep on something which watches the poller's descriptor among others: true
  // as soon as the poller has an event, false if it had none in the time this wait was given. Takes no event.
  bool Ready(const Poller& poller);

  int waits_to_skip() const { return skipped_next_; }  // for tests

 private:
  bool MayPoll();  // whether this wait polls at all
  void Vain();

  const bool alone_;      // one core: whoever polls keeps the other from answering
  int skip_ = 0;          // how many waits slept at once after the last one that polled in vain; 0: it did not
  int skipped_next_ = 0;  // how many of those are still to come
};

}  // namespace ray::channel
