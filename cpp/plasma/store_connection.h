// The client's socket to the store: requests and their answers. Client process; any thread, several at once.
//
// There is no receiving thread: of the threads that wait for an answer one reads the socket for all, and hands over
// when its own has come. A store that dies ends every wait with kDisconnected.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "common/status.h"
#include "plasma/protocol.h"

namespace ray::plasma {

// How a wait ends other than by the answer.
struct Patience {
  int64_t deadline_ns = INT64_MAX;  // CLOCK_MONOTONIC
  // Called (no lock held) when a signal has interrupted the wait; true gives up. May be null: the wait goes on.
  bool (*interrupted)() = nullptr;
};

struct Answer {
  Message type;
  std::string payload;
};

class StoreConnection {
 public:
  // Takes over a connected socket.
  explicit StoreConnection(int fd);
  ~StoreConnection();

  int fd() const { return fd_; }

  // Sends and waits for the answer. kDisconnected; kTimedOut (the request is cancelled); kInterrupted
  // if `interrupted` gave up.
  Status Call(Message type, const void* body, size_t bytes, const Patience& patience, Answer* answer);
  // For a thread that may not wait: sends; the answer is there for Take once Receive has read it. kDisconnected.
  Status Start(Message type, const void* body, size_t bytes, uint64_t* request);
  // Reads what has come, without waiting. kDisconnected.
  Status Receive();
  // True: the answer of that request, which is forgotten.
  bool Take(uint64_t request, Answer* answer);
  // The answer is not wanted any more; what it grants is given back when it comes.
  void Cancel(uint64_t request);
  // Sends what has no answer.
  Status Tell(Message type, uint64_t request, const void* body, size_t bytes);
  // Waits for the next frame that answers no request (kEvents).
  Status NextUnasked(const Patience& patience, Answer* answer);

 private:
  struct Pending {
    Answer answer;
    bool done = false;
    int wake_fd = -1;  // while its thread waits for another one to receive
  };
  Status WaitFor(Pending* pending, std::unique_lock<std::mutex>* lock, const Patience& patience);
  Status ReceiveSome(std::unique_lock<std::mutex>* lock, const Patience& patience);
  Status Feed(const char* data, ssize_t bytes, int error);
  void Dispatch(const FrameHeader& header, std::span<const uint8_t> payload);
  void WakeOne();

  const int fd_;
  std::mutex send_mutex_;
  std::mutex mutex_;                                   // guards all below
  std::map<uint64_t, Pending*> pending_;               // by request; 0: waits for an unasked frame
  std::map<uint64_t, std::optional<Answer>> started_;  // by request: of Start
  std::map<uint64_t, std::string> unasked_;            // by arrival
  FrameReader reader_{kAnswerBytesMax};
  uint64_t next_request_ = 1, next_unasked_ = 0;
  bool receiving_ = false;
  bool dead_ = false;
};

}  // namespace ray::plasma
