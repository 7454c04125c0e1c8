// The same Connection over TCP (loopback), with a stand-in for the real proof.
#include <netinet/in.h>

#include "channel/counters.h"
#include "channel/fixture.h"
#include "channel/toy_proof.h"
#include "testing.h"

namespace ray::channel {
namespace {

std::unique_ptr<Listener> ListenSomewhere(Status* status) {
  return Listener::ListenTcp("127.0.0.1", 0, 16, NetworkIdentity('A'), status);
}

// What a gate does: reads the preamble, and hands the rest on.
int AcceptBehindGate(Listener* listener) {
  const int fd = listener->Accept();
  std::string preamble;
  while (preamble.size() < kPreambleBytes && Ready(fd, POLLIN)) {
    char piece[kPreambleBytes];
    const ssize_t n = recv(fd, piece, kPreambleBytes - preamble.size(), MSG_DONTWAIT);
    if (n <= 0) break;
    preamble.append(piece, static_cast<size_t>(n));
  }
  EXPECT_EQ(preamble.size(), kPreambleBytes);
  return fd;
}

}  // namespace

TEST(Tcp, CarriesFramesQueuedBeforeAndAfterTheHellos) {
  Status status;
  auto listener = ListenSomewhere(&status);
  ASSERT_TRUE(listener != nullptr);
  auto dialled =
      Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr, NetworkIdentity('D'), &status);
  ASSERT_TRUE(dialled != nullptr);
  ASSERT_TRUE(Send(dialled.get(), 20, 1, "queued early"));
  ASSERT_GE(dialled->Flush(), 0);
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  auto accepted = Connection::Adopt(AcceptBehindGate(listener.get()), NetworkIdentity('A'));
  ASSERT_TRUE(Ready(accepted->fd(), POLLIN));
  EXPECT_GT(accepted->Fill(), 0);
  ASSERT_TRUE(Ready(dialled->fd(), POLLIN));
  EXPECT_GT(dialled->Fill(), 0);
  EXPECT_FALSE(dialled->open());  // it has answered, and waits for the other's answer
  EXPECT_TRUE(Send(accepted.get(), 21, 0, "hello back"));
  ASSERT_TRUE(Ready(accepted->fd(), POLLIN));
  EXPECT_GT(accepted->Fill(), 0);
  EXPECT_TRUE(accepted->open());
  const auto back = Receive(dialled.get(), 1);
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].payload, std::string("hello back"));
  const auto early = Receive(accepted.get(), 1);
  ASSERT_EQ(early.size(), 1u);
  EXPECT_EQ(early[0].payload, std::string("queued early"));
  EXPECT_EQ(dialled->peer_pid(), 0);
}

TEST(Tcp, IsRefusedWithoutAConfiguredProof) {
  Status status;
  EXPECT_TRUE(Connection::DialTcp("127.0.0.1", 9, Destination::kNode, nullptr, MakeIdentity('D', 0), &status) ==
              nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kPermission);
  EXPECT_TRUE(status.message().find("network_proof") != std::string::npos);
  EXPECT_TRUE(Listener::ListenTcp("127.0.0.1", 0, 16, MakeIdentity('A', 0), &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kPermission);
}

TEST(Tcp, NeverShowsTheTokenItself) {
  Status status;
  auto listener = ListenSomewhere(&status);
  Identity careless = MakeIdentity('D', 0);
  careless.network_proof = [careless] { return std::make_unique<TokenProof>(careless.token); };
  auto dialled = Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr, careless, &status);
  EXPECT_TRUE(dialled == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kPermission);
}

TEST(Tcp, AnAdoptedSocketWithoutAProofComesBackClosedWithTheReason) {
  Status status;
  auto listener = ListenSomewhere(&status);
  auto dialled =
      Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr, NetworkIdentity('D'), &status);
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  auto accepted = Connection::Adopt(AcceptBehindGate(listener.get()), MakeIdentity('A', 2));
  EXPECT_FALSE(accepted->alive());
  EXPECT_EQ(accepted->Fill(), -1);
  EXPECT_TRUE(std::string(accepted->why_closed()).find("network_proof") != std::string::npos);
}

TEST(Tcp, AWrongTokenIsRefusedAndCounted) {
  const uint64_t before = counters().hellos_refused.load();
  Status status;
  auto listener = ListenSomewhere(&status);
  auto dialled = Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr,
                                     NetworkIdentity('D', 'x'), &status);
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  auto accepted = Connection::Adopt(AcceptBehindGate(listener.get()), NetworkIdentity('A'));
  EXPECT_GE(dialled->Flush(), 0);
  ASSERT_TRUE(Ready(accepted->fd(), POLLIN));
  EXPECT_GT(accepted->Fill(), 0);
  ASSERT_TRUE(Ready(dialled->fd(), POLLIN));
  EXPECT_GT(dialled->Fill(), 0);
  EXPECT_TRUE(Receive(accepted.get()).empty());
  EXPECT_EQ(accepted->error(), EPROTO);
  EXPECT_EQ(counters().hellos_refused.load(), before + 1);
}

TEST(Tcp, APeerThatIsNotThereShowsAsAnEnd) {
  Status status;
  uint16_t port;
  {
    auto listener = ListenSomewhere(&status);
    port = listener->port();
  }
  auto dialled = Connection::DialTcp("127.0.0.1", port, Destination::kNode, nullptr, NetworkIdentity('D'), &status);
  if (dialled == nullptr) {
    EXPECT_TRUE(status.code() == StatusCode::kDisconnected);
    return;
  }
  EXPECT_TRUE(Receive(dialled.get()).empty());
  EXPECT_FALSE(dialled->alive());
  EXPECT_NE(dialled->error(), 0);
}

TEST(Tcp, AHostNameIsRefusedSinceLookingItUpWouldBlock) {
  Status status;
  EXPECT_TRUE(Connection::DialTcp("localhost", 80, Destination::kNode, nullptr, NetworkIdentity('D'), &status) ==
              nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument);
}

}  // namespace ray::channel
