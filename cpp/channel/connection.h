// One end of a stream of frames to another process. LIBRARY, in every process that talks to another.
//
// Owned by one event loop; not thread-safe: callers hold one lock around everything (in Python processes the GIL).
// Nothing here waits: sending appends to a buffer (Reserve) and one send() per batch moves it (Flush); receiving takes
// what is there (Fill) and cuts it into frames in place (Next). Memory is bounded by what the owner lets pile up
// (pending_bytes) and by the largest frame that the peer really sends.
//
//   send:     uint8_t* p = c->Reserve(type, flags, n); fill p[0, n); c->Flush();        // many Reserves, one Flush
//   receive:  while ((n = c->Fill()) > 0) while (c->Next(&frame)) use(frame);           // n < 0: gone, see
//   why_closed()
//
// The other process's death is seen by Fill (-1) after everything that it managed to send has been handed out, and by
// Flush
// (-1) at once; after that, go on calling Fill until it says -1 too, to hear what the peer still said.
// A peer that breaks the protocol is cut off: its frames up to the bad one are handed out, nothing after.
#pragma once

#include <sys/types.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "channel/frame.h"
#include "channel/handshake.h"
#include "channel/limits.h"
#include "channel/network_proof.h"
#include "channel/tls.h"
#include "common/status.h"

namespace ray::channel {

class Connection {
 public:
  // Connects to a listening Unix socket and queues the hello; frames may be reserved at once and travel right behind
  // it. Null and a Status: kNotFound (no such path), kDisconnected (nobody listens there any more), kTimedOut (its
  // accept queue stayed full for kDialBacklogWaitMs; the only wait in this class), kPermission (the listener is another
  // user's).
  static std::unique_ptr<Connection> Dial(const std::string& unix_path, const Identity& self, Status* status);
  // The same over TCP, to the gate of a node; host is a numeric address, since names may take seconds to resolve. The
  // preamble, which says for whom it is, goes first. tag: 16 bytes, whose the peer must be; null, not for a core:
  // whoever has the token.
  // Returns while the connection is still being made: a refusal shows in Fill or Flush, an address that doesn't answer
  // at hello_deadline_ns(). kPermission without self.network_proof; kNotFound with self.tls and no OpenSSL.
  static std::unique_ptr<Connection> DialTcp(const std::string& host, uint16_t port, Destination destination,
                                             const uint8_t* tag, const Identity& self, Status* status);
  // One that could not even be begun: dead from the start, and like one that DialTcp has made and that ended unheard it
  // keeps what is reserved on it for TakeUnheard.
  static std::unique_ptr<Connection> Unmade();
  // Takes over an accepted socket of either kind (of a TCP one the preamble has been read). Never null: a socket that
  // can't be used (another user's process, TCP without a network_proof) comes back closed, and why_closed() says so.
  // With self.tls a TCP connection must have been meant for this process: for the node's if self.role is a node's, else
  // for the core self.tag.
  // Says nothing to the peer before the peer's hello.
  static std::unique_ptr<Connection> Adopt(int fd, const Identity& self);

  // Closes the descriptor; no farewell, so that a forked child may destroy its copy without hurting the parent's.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Appends a frame and returns where its payload goes: payload_bytes writable bytes, 8-byte aligned, uninitialised, to
  // be filled before the next call of Reserve or Flush. No system call. Null only if payload_bytes > kFrameBytesMax, if
  // kPendingBytesMax would be passed, or if memory is out. On a dead connection it works, and Flush drops it.
  uint8_t* Reserve(uint8_t type, uint8_t flags, uint32_t payload_bytes) {
    const size_t whole = FrameBytes(payload_bytes);
    if (out_end_ - out_tail_ < whole && !MakeRoom(whole)) [[unlikely]]
      return nullptr;
    if (payload_bytes > kFrameBytesMax) [[unlikely]]
      return nullptr;
    uint8_t* at = out_ + out_tail_;
    std::memset(at + whole - kFrameAlign, 0, kFrameAlign);  // the padding; before the header, which it may overlap
    StoreHeader(at, type, flags, payload_bytes);
    last_frame_ = out_tail_;
    out_tail_ += whole;
    return at + kFrameHeaderBytes;
  }

  // Shortens the frame reserved last (and not flushed since) to payload_bytes <= what was reserved.
  void Trim(uint32_t payload_bytes);

  // Gives all unsent bytes to the kernel with one send(). 0: done, or nothing may go out before the peer's hello came
  // (see Fill). 1: the socket is full; call again when it is writable. -1: dead, unsent bytes dropped.
  int Flush();

  size_t pending_bytes() const { return out_tail_ - out_head_; }  // of frames reserved and not sent yet

  // Whether the last Flush returned 1 and nothing has been sent since: the caller waits for the socket to be writable.
  bool wants_write() const { return full_; }

  // One recv(). > 0: so many bytes came (or: whole frames were waiting and the buffer was full; take them with Next).
  // 0: nothing there. -1: the peer closed or broke the protocol; frames that came before are still there for Next.
  // The Fill that finds the peer's hello right also flushes what waited for that. If pending_bytes() > 0 after a Fill,
  // call Flush and go by what it says: the socket may have been too full.
  int Fill();

  // The next whole frame. False: none (more), or the next one is malformed: then alive() turns false and Fill says -1.
  // Never touches the socket.
  bool Next(Frame* out) {
    const size_t waiting = in_tail_ - in_head_;
    if (waiting < kFrameHeaderBytes || !verified_) return false;
    if (!LoadHeader(in_ + in_head_, out)) [[unlikely]]
      return Malformed();
    const size_t whole = FrameBytes(out->size);
    if (waiting < whole) return false;
    in_head_ += whole;
    return true;
  }

