// Bytes in and out of one connection; stream.h says who gives them their meaning.
#include "object_manager/stream.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ray::objects {

namespace {
// Where bytes of a transfer that was let go are read to.
uint8_t nowhere[64 << 10];

channel::Handshake::Side SideOf(bool dialled) {
  return dialled ? channel::Handshake::Side::kDialled : channel::Handshake::Side::kAccepted;
}
}  // namespace

Stream::Stream(uint64_t id, int fd, const channel::Identity& self, const Tag* wanted, Handler* handler)
    : id_(id),
      fd_(fd),
      dialled_(wanted != nullptr),
      handler_(handler),
      handshake_(self, self.network_proof(), SideOf(dialled_), dialled_ ? wanted->bytes : nullptr) {
  uint8_t preamble[channel::kPreambleBytes];
  channel::WritePreamble(channel::Destination::kStore, nullptr, preamble);
  if (dialled_) first_.assign(reinterpret_cast<const char*>(preamble), sizeof preamble);
  if (!self.tls) return;
  Status status;
  tls_ = channel::Tls::Make(fd, dialled_, self.token, preamble, &status);
  if (!tls_) End(status.message());
}

Stream::~Stream() { close(fd_); }

bool Stream::End(const std::string& why, bool misbehaved) {
  if (!ended_) {
    ended_ = true;
    idle_ = true;
    misbehaved_ = misbehaved;
    why_ = why;
  }
  return false;
}

void Stream::Send(Peer type, uint64_t request, const void* body, size_t bytes) {
  if (ended_) return;
  if (out_sent_ == out_.size()) {
    out_.clear();
    out_sent_ = 0;
  }
  const FrameHeader header{static_cast<uint32_t>(bytes), static_cast<uint16_t>(type), 0, request};
  out_.append(reinterpret_cast<const char*>(&header), sizeof(header));
  if (bytes > 0) out_.append(static_cast<const char*>(body), bytes);
  if (out_.size() - out_sent_ > kOutBytesMax) {
    End("it does not read what it is told");
    return;
  }
  idle_ = false;
}

// ---- in

bool Stream::Readable() {
  would_block_ = false;
  size_t budget = kTurnBytes;
  // What TLS holds back makes no descriptor readable: it is taken even when the turn's share of the socket is spent.
  while (!ended_ && !would_block_ && (budget > 0 || (tls_ && tls_->hidden()))) {
    fetch_ = budget > 0 ? channel::Tls::kBatchBytes : 0;
    if (!handshake_.verified()) {
      if (!ReadGreeting()) return false;
    } else if (header_got_ < sizeof(header_)) {
      if (!ReadHeader()) return false;
    } else if (header_.type == static_cast<uint16_t>(Peer::kChunk)) {
      if (!ReadChunk(&budget)) return false;
    } else if (!ReadControl()) {
      return false;
    }
  }
  if (tls_ && (tls_->wants_write() || !proved_)) idle_ = false;  // the handshake's next step
  return !ended_;
}

ssize_t Stream::Recv(void* to, size_t bytes) { return tls_ ? tls_->Recv(to, bytes, fetch_) : recv(fd_, to, bytes, 0); }

// As Recv, and the front of the header behind the chunk with it: one system call a chunk less.
ssize_t Stream::RecvChunk(uint8_t* to, size_t bytes, FrameHeader* next) {
  if (tls_) {
    const ssize_t n = tls_->Recv(to, bytes, fetch_);
    if (n < static_cast<ssize_t>(bytes) || next == nullptr) return n;
    const ssize_t behind = tls_->Recv(next, sizeof(*next), 0);
    return n + std::max<ssize_t>(behind, 0);  // what is wrong shows again in the next read
  }
  std::array<iovec, 2> parts{{{to, bytes}, {next, sizeof(*next)}}};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = next != nullptr ? 2 : 1;
  return recvmsg(fd_, &message, 0);
}

bool Stream::Failed() {
  const bool tls = tls_ && errno == EPROTO;
  nobody_listens_ = !proved_ && errno == ECONNREFUSED;
  return End(tls ? tls_->why() : std::strerror(errno), tls);
}

// At most what the greeting still lacks is taken off the socket, so what follows it stays there for the frames.
bool Stream::ReadGreeting() {
  uint8_t byte[16];
  const ssize_t n = Recv(byte, sizeof(byte));
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return would_block_ = true;
  if (n < 0) return Failed();
  if (n == 0) return End("it closed the connection before it had proved itself (another token?)");
  const size_t used = handshake_.Receive(byte, static_cast<size_t>(n));
  if (handshake_.refused() != nullptr) {
    if (handshake_.refused() == channel::kPeerWithTls && !tls_) channel::TellOtherSetting(fd_);
    return End(handshake_.refused(), true);
  }
  idle_ = false;  // there may be an answer to send
  if (!handshake_.verified()) return true;
  // What follows the greeting in the same piece is the front of a header.
  header_got_ = static_cast<size_t>(n) - used;
  if (header_got_ > 0) std::memcpy(&header_, byte + used, header_got_);
  proved_ = true;
  handler_->Proved(*this);
  return header_got_ < sizeof(header_) || HeaderCame();
}

