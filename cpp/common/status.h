// The outcome of something that a peer, the kernel or a full store may refuse. Any process, any thread.
//
// A Status is a value: kOk, or a code that the caller may act upon with a sentence for a person. Only our own bug is a
// failed check; everything the world can do to us comes back as a Status. OK costs no allocation.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace ray {

enum class StatusCode : uint8_t {
  kOk = 0,
  kInvalidArgument,  // the caller asked for something that can never work
  kNotFound,         // no such object, file or peer
  kAlreadyExists,    // an object of that id is there already
  kOutOfMemory,      // no room now; may be there later
  kTooLarge,         // no room ever: bigger than the whole store
  kDisconnected,     // the peer is gone
  kTimedOut,         // the deadline given by the caller has passed
  kProtocol,         // the peer sent what the protocol forbids
  kPermission,       // the kernel or the peer refused for lack of rights
  kInterrupted,      // the caller asked to give up while waiting
  kOutOfDisk,        // no room now, nor on the disk that would make some
  kSystem,           // a system call failed for another reason; the text has errno's
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return Status(); }
  // "<what>: <text of errno>"; kPermission for EACCES and EPERM, kNotFound for ENOENT, else kSystem.
  static Status FromErrno(const std::string& what, int error);

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace ray
