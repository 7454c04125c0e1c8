// A listening socket: a Unix one in the session folder, or a TCP one, the gate's. Owned by one event loop, under
// the same lock as its connections. Accepting hands out bare descriptors; Connection::Adopt gives them a voice.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "channel/handshake.h"
#include "channel/limits.h"
#include "common/status.h"

namespace ray::channel {

class Listener {
 public:
  // Listens at path, which must not exist; the socket file is made with mode 0600 from its first moment. Paths longer
  // than the kernel's 107 bytes work as long as the last component is short. Null and a Status: kAlreadyExists,
  // kNotFound (no such folder), kInvalidArgument, kPermission, kSystem.
  static std::unique_ptr<Listener> Listen(const std::string& path, int backlog, Status* status);
  // Listens on a numeric address; port 0 takes any free one (see port()). kPermission without self.network_proof:
  // whatever would be accepted there could not be told from a stranger.
  static std::unique_ptr<Listener> ListenTcp(const std::string& host, uint16_t port, int backlog, const Identity& self,
                                             Status* status);
  // Closes, and removes the socket file if it is still the one that this process made.
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // A connected socket (close-on-exec, non-blocking), or -1: none waiting. When this process is out of descriptors the
  // waiting connection is dropped and counted, since a level-triggered loop would otherwise spin on it.
  int Accept();

  int fd() const { return fd_; }
  uint16_t port() const { return port_; }  // 0 for a Unix socket
  const std::string& path() const { return path_; }

 private:
  explicit Listener(int fd);

  int fd_;
  int reserve_fd_;  // given up for a moment to accept, and drop, a connection when descriptors have run out
  uint16_t port_ = 0;
  std::string path_;
  pid_t owner_pid_;  // a forked child must not remove the parent's socket
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace ray::channel
