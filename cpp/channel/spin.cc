// The loops of spin.h.
#include "channel/spin.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>

#include "channel/limits.h"
#include "common/clock.h"

namespace ray::channel {
namespace {

int Cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

}  // namespace

Spin::Spin() : Spin(Cores()) {}

bool Spin::MayPoll() {
  if (alone_) return false;
  if (skipped_next_ == 0) return true;
  --skipped_next_;
  return false;
}

void Spin::Vain() { skipped_next_ = skip_ = std::min(2 * skip_ + 1, kSpinSkipMax); }

int Spin::Wait(Poller& poller, int timeout_ms, Event* out, int max) {
  if (timeout_ms == 0 || !MayPoll()) return poller.Wait(timeout_ms, out, max);
  const int64_t end = NowNs() + kSpinNs;
  do {
    const int count = poller.Wait(0, out, max);
    if (count != 0) {
      skip_ = 0;
      return count;
    }
  } while (NowNs() < end);
  Vain();
  return poller.Wait(timeout_ms, out, max);
}

bool Spin::Ready(const Poller& poller) {
  if (!MayPoll()) return false;
  pollfd watched{poller.fd(), POLLIN, 0};
  const int64_t end = NowNs() + kSpinNs;
  do {
    if (poll(&watched, 1, 0) != 0) {
      skip_ = 0;
      return true;
    }
  } while (NowNs() < end);
  Vain();
  return false;
}

}  // namespace ray::channel