bool Stream::ReadHeader() {
  const ssize_t n = Recv(reinterpret_cast<uint8_t*>(&header_) + header_got_, sizeof(header_) - header_got_);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return would_block_ = true;
  if (n < 0) return Failed();
  if (n == 0) return End("it closed the connection");
  header_got_ += static_cast<size_t>(n);
  return header_got_ < sizeof(header_) || HeaderCame();
}

bool Stream::HeaderCame() {
  payload_got_ = 0;
  if (!HeaderAllowed(header_, !dialled_)) return End("it sent a frame that has no place here", true);
  if (header_.type == static_cast<uint16_t>(Peer::kChunk)) {
    uint64_t room = 0;
    handler_->ChunkRoom(*this, header_.request, &room);
    if (room != 0 && header_.payload_bytes > room) return End("it sent more than the object has", true);
    return true;
  }
  return header_.payload_bytes > 0 || ReadControl();
}

bool Stream::ReadControl() {
  if (payload_got_ < header_.payload_bytes) {
    const ssize_t n = Recv(control_ + payload_got_, header_.payload_bytes - payload_got_);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return would_block_ = true;
    if (n < 0) return Failed();
    if (n == 0) return End("it closed the connection");
    payload_got_ += static_cast<size_t>(n);
    if (payload_got_ < header_.payload_bytes) return true;
  }
  header_got_ = 0;
  const FrameHeader header = header_;
  if (!handler_->OnFrame(*this, header, {control_, header.payload_bytes})) {
    return End("it sent a frame whose payload does not fit its type", true);
  }
  return !ended_;
}

bool Stream::ReadChunk(size_t* budget) {
  const size_t left = header_.payload_bytes - payload_got_;
  uint64_t room = 0;
  uint8_t* to = handler_->ChunkRoom(*this, header_.request, &room);
  const bool wanted = to != nullptr && room != 0;
  const size_t take = wanted ? std::min<uint64_t>(left, room) : std::min(left, sizeof(nowhere));
  FrameHeader next{};
  const ssize_t n = RecvChunk(wanted ? to : nowhere, take, take == left ? &next : nullptr);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return would_block_ = true;
  if (n < 0) return Failed();
  if (n == 0) return End("it closed the connection in the middle of an object");
  const size_t got = std::min(static_cast<size_t>(n), take);
  const size_t behind = static_cast<size_t>(n) - got;
  const uint64_t transfer = header_.request;
  payload_got_ += got;
  *budget -= std::min(*budget, got);
  if (payload_got_ == header_.payload_bytes) {
    header_ = next;
    header_got_ = behind;
    payload_got_ = 0;
  }
  if (wanted) handler_->ChunkCame(*this, transfer, got);
  return behind < sizeof(next) || HeaderCame();
}

// ---- out

bool Stream::Writable() {
  size_t budget = kTurnBytes;
  while (!ended_ && budget > 0) {
    std::array<iovec, 2> parts{};
    size_t count = 0;
    const bool plain = first_sent_ < first_.size();
    if (tls_ && !plain && !tls_->done()) {
      if (!tls_->Drive()) return Failed();
      if (tls_->wants_write()) return true;
      if (!tls_->done()) return idle_ = true;  // until the peer has said more
    }
    if (plain) {
      parts[count++] = {first_.data() + first_sent_, first_.size() - first_sent_};
    } else if (handshake_.unsent_bytes() > 0) {
      parts[count++] = {const_cast<uint8_t*>(handshake_.unsent()), handshake_.unsent_bytes()};
    } else if (!handshake_.frames_may_follow()) {
      idle_ = true;  // until the peer has said more
      return true;
    } else if (chunk_left_ > 0 || chunk_header_left_ > 0) {
      if (chunk_header_left_ > 0) {
        const size_t sent = sizeof(chunk_header_) - chunk_header_left_;
        parts[count++] = {reinterpret_cast<uint8_t*>(&chunk_header_) + sent, chunk_header_left_};
      }
      parts[count++] = {const_cast<uint8_t*>(chunk_at_), chunk_left_};
    } else if (out_sent_ < out_.size()) {
      parts[count++] = {out_.data() + out_sent_, out_.size() - out_sent_};
    } else if (handler_->NextChunk(*this, &chunk_transfer_, &chunk_at_, &chunk_bytes_)) {
      chunk_left_ = chunk_bytes_;
      chunk_header_ = {chunk_bytes_, static_cast<uint16_t>(Peer::kChunk), 0, chunk_transfer_};
      chunk_header_left_ = sizeof(chunk_header_);
      continue;
    } else {
      idle_ = true;
      return true;
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t n = tls_ && !plain ? tls_->Send(parts.data(), count) : sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n < 0) return Failed();
    size_t sent = static_cast<size_t>(n);
    budget -= std::min(budget, sent);
    if (plain) {
      first_sent_ += sent;
    } else if (handshake_.unsent_bytes() > 0) {
      handshake_.Sent(sent);
    } else if (chunk_left_ > 0 || chunk_header_left_ > 0) {
      const size_t of_header = std::min(sent, chunk_header_left_);
      chunk_header_left_ -= of_header;
      sent -= of_header;
      chunk_at_ += sent;
      chunk_left_ -= static_cast<uint32_t>(sent);
      if (chunk_left_ == 0 && chunk_header_left_ == 0) {
        handler_->ChunkSent(*this, std::exchange(chunk_transfer_, 0), chunk_bytes_);
      }
    } else {
      out_sent_ += sent;
    }
  }
  return !ended_;
}

}  // namespace ray::objects
