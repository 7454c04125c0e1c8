// Frames on the local socket, the asking side; line.h.
#include "object_manager/line.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/limits.h"

namespace ray::objects {

namespace {
Status Gone() { return {StatusCode::kDisconnected, "the object manager, and the object store with it, has ended"}; }
}  // namespace

Status TransferLine::Connect(const std::string& socket_path, std::unique_ptr<TransferLine>* out) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.empty() || socket_path.size() >= sizeof(address.sun_path)) {
    return {StatusCode::kInvalidArgument,
            "the object manager's socket path '" + socket_path + "' must have 1 to 107 bytes"};
  }
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::FromErrno("socket", errno);
  std::unique_ptr<TransferLine> line(new TransferLine(fd));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    // Its socket outlives a store that was killed, until the next one replaces it.
    if (errno == ECONNREFUSED) {
      return {StatusCode::kDisconnected, "the object manager at " + socket_path + " has died with its store"};
    }
    return Status::FromErrno("connecting to the object manager at " + socket_path, errno);
  }
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || peer.uid != geteuid()) {
    return {StatusCode::kPermission, "the object manager at " + socket_path + " is another user's"};
  }
  *out = std::move(line);
  return Status::Ok();
}

TransferLine::~TransferLine() { close(fd_); }

Status TransferLine::Send(Line type, uint64_t request, const std::string& payload, int passed_fd) {
  const FrameHeader header{static_cast<uint32_t>(payload.size()), static_cast<uint16_t>(type), 0, request};
  std::string frame(reinterpret_cast<const char*>(&header), sizeof(header));
  frame += payload;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  for (size_t at = 0; at < frame.size();) {
    iovec part{frame.data() + at, frame.size() - at};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (passed_fd >= 0 && at == 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(c), &passed_fd, sizeof(int));
    }
    const ssize_t n = sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Gone();
    at += static_cast<size_t>(n);
  }
  return Status::Ok();
}

Status TransferLine::Ask(Line type, const std::string& payload, uint64_t* request) {
  const uint64_t mine = next_request_++;
  if (request != nullptr) *request = mine;
  return Send(type, mine, payload, -1);
}

Status TransferLine::LetGo(uint64_t request) { return Send(Line::kLetGo, request, "", -1); }

Status TransferLine::Adopt(int fd) { return Send(Line::kAdopt, next_request_++, "", fd); }

Status TransferLine::Receive() {
  char buffer[kLineBytesMax];
  const ssize_t n = recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return Status::Ok();
  if (n <= 0) return Gone();
  reader_.Feed(buffer, static_cast<size_t>(n));
  return Status::Ok();
}

bool TransferLine::Next(LineEvent* event) {
  FrameHeader header;
  std::span<const uint8_t> payload;
  if (!reader_.Next(&header, &payload)) return false;
  event->type = static_cast<Line>(header.type);
  event->request = header.request;
  event->payload.assign(reinterpret_cast<const char*>(payload.data()), payload.size());
  return true;
}

}  // namespace ray::objects
