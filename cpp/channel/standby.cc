// An epoll around an epoll; standby.h.
#include "channel/standby.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace ray::channel {
namespace {

enum : uint64_t { kGate, kKick };

int Control(int epoll, int operation, int fd, uint64_t key, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  return epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

}  // namespace

Standby::Standby(int poller_fd)
    : epoll_(epoll_create1(EPOLL_CLOEXEC)), event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), poller_fd_(poller_fd) {
  int error = epoll_ < 0 || event_ < 0 ? errno : 0;
  if (error == 0) error = Control(epoll_, EPOLL_CTL_ADD, event_, kKick, EPOLLIN);
  if (error == 0) error = Control(epoll_, EPOLL_CTL_ADD, poller_fd_, kGate, EPOLLONESHOT);  // disarmed
  if (error == 0) return;
  if (epoll_ >= 0) close(epoll_);
  if (event_ >= 0) close(event_);
  throw std::system_error(error, std::generic_category(), "can't make a standby gate");
}

Standby::~Standby() {
  close(event_);
  close(epoll_);
}

// EPOLL_CTL_MOD looks at the Poller anew, so an event that came while disarmed isn't missed.
int Standby::Arm() { return Control(epoll_, EPOLL_CTL_MOD, poller_fd_, kGate, EPOLLIN | EPOLLONESHOT); }

int Standby::Disarm() { return Control(epoll_, EPOLL_CTL_MOD, poller_fd_, kGate, EPOLLONESHOT); }

int Standby::Wait() {
  for (;;) {
    epoll_event ready[2];
    const int count = epoll_wait(epoll_, ready, 2, -1);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw std::system_error(errno, std::generic_category(), "epoll_wait on the standby gate");
    // The gate first: it has disarmed itself and would be forgotten, while an unread kick stays for the next Wait.
    for (int i = 0; i < count; ++i) {
      if (ready[i].data.u64 == kGate) return 1;
    }
    uint64_t kicks;
    if (count > 0 && read(event_, &kicks, sizeof kicks) == sizeof kicks) return 0;
  }
}

void Standby::Kick() {
  const uint64_t one = 1;
  (void)!write(event_, &one, sizeof one);  // full (2^64 kicks unread): the gate is kicked already
}

}  // namespace ray::channel
