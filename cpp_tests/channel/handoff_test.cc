// A TCP connection accepted by one process goes on in another: passed with a hello, adopted, and then a usual
// connection.
#include "channel/handoff.h"

#include <sys/uio.h>

#include "channel/counters.h"
#include "channel/fixture.h"
#include "channel/network_proof.h"
#include "testing.h"

namespace ray::channel {
namespace {

Identity Proving(char tag, uint8_t role, char token = 'T') {
  Identity identity = MakeIdentity(tag, role, token);
  ProveOverNetwork(&identity);
  return identity;
}

size_t OpenDescriptors() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

// The hello of a peer that passes `count` copies of a descriptor.
void SendHelloWith(int to, const Identity& self, int fd, size_t count) {
  std::string hello = HelloBytes(self);
  iovec bytes{hello.data(), hello.size()};
  alignas(cmsghdr) char room[CMSG_SPACE(8 * sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = CMSG_SPACE(count * sizeof fd);
  cmsghdr* control = CMSG_FIRSTHDR(&message);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(count * sizeof fd);
  for (size_t i = 0; i < count; ++i) std::memcpy(CMSG_DATA(control) + i * sizeof fd, &fd, sizeof fd);
  ASSERT_EQ(sendmsg(to, &message, 0), static_cast<ssize_t>(hello.size()));
}

std::string ReadPreamble(int fd) {
  std::string out(kPreambleBytes, '\0');
  size_t at = 0;
  while (at < out.size() && Ready(fd, POLLIN)) {
    const ssize_t n = recv(fd, out.data() + at, out.size() - at, 0);
    if (n <= 0) break;
    at += static_cast<size_t>(n);
  }
  return out;
}

}  // namespace

TEST(Handoff, AConnectionOverTcpReachesTheProcessThatItIsFor) {
  Status status;
  Folder folder;
  auto gate = Listener::ListenTcp("127.0.0.1", 0, 16, Proving('N', 2), &status);
  ASSERT_TRUE(gate != nullptr);
  auto core = Listener::Listen(folder / "core", 16, &status);
  const Identity caller = Proving('D', 1), callee = Proving('C', 1);
  auto dialled = Connection::DialTcp("127.0.0.1", gate->port(), Destination::kCore, callee.tag, caller, &status);
  ASSERT_TRUE(dialled != nullptr);
  ASSERT_TRUE(Send(dialled.get(), 20, 1, "a call"));
  ASSERT_GE(dialled->Flush(), 0);
  ASSERT_TRUE(Ready(gate->fd(), POLLIN));
  const int fd = gate->Accept();
  uint8_t expected[kPreambleBytes];
  WritePreamble(Destination::kCore, callee.tag, expected);
  EXPECT_EQ(ReadPreamble(fd), std::string(reinterpret_cast<const char*>(expected), sizeof expected));

  ASSERT_TRUE(HandOver(folder / "core", fd, Proving('N', 2)).ok());
  close(fd);
  auto messenger = Connection::Adopt(core->Accept(), Proving('C', 1));
  EXPECT_TRUE(Receive(messenger.get()).empty());
  EXPECT_TRUE(messenger->greeted());
  EXPECT_EQ(int{messenger->peer_role()}, int{kRoleHandoff});
  EXPECT_EQ(messenger->peer_pid(), getpid());
  auto accepted = Connection::Adopt(messenger->TakePassed(), Proving('C', 1));
  EXPECT_EQ(messenger->TakePassed(), -1);
  while (!accepted->greeted() && accepted->alive()) {
    if (Ready(accepted->fd(), POLLIN, 20)) accepted->Fill();
    if (Ready(dialled->fd(), POLLIN, 20)) dialled->Fill();
    dialled->Flush();
  }
  EXPECT_EQ(ReceiveOne(accepted.get()), std::string("a call"));
  ASSERT_TRUE(Send(accepted.get(), 21, 0, "its result"));
  accepted->Flush();
  EXPECT_EQ(ReceiveOne(dialled.get()), std::string("its result"));
  EXPECT_EQ(dialled->peer_tag()[0], uint8_t{'C'});
}

TEST(Handoff, WithoutADescriptorIsRefusedAndCounted) {
  Pair pair(false);
  const uint64_t before = counters().hellos_refused.load();
  Raw raw(pair.folder / "s");
  auto accepted = Connection::Adopt(pair.listener->Accept(), MakeIdentity('A', 1));
  raw.Write(HelloBytes(MakeIdentity('D', kRoleHandoff)));
  EXPECT_EQ(accepted->Fill(), -1);
  EXPECT_FALSE(accepted->greeted());
  EXPECT_EQ(counters().hellos_refused.load(), before + 1);
}

TEST(Handoff, ADescriptorThatNobodyHasUseForIsRefusedAndClosed) {
  Pair pair(false);
  const size_t before = OpenDescriptors();
  for (const auto& [role, token, count] :
       {std::tuple{uint8_t{0}, 'T', 1}, {kRoleHandoff, 'x', 1}, {uint8_t{0}, 'T', 7}}) {
    Raw raw(pair.folder / "s");
    auto accepted = Connection::Adopt(pair.listener->Accept(), MakeIdentity('A', 1));
    SendHelloWith(raw.fd(), MakeIdentity('D', role, token), raw.fd(), static_cast<size_t>(count));
    EXPECT_EQ(accepted->Fill(), -1);
    EXPECT_FALSE(accepted->greeted());
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(Handoff, OfSeveralDescriptorsOneIsKeptAndNoneIsLeftOpen) {
  Pair pair(false);
  const size_t before = OpenDescriptors();
  {
    Raw raw(pair.folder / "s");
    auto accepted = Connection::Adopt(pair.listener->Accept(), MakeIdentity('A', 1));
    SendHelloWith(raw.fd(), MakeIdentity('D', kRoleHandoff), raw.fd(), 7);
    EXPECT_GT(accepted->Fill(), 0);
    EXPECT_TRUE(accepted->greeted());
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(Handoff, SaysWhoIsNotThere) {
  Folder folder;
  EXPECT_TRUE(HandOver(folder / "nobody", 0, MakeIdentity('N', 2)).code() == StatusCode::kNotFound);
}

}  // namespace ray::channel
