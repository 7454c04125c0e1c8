// The gate of the background receiver: a thread that is to wake only when nobody else receives. An outer epoll watches
// the Poller's descriptor with EPOLLONESHOT. While disarmed, events of the Poller wake nobody here; so a thread blocked
// in `get` receives for the whole process without a second one being woken each time.
//
// Arm, Disarm: the loop's owner, under its lock; one system call each. Wait: the background thread, without the lock.
// Kick: any. All state is the kernel's.
#pragma once

namespace ray::channel {

class Standby {
 public:
  explicit Standby(int poller_fd);  // throws std::system_error if the process is out of descriptors
  ~Standby();                       // after the waiting thread has been kicked and joined
  Standby(const Standby&) = delete;
  Standby& operator=(const Standby&) = delete;

  // The next event of the Poller (or one already there) ends one Wait, which disarms again. Returns 0 or errno.
  int Arm();
  int Disarm();  // a Wait that has already ended isn't called back: its thread checks, with the lock, who receives now

  // 1: the Poller has events, and the gate is disarmed. 0: kicked. Signals don't end it. Blocks for ever otherwise.
  int Wait();
  void Kick();  // one Wait, now or the next, returns 0; several kicks may count as one

 private:
  int epoll_;
  int event_;
  const int poller_fd_;
};

}  // namespace ray::channel
