// Addresses, options and credentials; sockets.h.
#include "channel/sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "channel/limits.h"
#include "common/limits.h"

namespace ray::channel {
namespace {

// A Unix address; for a path longer than the kernel's 107 bytes it goes through a descriptor of the folder, which has
// to stay open until bind or connect has returned.
class UnixAddress {
 public:
  UnixAddress(const std::string& path, Status* status) {
    address_.sun_family = AF_UNIX;
    if (path.empty() || path.find('\0') != std::string::npos) {
      *status = Status(
          StatusCode::kInvalidArgument,
          "socket path is " + std::string(path.empty() ? "empty" : "cut by a zero byte") + ": give the path of a file");
      return;
    }
    std::string name = path;
    if (name.size() > kUnixPathBytesMax && !ThroughFolder(path, &name, status)) return;
    std::memcpy(address_.sun_path, name.c_str(), name.size() + 1);
    bytes_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + 1);
    ok_ = true;
  }
  ~UnixAddress() {
    if (folder_ >= 0) close(folder_);
  }
  UnixAddress(const UnixAddress&) = delete;
  UnixAddress& operator=(const UnixAddress&) = delete;

  bool ok() const { return ok_; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address_); }
  socklen_t bytes() const { return bytes_; }

 private:
  bool ThroughFolder(const std::string& path, std::string* name, Status* status) {
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    folder_ = open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder_ < 0) {
      *status = Status::FromErrno("can't open the folder of socket " + path, errno);
      return false;
    }
    *name = "/proc/self/fd/" + std::to_string(folder_) + "/" + path.substr(slash + 1);
    if (name->size() <= kUnixPathBytesMax) return true;
    *status = Status(StatusCode::kInvalidArgument,
                     "socket path " + path + " has " + std::to_string(path.size()) +
                         " bytes and its last part alone is too long: a Unix socket path has at most " +
                         std::to_string(kUnixPathBytesMax) + "; choose a shorter name");
    return false;
  }

  bool ok_ = false;
  int folder_ = -1;
  socklen_t bytes_ = 0;
  sockaddr_un address_{};
};

// A descriptor that closes itself unless taken.
class Guarded {
 public:
  explicit Guarded(int fd) : fd_(fd) {}
  ~Guarded() {
    if (fd_ >= 0) close(fd_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  int get() const { return fd_; }
  int take() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

void SetOption(int fd, int level, int option, int value) {
  // Tuning: a kernel that refuses gives a slower connection, not a wrong one.
  (void)setsockopt(fd, level, option, &value, sizeof value);
}

void SetBlocking(int fd, bool blocking) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags >= 0) (void)fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

// A full accept queue answers EAGAIN and leaves nothing to poll: epoll reports such a socket as hung up at once. The
// one thing that does wake is a blocking connect, which the kernel ends when a place gets free or after the send
// timeout.
int ConnectWaiting(int fd, const UnixAddress& address) {
  const timeval limit{kDialBacklogWaitMs / 1000, kDialBacklogWaitMs % 1000 * 1000};
  const timeval none{0, 0};
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  SetBlocking(fd, true);
  int error = 0;
  if (connect(fd, address.get(), address.bytes()) != 0) error = errno;
  SetBlocking(fd, false);
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
  return error;
}

bool NumericAddress(const std::string& host, uint16_t port, sockaddr_storage* out, socklen_t* bytes, Status* status) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    *status = Status(StatusCode::kInvalidArgument,
                     "host is '" + host + "': give a numeric IPv4 or IPv6 address; names are resolved by the caller");
    return false;
  }
  std::memcpy(out, found->ai_addr, found->ai_addrlen);
  *bytes = found->ai_addrlen;
  freeaddrinfo(found);
  return true;
}

}  // namespace

