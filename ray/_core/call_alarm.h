// Bounds how long the main thread runs one call: at `soft` it gets a SIGINT, which Python turns into an exception; at
// `hard` the process gets a deadly signal. The kernel keeps both clocks, so nothing of ours has to be able to run when
// they strike: a call may hold the GIL for ever.
//
// The same clock interrupts a call that is cancelled, and goes on until it is told that this was seen. One SIGINT would
// not do: Python looks for signals before it enters a system call, and one that comes between the look and the call
// interrupts nothing, so that a sleep goes on to its end. Whoever cancels has just been given the GIL by a main thread
// on its way to sleep, so he is likely to hit that moment.
//
// Made by the main thread, used by whichever holds the GIL. The timers are made when they are first wanted, and kept; a
// forked child has none (timer_create(2)).
#pragma once

#include <csignal>
#include <cstdint>
#include <ctime>

#include <sys/syscall.h>
#include <unistd.h>

namespace ray {

// An interruption that came at the wrong moment comes again after so long.
constexpr int64_t kAgainNs = 20'000'000;

class CallAlarm {
 public:
  CallAlarm() = default;
  CallAlarm(const CallAlarm&) = delete;
  CallAlarm& operator=(const CallAlarm&) = delete;
  ~CallAlarm() {
    if (made_) {
      timer_delete(soft_);
      timer_delete(hard_);
    }
  }

  // Both in nanoseconds of CLOCK_MONOTONIC, soft before hard; 0: never. False: the kernel gave no timer.
  bool Arm(int64_t soft_ns, int64_t hard_ns, int hard_signal) {
    if (!made_ && !Make(hard_signal)) return false;
    Set(soft_, soft_ns);
    Set(hard_, hard_ns);
    return true;
  }

  // SIGINTs from then on, until Seen. `hard` stays as it was.
  bool Insist(int64_t from_ns, int hard_signal) {
    if (!made_ && !Make(hard_signal)) return false;
    Set(soft_, from_ns, kAgainNs);
    return true;
  }

  // After Insist. The next soft limit; 0: none.
  void Seen(int64_t soft_ns) {
    if (made_) Set(soft_, soft_ns);
  }

  void Disarm() {
    if (!made_) return;
    Set(soft_, 0);
    Set(hard_, 0);
  }

 private:
  bool Make(int hard_signal) {
    sigevent interrupt{};
    interrupt.sigev_notify = SIGEV_THREAD_ID;  // to this thread: it may have to be woken from a system call
    interrupt.sigev_signo = SIGINT;
#ifdef sigev_notify_thread_id
    interrupt.sigev_notify_thread_id = main_;
#else
    interrupt._sigev_un._tid = main_;
#endif
    if (timer_create(CLOCK_MONOTONIC, &interrupt, &soft_) != 0) return false;
    sigevent end{};
    end.sigev_notify = SIGEV_SIGNAL;
    end.sigev_signo = hard_signal;
    if (timer_create(CLOCK_MONOTONIC, &end, &hard_) != 0) {
      timer_delete(soft_);
      return false;
    }
    made_ = true;
    return true;
  }

  static void Set(timer_t timer, int64_t at_ns, int64_t every_ns = 0) {  // at 0: it is disarmed
    itimerspec when{};
    when.it_interval.tv_nsec = every_ns;
    when.it_value.tv_sec = at_ns / 1000000000;
    when.it_value.tv_nsec = at_ns % 1000000000;
    timer_settime(timer, TIMER_ABSTIME, &when, nullptr);
  }

  const pid_t main_ = static_cast<pid_t>(syscall(SYS_gettid));
  bool made_ = false;
  timer_t soft_{};
  timer_t hard_{};
};

}  // namespace ray
