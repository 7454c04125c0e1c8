// Passing a descriptor on; handoff.h.
#include "channel/handoff.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "channel/network_proof.h"
#include "channel/proof.h"
#include "channel/sockets.h"

namespace ray::channel {

Status HandOver(const std::string& unix_path, int fd, const Identity& self) {
  Status status;
  const int to = ConnectUnix(unix_path, &status);
  if (to < 0) return status;
  pid_t pid = 0;
  uid_t uid = 0;
  if (!PeerOfUnixSocket(to, &pid, &uid) || (uid != geteuid() && uid != 0)) {  // it would be shown the token
    close(to);
    return Status(StatusCode::kPermission, "won't talk to " + unix_path + ": it belongs to another user");
  }
  Identity messenger = self;
  messenger.role = kRoleHandoff;
  const Handshake hello(messenger, std::make_unique<TokenProof>(self.token), Handshake::Side::kDialled);
  iovec bytes{const_cast<uint8_t*>(hello.unsent()), hello.unsent_bytes()};
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = sizeof room;
  cmsghdr* control = CMSG_FIRSTHDR(&message);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(control), &fd, sizeof fd);
  ssize_t sent;
  do {
    sent = sendmsg(to, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  const int error = errno;
  // What was sent stays in the other side's queue, descriptor and all, when we hang up.
  close(to);
  if (sent == static_cast<ssize_t>(bytes.iov_len)) return Status::Ok();
  if (sent >= 0 || error == EAGAIN) {
    return Status(StatusCode::kTimedOut, "the socket " + unix_path + " is full: that process is stopped or far behind");
  }
  return Status::FromErrno("can't hand a connection over to " + unix_path, error);
}

void ProveOverNetwork(Identity* self) {
  std::array<uint8_t, kTokenBytes> token;
  std::memcpy(token.data(), self->token, kTokenBytes);
  self->network_proof = [token] { return std::make_unique<NetworkProof>(token.data()); };
}

}  // namespace ray::channel
