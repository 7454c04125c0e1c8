// The cold half of a connection: making it, moving bytes, growing buffers, dying. connection.h is the manual.
#include "channel/connection.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "channel/counters.h"
#include "channel/sockets.h"
#include "common/clock.h"

namespace ray::channel {
namespace {

constexpr size_t kNoFrame = SIZE_MAX;
constexpr int64_t kPauseNsMax = 120'000'000'000;  // TCP_RTO_MAX of Linux

const char* WhyOf(int error) {
  switch (error) {
    case EPIPE:
    case ECONNRESET:
      return "the peer is gone: it died, or closed the connection without reading all that was sent";
    case ECONNREFUSED:
      return "nobody listens at the peer's address";
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
      return "the peer's machine doesn't answer";
    case ENOMEM:
      return "out of memory for a large frame";
    default:
      return "the socket failed";
  }
}

bool WouldBlock(int error) {
  // ENOBUFS, ENOMEM: the kernel has no room for a message now. Nothing was sent, so trying again later is right.
  return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS || error == ENOMEM;
}

void Count(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

// --- making one

Connection::Connection(int fd) : last_frame_(kNoFrame), fd_(fd), owner_pid_(getpid()) {}

Connection::~Connection() {
  if (fd_ >= 0) close(fd_);
  if (passed_fd_ >= 0) close(passed_fd_);
  std::free(out_);
  std::free(in_);
}

std::unique_ptr<Connection> Connection::Dial(const std::string& unix_path, const Identity& self, Status* status) {
  const int fd = ConnectUnix(unix_path, status);
  if (fd < 0) return nullptr;
  std::unique_ptr<Connection> connection(new Connection(fd));
  if (!connection->Begin(self, Handshake::Side::kDialled, nullptr)) {
    *status = Status(StatusCode::kPermission, "won't talk to " + unix_path + ": " + connection->why_);
    return nullptr;
  }
  connection->Flush();  // the hello leaves at once, even if the caller only wants to listen
  return connection;
}

std::unique_ptr<Connection> Connection::DialTcp(const std::string& host, uint16_t port, Destination destination,
                                                const uint8_t* tag, const Identity& self, Status* status) {
  if (!self.network_proof) {
    *status =
        Status(StatusCode::kPermission, "won't connect to " + host + " port " + std::to_string(port) +
                                            ": no network_proof is configured, and the token must not travel in clear");
    return nullptr;
  }
  if (self.tls && OpenSsl::Load(status) == nullptr) return nullptr;
  const int fd = ConnectTcp(host, port, status);
  if (fd < 0) return nullptr;
  std::unique_ptr<Connection> connection(new Connection(fd));
  uint8_t preamble[kPreambleBytes];
  WritePreamble(destination, destination == Destination::kCore ? tag : nullptr, preamble);
  if (!connection->Begin(self, Handshake::Side::kDialled, preamble, tag)) {
    *status = Status(StatusCode::kPermission, "won't talk to " + host + ": " + connection->why_);
    return nullptr;
  }
  connection->preamble_.assign(reinterpret_cast<const char*>(preamble), sizeof preamble);
  connection->unheard_ = true;
  connection->Flush();
  return connection;
}

Connection::Unheard Connection::LookForSilence(int64_t now_ns, int64_t silence_ns) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  int unacknowledged = 0;
  if (fd_ < 0 || getsockopt(fd_, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0 ||
      ioctl(fd_, SIOCOUTQ, &unacknowledged) != 0)
    return Unheard::kNothing;
  if (!silence_is_ours_) {
    const int never = 0;
    silence_is_ours_ = setsockopt(fd_, IPPROTO_TCP, TCP_USER_TIMEOUT, &never, sizeof never) == 0;
  }
  if (unacknowledged == 0) {
    silent_since_ns_ = 0;
    return Unheard::kNothing;
  }
  // Full, and the last time it was asked it said so: then nothing is under way, and the next time may be minutes off.
  if (info.tcpi_unacked == 0 && info.tcpi_probes == 0) {
    silent_since_ns_ = 0;
    return Unheard::kWaits;
  }
  const int64_t heard_ns = now_ns - int64_t{info.tcpi_last_ack_recv} * 1'000'000;
  if (silent_since_ns_ == 0) silent_since_ns_ = now_ns;  // not before: the connection may have been idle
  silent_since_ns_ = std::max(silent_since_ns_, heard_ns);
  // The pauses between the kernel's attempts double. Of one that is answered each time less than one has passed since;
  // of one that is never answered it is up to two.
  int64_t pause_ns = int64_t{info.tcpi_rto} * 1'000;
  if (info.tcpi_unacked == 0) pause_ns <<= std::min<int>(info.tcpi_backoff, 10);  // of a full one; else it is in there
  pause_ns = std::min(pause_ns, kPauseNsMax) * 3 / 2;
  return now_ns - silent_since_ns_ >= std::max(silence_ns, pause_ns) ? Unheard::kSilent : Unheard::kWaits;
}

std::unique_ptr<Connection> Connection::Unmade() {
  std::unique_ptr<Connection> connection(new Connection(-1));
  connection->unheard_ = true;
  connection->ReadEnded(ENOTCONN, "the connection could not be begun");
  return connection;
}

void Connection::TakeUnheard(Connection* other) {
  assert(other->unheard_ && out_ == nullptr && "TakeUnheard: of one that was heard, or to one that is in use");
  std::swap(out_, other->out_);
  std::swap(out_head_, other->out_head_);
  std::swap(out_tail_, other->out_tail_);
  std::swap(out_end_, other->out_end_);
}

std::unique_ptr<Connection> Connection::Adopt(int fd, const Identity& self) {
  std::unique_ptr<Connection> connection(new Connection(fd));
  // Whom it must have been meant for, if TLS says so: those who hand it on (the gate) can't vouch for what they read.
  uint8_t preamble[kPreambleBytes];
  const bool core = self.role == kRoleDriver || self.role == kRoleWorker;
  WritePreamble(core ? Destination::kCore : Destination::kNode, core ? self.tag : nullptr, preamble);
  connection->Begin(self, Handshake::Side::kAccepted, preamble);
  return connection;
}

bool Connection::Begin(const Identity& self, Handshake::Side side, const uint8_t* preamble, const uint8_t* wanted) {
  const bool is_unix = IsUnixSocket(fd_);
  over_tcp_ = !is_unix;
  std::unique_ptr<Proof> proof;
  if (is_unix) {
    uid_t uid = 0;
    if (!PeerOfUnixSocket(fd_, &peer_pid_, &uid)) {
      Refuse("the kernel doesn't say whose process the peer is");
      return false;
    }
    // Root may: it could read the token anyway.
    if (uid != geteuid() && uid != 0) {
      Refuse("the peer belongs to another user");
      return false;
    }
    proof = std::make_unique<TokenProof>(self.token);
  } else {
    if (self.network_proof) proof = self.network_proof();
    if (!proof) {
      Refuse("a TCP connection without a network_proof configured: the token must not travel in clear");
      return false;
    }
    if (!proof->answers()) {
      Refuse("a TCP connection with a network_proof that shows the token itself: it must not travel in clear");
      return false;
    }
    if (self.tls) {
      Status status;
      tls_ = Tls::Make(fd_, side == Handshake::Side::kDialled, self.token, preamble, &status);
      if (!tls_) {
        Refuse("TLS is asked for (the setting tls), and this machine has no OpenSSL that can do it");
        return false;
      }
    }
  }
  TuneSocket(fd_, is_unix);
  handshake_ = std::make_unique<Handshake>(self, std::move(proof), side, wanted);
  hello_deadline_ns_ = NowNs() + kHelloDeadlineNs;
  return true;
}

// --- sending

bool Connection::MakeRoom(size_t bytes) {
  const size_t pending = out_tail_ - out_head_;
  if (bytes > FrameBytes(kFrameBytesMax) || pending + bytes > kPendingBytesMax) return false;
  // Moving costs no more than what has been sent since the last move, so it is amortised; else growing is.
  const bool move_suffices = pending + bytes <= out_end_ && pending <= out_head_;
  if (out_head_ > 0) {
    std::memmove(out_, out_ + out_head_, pending);
    out_head_ = 0;
    out_tail_ = pending;
  }
  if (move_suffices) return true;
  const size_t wanted = std::min(std::max({kBufferBytes, 2 * out_end_, pending + bytes}), kPendingBytesMax);
  void* grown = std::realloc(out_, wanted);  // large ones are remapped by the C library, not copied
  if (grown == nullptr) return false;
  out_ = static_cast<uint8_t*>(grown);
  out_end_ = wanted;
  return true;
}

void Connection::Trim(uint32_t payload_bytes) {
  assert(last_frame_ != kNoFrame && "Trim: no frame reserved since the last Flush");
  uint8_t* at = out_ + last_frame_;
  uint32_t reserved;
  std::memcpy(&reserved, at, sizeof reserved);
  assert(payload_bytes <= reserved && "Trim: longer than what was reserved");
  if (last_frame_ == kNoFrame || payload_bytes > reserved) std::abort();
  const size_t whole = FrameBytes(payload_bytes);
  std::memcpy(at, &payload_bytes, sizeof payload_bytes);
  std::memset(at + kFrameHeaderBytes + payload_bytes, 0, whole - kFrameHeaderBytes - payload_bytes);
  out_tail_ = last_frame_ + whole;
}

int Connection::Flush() {
  last_frame_ = kNoFrame;
  if (unheard_ && write_closed_) [[unlikely]]
    return -1;
  if (handshake_) [[unlikely]] {
    const int greeting = FlushGreeting();
    if (greeting != 0 || handshake_held_) return greeting;
  }
  const size_t pending = out_tail_ - out_head_;
  if (pending > 0 && !write_closed_) {
    size_t sent = 0;
    if (!Send(out_ + out_head_, pending, &sent)) return -1;
    out_head_ += sent;
    if (sent < pending) return 1;
  }
  out_head_ = out_tail_ = 0;
  if (out_end_ > kBufferKeptBytes) {
    std::free(out_);
    out_ = nullptr;
    out_end_ = 0;
  }
  return write_closed_ ? -1 : 0;
}

// 0: nothing of the greeting is left to send now.
int Connection::FlushGreeting() {
  if (!preamble_.empty() && !write_closed_) {
    size_t sent = 0;
    if (!SendPlain(reinterpret_cast<const uint8_t*>(preamble_.data()), preamble_.size(), &sent)) return -1;
    preamble_.erase(0, sent);
    if (!preamble_.empty()) return 1;
  }
  if (tls_ && !write_closed_ && (!tls_->done() || tls_->wants_write())) {
    if (!tls_->Drive()) {
      WriteEnded(errno);
      return -1;
    }
    full_ = tls_->wants_write();
    handshake_held_ = true;
    if (full_) return 1;
    if (!tls_->done()) return 0;
  }
  const size_t unsent = handshake_->unsent_bytes();
  if (unsent > 0 && !write_closed_) {
    size_t sent = 0;
    if (!Send(handshake_->unsent(), unsent, &sent)) return -1;
    handshake_->Sent(sent);
    if (sent < unsent) return 1;
  }
  handshake_held_ = !handshake_->frames_may_follow() && !write_closed_;
  if (handshake_->verified()) handshake_.reset();
  return 0;
}

// One send(). False: the connection is dead for sending.
bool Connection::Send(const uint8_t* data, size_t bytes, size_t* sent) {
  if (!tls_) return SendPlain(data, bytes, sent);
  full_ = false;
  while (*sent < bytes) {
    const ssize_t n = tls_->Send(data + *sent, bytes - *sent);
    if (n >= 0) {
      *sent += static_cast<size_t>(n);
      continue;
    }
    if (WouldBlock(errno)) {
      full_ = true;
      return true;
    }
    WriteEnded(errno);
    return false;
  }
  return true;
}

bool Connection::SendPlain(const uint8_t* data, size_t bytes, size_t* sent) {
  for (;;) {
    const ssize_t n = send(fd_, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      *sent = static_cast<size_t>(n);
      full_ = *sent < bytes;
      return true;
    }
    if (errno == EINTR) continue;
    if (WouldBlock(errno)) {
      full_ = true;
      return true;
    }
    WriteEnded(errno);
    return false;
  }
}

// --- receiving

int Connection::Fill() {
  if (read_closed_) return -1;
  if (tls_) [[unlikely]]
    return FillTls();
  if (!MakeRoomToRead(1)) {
    if (read_closed_) return -1;
    return static_cast<int>(
        std::min<size_t>(in_tail_ - in_head_, INT32_MAX));  // whole frames wait, and the buffer is full
  }
  ssize_t n;
  do {
    n = verified_ ? recv(fd_, in_ + in_tail_, in_end_ - in_tail_, MSG_DONTWAIT) : ReceiveGreeting();
  } while (n < 0 && errno == EINTR);
  if (n > 0) {
    in_tail_ += static_cast<size_t>(n);
    if (!verified_ && !Greet()) return -1;
    return static_cast<int>(n);
  }
  if (n < 0 && WouldBlock(errno)) return 0;
  if (n < 0) {
    ReadEnded(errno, WhyOf(errno));
    return -1;
  }
  return Ended();
}

// The same through TLS. Whatever can be handed out is, of what was taken off the socket: the owner learns of more by
// the socket alone.
int Connection::FillTls() {
  constexpr size_t kLeast = 2 * Tls::kRecordBytesMax;
  if (!MakeRoomToRead(kLeast)) {
    if (read_closed_) return -1;
    return static_cast<int>(std::min<size_t>(in_tail_ - in_head_, INT32_MAX));
  }
  const size_t room = in_end_ - in_tail_;
  const bool was_done = tls_->done();
  const ssize_t n = tls_->Recv(in_ + in_tail_, room, room - Tls::kRecordBytesMax);
  const int error = errno;
  if (n > 0) {
    in_tail_ += static_cast<size_t>(n);
    if (!verified_ && !Greet()) return -1;
    return static_cast<int>(n);
  }
  if (n < 0 && WouldBlock(error)) {
    if (!was_done || tls_->wants_write()) Flush();  // our next step, or the hello now that it may go
    return 0;
  }
  if (n == 0) return Ended();
  if (error == EPROTO) {
    verified_ ? CutOff(tls_->why()) : Refuse(tls_->why());
  } else {
    ReadEnded(error, WhyOf(error));
  }
  return -1;
}

// The peer's end came.
int Connection::Ended() {
  if (!verified_ && error_ != 0) {
    ReadEnded(error_, WhyOf(error_));  // the kernel gives the reason once, and Flush was told
  } else if (tls_ && !tls_->done()) {
    ReadEnded(ECONNRESET, "the peer closed the connection before TLS was established (it has none, or died)");
  } else if (!verified_) {
    ReadEnded(ECONNRESET, "the peer closed the connection before its hello (it refused ours, or died)");
  } else if (in_tail_ > in_head_) {
    ReadEnded(ECONNRESET, "the peer is gone in the middle of a frame");
  } else {
    ReadEnded(0, "the peer closed the connection");
  }
  return -1;
}

// Makes at least that much room behind in_tail_, with what waits at the front. False: the buffer is full of frames
// that nobody has taken, or memory is out (then read_closed_ is set).
bool Connection::MakeRoomToRead(size_t least) {
  const size_t waiting = in_tail_ - in_head_;
  if (in_head_ > 0 && waiting > 0) std::memmove(in_, in_ + in_head_, waiting);
  in_head_ = 0;
  in_tail_ = waiting;
  size_t wanted = in_end_;
  if (waiting == 0 && (in_end_ == 0 || in_end_ > kBufferKeptBytes)) {
    std::free(in_);
    in_ = nullptr;
    in_end_ = 0;
    wanted = kBufferBytes;
  } else if (in_end_ - waiting < least) {
    Frame announced;
    const bool valid = LoadHeader(in_, &announced);
    const size_t whole = FrameBytes(announced.size);
    if (!valid || whole <= waiting) return false;
    // Doubling as the bytes come: whoever announces a large frame and doesn't send it costs us twice what it did send.
    wanted = std::min(2 * in_end_, whole + kBufferBytes);
  }
  if (wanted == in_end_) return true;
  void* grown = std::realloc(in_, wanted);
  if (grown == nullptr) {
    ReadEnded(ENOMEM, WhyOf(ENOMEM));
    return false;
  }
  in_ = static_cast<uint8_t*>(grown);
  in_end_ = wanted;
  return true;
}

// One recv that takes a passed descriptor too. Only before the peer has proved itself: later nobody passes any, and the
// kernel closes those that come with a plain recv.
ssize_t Connection::ReceiveGreeting() {
  iovec bytes{in_ + in_tail_, in_end_ - in_tail_};
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = sizeof room;
  const ssize_t n = recvmsg(fd_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return n;
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    // There may be two: the room is rounded up. The last is kept, and the hello is judged with it.
    for (size_t at = 0; at + sizeof(int) <= control->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      if (passed_fd_ >= 0) close(passed_fd_);
      std::memcpy(&passed_fd_, CMSG_DATA(control) + at, sizeof passed_fd_);
    }
  }
  return n;
}

// A hello that is right by itself: does it fit how it came? A descriptor comes with kRoleHandoff and with nothing else;
// who passes one dialled us over a Unix socket, or there would be none.
bool Connection::JudgeGreeting() {
  const bool handoff = handshake_->peer_role() == kRoleHandoff;
  if (handoff == (passed_fd_ >= 0)) return true;
  Refuse(handoff ? "the peer's hello was to bring a connection, and there was none with it"
                 : "a descriptor came with the peer's hello, which has no use for one");
  return false;
}

// Gives the handshake what came. False: it refused, and the connection is dead.
bool Connection::Greet() {
  in_head_ += handshake_->Receive(in_ + in_head_, in_tail_ - in_head_);
  if (handshake_->refused() != nullptr) {
    if (handshake_->refused() == kPeerWithTls && !tls_) TellOtherSetting(fd_);
    if (handshake_->refused() == kNoSuchProcess) {
      CutOff(kNoSuchProcess);
    } else {
      Refuse(handshake_->refused());
    }
    return false;
  }
  if (handshake_->verified()) {
    if (!JudgeGreeting()) return false;
    verified_ = true;
    unheard_ = false;
    hello_deadline_ns_ = 0;
    peer_tag_ = handshake_->peer_tag();
    peer_role_ = handshake_->peer_role();
    if (in_head_ % kFrameAlign != 0) {  // the greeting came in odd pieces; from here on the head moves by whole frames
      std::memmove(in_, in_ + in_head_, in_tail_ - in_head_);
      in_tail_ -= in_head_;
      in_head_ = 0;
    }
  }
  Flush();  // our hello or answer, if it was waiting for this; a failure shows in the next Fill
  return true;
}

bool Connection::Malformed() {
  Count(counters().frames_malformed);
  CutOff("the peer sent a malformed frame header");
  return false;
}

// --- dying

void Connection::Refuse(const char* why) {
  Count(counters().hellos_refused);
  CutOff(why);
}

// The peer broke the protocol: nothing more from it is looked at. Shutting down tells it so, and makes an epoll report
// the socket once more, so that an owner which had taken all events comes back for the -1.
void Connection::CutOff(const char* why) {
  Shutdown();
  in_head_ = in_tail_ = 0;
  ReadEnded(EPROTO, why);
}

void Connection::ReadEnded(int error, const char* why) {
  read_closed_ = true;
  WriteEnded(error);
  error_ = error;
  why_ = why;
  hello_deadline_ns_ = 0;
}

void Connection::WriteEnded(int error) {
  if (!write_closed_) {
    error_ = error;
    why_ = WhyOf(error);
  }
  write_closed_ = true;
  full_ = false;
  if (!unheard_) out_head_ = out_tail_ = 0;
}

// Reaches the peer even if a forked child holds a copy of the descriptor; but in such a child it would cut off its
// parent.
void Connection::Shutdown() const {
  if (getpid() == owner_pid_) (void)shutdown(fd_, SHUT_RDWR);
}

void Connection::Close(const char* why) {
  if (fd_ < 0) return;
  // shutdown reaches the peer even if a forked child holds a copy of the descriptor; but in such a child it would cut
  // off its parent.
  if (getpid() == owner_pid_) (void)shutdown(fd_, SHUT_RDWR);
  close(std::exchange(fd_, -1));
  in_head_ = in_tail_ = 0;  // the memory stays: a handler may be closing the connection whose frame it is reading
  if (!read_closed_) ReadEnded(0, why);
}

bool Connection::CloseIfLate(int64_t now_ns) {
  if (hello_deadline_ns_ == 0 || now_ns < hello_deadline_ns_) return false;
  Count(counters().hellos_late);
  Close("the peer didn't say hello in time");
  error_ = ETIMEDOUT;
  return true;
}

}  // namespace ray::channel
