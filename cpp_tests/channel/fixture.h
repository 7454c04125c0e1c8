// What the channel's tests share: a folder that goes away, identities, two connections that face each other, a raw
// socket for a peer that misbehaves, and waits without sleeping.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "channel/connection.h"
#include "channel/listener.h"

namespace ray::channel {

inline Identity MakeIdentity(char tag, uint8_t role, char token = 'T') {
  Identity identity;
  std::memset(identity.token, token, sizeof identity.token);
  std::memset(identity.tag, tag, sizeof identity.tag);
  identity.role = role;
  return identity;
}

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/ray-channel-test-XXXXXX";
    if (mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// True when the descriptor is ready for one of the events (POLLIN, POLLOUT) within ten seconds; an end counts as ready.
inline bool Ready(int fd, short events, int timeout_ms = 10'000) {
  pollfd p{fd, events, 0};
  return poll(&p, 1, timeout_ms) == 1;
}

struct OwnFrame {
  uint8_t type;
  uint8_t flags;
  std::string payload;
  bool operator==(const OwnFrame&) const = default;
};

inline bool Send(Connection* c, uint8_t type, uint8_t flags, const std::string& payload) {
  uint8_t* at = c->Reserve(type, flags, static_cast<uint32_t>(payload.size()));
  if (at == nullptr) return false;
  std::memcpy(at, payload.data(), payload.size());
  return true;
}

// Takes frames until count have come or the connection is over. Blocks up to ten seconds for each piece.
inline std::vector<OwnFrame> Receive(Connection* c, size_t count = SIZE_MAX) {
  std::vector<OwnFrame> frames;
  Frame frame;
  for (;;) {
    while (frames.size() < count && c->Next(&frame)) {
      frames.push_back({frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)});
    }
    if (frames.size() >= count) return frames;
    const int filled = c->Fill();
    if (filled < 0) {
      while (frames.size() < count && c->Next(&frame)) {
        frames.push_back({frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)});
      }
      return frames;
    }
    if (filled == 0 && !Ready(c->fd(), POLLIN)) throw std::runtime_error("no frame within ten seconds");
  }
}

// The payload of the next frame; "(none)" if the connection ends first.
inline std::string ReceiveOne(Connection* c) {
  const std::vector<OwnFrame> frames = Receive(c, 1);
  return frames.empty() ? "(none)" : frames[0].payload;
}

// A raw Unix socket connected to path: a peer that may send anything.
class Raw {
 public:
  explicit Raw(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) throw std::runtime_error("connect");
  }
  explicit Raw(int fd) : fd_(fd) {}
  ~Raw() {
    if (fd_ >= 0) close(fd_);
  }
  Raw(const Raw&) = delete;
  Raw& operator=(const Raw&) = delete;

  bool Write(const void* data, size_t bytes) {
    return send(fd_, data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
  }
  bool Write(const std::string& bytes) { return Write(bytes.data(), bytes.size()); }
  // Exactly that many bytes, or fewer if the other side ended.
  std::string Read(size_t bytes) {
    std::string out;
    while (out.size() < bytes) {
      char piece[4096];
      const ssize_t n = recv(fd_, piece, std::min(sizeof piece, bytes - out.size()), 0);
      if (n <= 0) break;
      out.append(piece, static_cast<size_t>(n));
    }
    return out;
  }
  // Nothing there now, and not ended.
  bool Silent() {
    char c;
    return recv(fd_, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
  }
  bool Ended() { return Read(1).empty(); }
  void Close() {
    close(fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// The bytes of a hello as a dialling peer of this version sends them.
inline std::string HelloBytes(const Identity& self) {
  Handshake handshake(self, std::make_unique<TokenProof>(self.token), Handshake::Side::kDialled);
  return std::string(reinterpret_cast<const char*>(handshake.unsent()), handshake.unsent_bytes());
}

inline std::string FrameString(uint8_t type, uint8_t flags, const std::string& payload) {
  std::string out(FrameBytes(payload.size()), '\0');
  StoreHeader(reinterpret_cast<uint8_t*>(out.data()), type, flags, static_cast<uint32_t>(payload.size()));
  std::memcpy(out.data() + kFrameHeaderBytes, payload.data(), payload.size());
  return out;
}

// Two open connections, hellos exchanged.
struct Pair {
  Folder folder;
  std::unique_ptr<Listener> listener;
  std::unique_ptr<Connection> dialled, accepted;

  explicit Pair(bool greet = true) {
    Status status;
    listener = Listener::Listen(folder / "s", kBacklog, &status);
    if (!listener) throw std::runtime_error(status.message());
    dialled = Connection::Dial(folder / "s", MakeIdentity('D', 0), &status);
    if (!dialled) throw std::runtime_error(status.message());
    accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
    if (!greet) return;
    accepted->Fill();
    dialled->Fill();
    if (!dialled->open() || !accepted->open()) throw std::runtime_error("hellos failed");
  }
};

// Runs body in a forked child; returns its wait status.
template <typename Body>
int InChild(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    int result = 99;
    try {
      result = body();
    } catch (...) {  // the status tells
    }
    _exit(result);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return status;
}

}  // namespace ray::channel
