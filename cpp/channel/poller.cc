// epoll and a timerfd; poller.h.
#include "channel/poller.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "channel/limits.h"
#include "common/clock.h"

namespace ray::channel {
namespace {

int Control(int epoll, int operation, int fd, uint64_t key, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  return epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

}  // namespace

Poller::Poller()
    : epoll_(epoll_create1(EPOLL_CLOEXEC)), timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
  int error = epoll_ < 0 || timer_ < 0 ? errno : 0;
  if (error == 0) error = Control(epoll_, EPOLL_CTL_ADD, timer_, kTimerKey, EPOLLIN);
  if (error == 0) return;
  if (epoll_ >= 0) close(epoll_);
  if (timer_ >= 0) close(timer_);
  throw std::system_error(error, std::generic_category(), "can't make a poller");
}

Poller::~Poller() {
  close(timer_);
  close(epoll_);
}

int Poller::Add(int fd, uint64_t key) { return Control(epoll_, EPOLL_CTL_ADD, fd, key, EPOLLIN | EPOLLRDHUP); }

int Poller::Want(int fd, uint64_t key, bool read, bool write) {
  // An owner that doesn't read for now isn't told of a half-closed peer either, since it would not act on it.
  const uint32_t reads = read ? uint32_t{EPOLLIN | EPOLLRDHUP} : 0;
  const uint32_t writes = write ? uint32_t{EPOLLOUT} : 0;
  return Control(epoll_, EPOLL_CTL_MOD, fd, key, reads | writes);
}

int Poller::Remove(int fd) { return Control(epoll_, EPOLL_CTL_DEL, fd, 0, 0); }

int Poller::Wait(int timeout_ms, Event* out, int max) {
  epoll_event ready[kPollEventsMax];
  const int count = epoll_wait(epoll_, ready, std::min(max, kPollEventsMax), timeout_ms);
  if (count < 0) return -errno;
  for (int i = 0; i < count; ++i) {
    const uint32_t events = ready[i].events;
    const bool hangup = events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR);
    out[i] = {ready[i].data.u64, hangup || (events & EPOLLIN), static_cast<bool>(events & EPOLLOUT), hangup};
    if (out[i].key == kTimerKey) {
      uint64_t rings;  // read, or it stays readable; a ring replaced by SetTimer in between has nothing to read
      (void)!read(timer_, &rings, sizeof rings);
    }
  }
  return count;
}

void Poller::SetTimer(int64_t ns_from_now) {
  itimerspec when{};
  when.it_value.tv_sec = ns_from_now / kNsPerS;
  when.it_value.tv_nsec = ns_from_now % kNsPerS;
  (void)timerfd_settime(timer_, 0, &when, nullptr);  // fails for negative times only, which arm nothing
}

}  // namespace ray::channel
