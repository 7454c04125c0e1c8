// Accepting sockets; listener.h.
#include "channel/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "channel/counters.h"
#include "channel/sockets.h"

namespace ray::channel {
namespace {

int OpenReserve() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

}  // namespace

Listener::Listener(int fd) : fd_(fd), reserve_fd_(OpenReserve()), owner_pid_(getpid()) {}

std::unique_ptr<Listener> Listener::Listen(const std::string& path, int backlog, Status* status) {
  const int fd = ListenUnix(path, backlog, status);
  if (fd < 0) return nullptr;
  std::unique_ptr<Listener> listener(new Listener(fd));
  listener->path_ = path;
  struct stat file;
  if (stat(path.c_str(), &file) == 0) {
    listener->device_ = file.st_dev;
    listener->inode_ = file.st_ino;
  }
  return listener;
}

std::unique_ptr<Listener> Listener::ListenTcp(const std::string& host, uint16_t port, int backlog, const Identity& self,
                                              Status* status) {
  if (!self.network_proof) {
    *status =
        Status(StatusCode::kPermission,
               "won't listen on TCP: no network_proof is configured, so a peer could not be told from a stranger");
    return nullptr;
  }
  uint16_t bound = 0;
  const int fd = channel::ListenTcp(host, port, backlog, &bound, status);
  if (fd < 0) return nullptr;
  std::unique_ptr<Listener> listener(new Listener(fd));
  listener->port_ = bound;
  return listener;
}

Listener::~Listener() {
  close(fd_);
  if (reserve_fd_ >= 0) close(reserve_fd_);
  if (path_.empty() || getpid() != owner_pid_) return;
  struct stat file;
  const bool still_ours = stat(path_.c_str(), &file) == 0 && file.st_dev == device_ && file.st_ino == inode_;
  if (still_ours) unlink(path_.c_str());
}

int Listener::Accept() {
  for (;;) {
    const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) return fd;
    if (errno == EINTR || errno == ECONNABORTED) continue;  // aborted: gone while it waited; the next may be there
    if (errno != EMFILE && errno != ENFILE) return -1;
    if (reserve_fd_ >= 0) close(reserve_fd_);
    const int dropped = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (dropped >= 0) {
      close(dropped);
      counters().accepts_refused.fetch_add(1, std::memory_order_relaxed);
    }
    reserve_fd_ = OpenReserve();
    if (dropped < 0) return -1;
  }
}

}  // namespace ray::channel
