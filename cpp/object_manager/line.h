// A local process's connection to the object manager of its store: asks, and reads what it says. Linked into cores and
// the node, by way of ray._native.plasma.
//
// One thread at a time (the caller's lock). Sending waits only while the object manager's thread is behind with
// reading; receiving never waits: watch fd(), call Receive when it is readable, then Next until it says false. If the
// store dies, Receive says kDisconnected; pulls and their pins went with it.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"
#include "object_manager/wire.h"

namespace ray::objects {

struct LineEvent {
  Line type;  // kPulled, kHeld, kCount, kStatsAre, kClaimed
  uint64_t request;
  std::string payload;
};

class TransferLine {
 public:
  // kNotFound: no store with an object manager has been there. kDisconnected: it has died, another may follow.
  static Status Connect(const std::string& socket_path, std::unique_ptr<TransferLine>* out);
  ~TransferLine();

  int fd() const { return fd_; }

  // Each sends one request and returns; *request, if given, names the answer. kDisconnected.
  Status Ask(Line type, const std::string& payload, uint64_t* request = nullptr);
  Status Pull(const PullBody& what, uint64_t* request) { return Ask(Line::kPull, PullPayload(what), request); }
  Status LetGo(uint64_t request);
  // Hands over a connection that the gate accepted for us; fd stays the caller's to close.
  Status Adopt(int fd);

  Status Receive();
  bool Next(LineEvent* event);

 private:
  explicit TransferLine(int fd) : fd_(fd) {}
  Status Send(Line type, uint64_t request, const std::string& payload, int passed_fd);

  const int fd_;
  FrameReader reader_{kLineBytesMax};
  uint64_t next_request_ = 1;
};

}  // namespace ray::objects