int ConnectUnix(const std::string& path, Status* status) {
  const UnixAddress address(path, status);
  if (!address.ok()) return -1;
  Guarded fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) {
    *status = Status::FromErrno("can't make a socket", errno);
    return -1;
  }
  int error = connect(fd.get(), address.get(), address.bytes()) == 0 ? 0 : errno;
  if (error == EAGAIN || error == EINTR) error = ConnectWaiting(fd.get(), address);
  if (error == 0) {
    *status = Status::Ok();
    return fd.take();
  }
  if (error == ECONNREFUSED) {
    *status = Status(StatusCode::kDisconnected, "nobody listens at " + path + " any more: that process has ended");
  } else if (error == EAGAIN || error == EINTR) {
    *status = Status(StatusCode::kTimedOut, "the accept queue of " + path + " was still full after " +
                                                std::to_string(kDialBacklogWaitMs) +
                                                " ms: that process is stopped or far behind");
  } else {
    *status = Status::FromErrno("can't connect to " + path, error);
  }
  return -1;
}

int ListenUnix(const std::string& path, int backlog, Status* status) {
  const UnixAddress address(path, status);
  if (!address.ok()) return -1;
  Guarded fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) {
    *status = Status::FromErrno("can't make a socket", errno);
    return -1;
  }
  // Linux makes the socket file with the mode of the socket's own inode, cut by the umask: so there is no moment at
  // which another user could connect.
  (void)fchmod(fd.get(), 0600);
  if (bind(fd.get(), address.get(), address.bytes()) != 0) {
    if (errno == EADDRINUSE) {
      *status =
          Status(StatusCode::kAlreadyExists, "can't listen at " + path + ": a file of that name is there already");
    } else {
      *status = Status::FromErrno("can't listen at " + path, errno);
    }
    return -1;
  }
  if (listen(fd.get(), backlog) != 0) {
    *status = Status::FromErrno("can't listen at " + path, errno);
    (void)unlink(path.c_str());
    return -1;
  }
  *status = Status::Ok();
  return fd.take();
}

int ConnectTcp(const std::string& host, uint16_t port, Status* status) {
  sockaddr_storage address;
  socklen_t bytes;
  if (!NumericAddress(host, port, &address, &bytes, status)) return -1;
  Guarded fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) {
    *status = Status::FromErrno("can't make a socket", errno);
    return -1;
  }
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0 && errno != EINPROGRESS && errno != EINTR) {
    const StatusCode code = errno == ECONNREFUSED ? StatusCode::kDisconnected : StatusCode::kSystem;
    *status = Status(code, "can't connect to " + host + " port " + std::to_string(port) + ": " + std::strerror(errno));
    return -1;
  }
  *status = Status::Ok();
  return fd.take();
}

int ListenTcp(const std::string& host, uint16_t port, int backlog, uint16_t* bound_port, Status* status) {
  sockaddr_storage address;
  socklen_t bytes;
  if (!NumericAddress(host, port, &address, &bytes, status)) return -1;
  Guarded fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() >= 0) SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);  // a restart may find the old one in TIME_WAIT
  if (fd.get() < 0 || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0 ||
      listen(fd.get(), backlog) != 0 || getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
    const StatusCode code = errno == EADDRINUSE ? StatusCode::kAlreadyExists : StatusCode::kSystem;
    *status = Status(code, "can't listen on " + host + " port " + std::to_string(port) + ": " + std::strerror(errno));
    return -1;
  }
  *bound_port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                                    : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  *status = Status::Ok();
  return fd.take();
}

bool IsUnixSocket(int fd) {
  int domain = 0;
  socklen_t bytes = sizeof domain;
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) == 0 && domain == AF_UNIX;
}

bool PeerOfUnixSocket(int fd, pid_t* pid, uid_t* uid) {
  ucred who{};
  socklen_t bytes = sizeof who;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) return false;
  *pid = who.pid;
  *uid = who.uid;
  return true;
}

void TuneSocket(int fd, bool is_unix) {
  SetBlocking(fd, false);
  const int flags = fcntl(fd, F_GETFD);
  if (flags >= 0) (void)fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
  if (is_unix) {
    SetOption(fd, SOL_SOCKET, SO_SNDBUF, kSocketSendBytes);
    return;
  }
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdleS);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveIntervalS);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
  // Keep-alive is silent while data waits for its acknowledgement; this bounds that case likewise.
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kSilenceNs / 1'000'000));
}

}  // namespace ray::channel