  // Takes the frames that were reserved on a connection which DialTcp has made and which ended before the peer had
  // greeted: nobody has heard a byte of them. This one must be fresh. Nothing else of `other` is of use afterwards.
  void TakeUnheard(Connection* other);
  // Of one that DialTcp has made: the process that it was for is known to be gone. Its node has said so (kGoneMagic),
  // or that node's machine that nobody listens there any more, which a node does as long as it lives.
  bool no_such_process() const { return why_ == kNoSuchProcess || error_ == ECONNREFUSED; }

  // Ends the connection from our side: unsent bytes are dropped, the peer sees the end at once (even if a forked child
  // still holds the descriptor), frames received are dropped. why must be a literal. Closing twice is one close.
  void Close(const char* why);

  // Over TCP: what has become of the bytes that the kernel has taken and the peer's kernel has not acknowledged.
  enum class Unheard { kNothing, kWaits, kSilent };
  // kSilent: for kSilenceNs, or for as long as the kernel waits before it tries once more, nothing at all has come from
  // the peer's machine. Called now and then, every few seconds while it says kWaits; the first call takes the bound
  // (TCP_USER_TIMEOUT) off that the kernel has for this, since it counts a process that takes nothing for as long,
  // whose machine says so each time it is asked, as a silent one. Over a Unix socket always kNothing.
  Unheard LookForSilence(int64_t now_ns, int64_t silence_ns = kSilenceNs);

  // Until the peer's hello has been accepted: the moment (CLOCK_MONOTONIC) at which the owner is to call CloseIfLate.
  // 0 once open or closed.
  int64_t hello_deadline_ns() const { return hello_deadline_ns_; }
  bool CloseIfLate(int64_t now_ns);  // true: it was late, and is closed

  int fd() const { return fd_; }                               // -1 once closed
  bool open() const { return verified_ && !read_closed_; }     // the peer proved itself and isn't known to be gone
  bool greeted() const { return verified_; }                   // the peer proved itself at some time
  bool alive() const { return !read_closed_; }                 // nothing is known against it yet
  const uint8_t* peer_tag() const { return peer_tag_.bytes; }  // 16 bytes; zeros before its hello was accepted
  uint8_t peer_role() const { return peer_role_; }
  bool over_tcp() const { return over_tcp_; }
  pid_t peer_pid() const { return peer_pid_; }  // of the process that dialled or called listen; 0 over TCP

  // The descriptor that came with a hello of kRoleHandoff; the caller's from now on. -1: none, or taken already. A
  // connection of that role carries nothing else: its owner takes what it brought and closes it.
  int TakePassed() { return std::exchange(passed_fd_, -1); }

  size_t buffer_bytes() const { return out_end_ + in_end_; }  // memory held, used or not

  int error() const { return error_; }  // errno, EPROTO for a broken protocol; 0 while alive or closed in good order
  const char* why_closed() const { return why_; }  // a literal, "" while alive

 private:
  explicit Connection(int fd);

  bool Begin(const Identity& self, Handshake::Side side, const uint8_t* preamble, const uint8_t* wanted = nullptr);
  bool MakeRoom(size_t bytes);
  bool MakeRoomToRead(size_t least);
  int FlushGreeting();
  ssize_t ReceiveGreeting();
  bool JudgeGreeting();
  bool Send(const uint8_t* data, size_t bytes, size_t* sent);
  bool SendPlain(const uint8_t* data, size_t bytes, size_t* sent);
  int FillTls();
  int Ended();
  bool Greet();
  bool Malformed();
  void Refuse(const char* why);
  void CutOff(const char* why);
  void Shutdown() const;
  void ReadEnded(int error, const char* why);
  void WriteEnded(int error);

  // The hot fields share two cache lines.
  uint8_t* out_ = nullptr;  // frames: [out_head_, out_tail_) of out_end_ bytes
  size_t out_head_ = 0;
  size_t out_tail_ = 0;
  size_t out_end_ = 0;
  size_t last_frame_;      // offset of the frame reserved last, or kNoFrame
  uint8_t* in_ = nullptr;  // received: [in_head_, in_tail_) of in_end_ bytes; in_head_ is a multiple of 8
  size_t in_head_ = 0;
  size_t in_tail_ = 0;
  size_t in_end_ = 0;
  int fd_;
  bool verified_ = false;
  bool read_closed_ = false;     // Fill says -1
  bool write_closed_ = false;    // Flush says -1
  bool full_ = false;            // the socket took only part of the last send
  bool handshake_held_ = false;  // frames wait in out_ until the peer has proved itself
  bool over_tcp_ = false;
  bool unheard_ = false;                  // dialled over TCP and not greeted: no frame has left, nor is one dropped
  std::unique_ptr<Handshake> handshake_;  // until verified and its last byte sent
  std::string preamble_;                  // what of it is still to be sent, before the hello
  std::unique_ptr<Tls> tls_;              // between the socket and everything but the preamble; null without TLS
  int passed_fd_ = -1;                    // came with the hello

  Tag peer_tag_{};
  uint8_t peer_role_ = 0;
  pid_t peer_pid_ = 0;
  pid_t owner_pid_;  // who made it: a forked child's Close must not shut down the parent's socket
  int error_ = 0;
  const char* why_ = "";
  int64_t hello_deadline_ns_ = 0;
  int64_t silent_since_ns_ = 0;   // LookForSilence: nothing has come since, and something waits; 0: nothing waits
  bool silence_is_ours_ = false;  // the kernel's own bound is off
};

}  // namespace ray::channel
