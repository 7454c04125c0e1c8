// What an event loop sleeps on: epoll, level-triggered, and one timer. The owner's loop thread (under its lock) adds,
// changes and removes descriptors; Wait may run on any thread without the lock, several at a time, and reads nothing
// that the others write: all shared state is the kernel's.
#pragma once

#include <cstdint>

namespace ray::channel {

constexpr uint64_t kTimerKey = UINT64_MAX;

// hangup: the peer has closed, at least its sending side, or the socket has an error. readable is then set as well:
// read up to the end, then Remove, or the event comes again at once (the kernel reports hang-ups whether wanted or
// not).
struct Event {
  uint64_t key;
  bool readable;
  bool writable;
  bool hangup;
};

class Poller {
 public:
  Poller();  // throws std::system_error if the process is out of descriptors
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  int fd() const { return epoll_; }  // readable whenever Wait would return something (Standby watches it)

  // Each returns 0 or errno. A key is not reused while a Wait that began before its Remove may still be handing it out.
  int Add(int fd, uint64_t key);  // wants reads
  int Want(int fd, uint64_t key, bool read, bool write);
  int Remove(int fd);  // before the descriptor is closed

  // Up to max (<= kPollEventsMax count) events. timeout_ms: 0 polls, -1 waits for ever. -EINTR when a signal came, 0 on
  // timeout. Any thread.
  int Wait(int timeout_ms, Event* out, int max);

  // Rings once, as an event with kTimerKey, that many nanoseconds from now; a new setting replaces the old; 0 disarms.
  // A ring that was already due when it was replaced may still be delivered.
  void SetTimer(int64_t ns_from_now);

 private:
  int epoll_;
  int timer_;
};

}  // namespace ray::channel
