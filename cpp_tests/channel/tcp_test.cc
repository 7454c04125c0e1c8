// The same Connection over TCP (loopback), with a stand-in for the real proof.
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

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

TEST(Tcp, WhatNobodyHasHeardGoesOnOnAnotherConnection) {
  Status status;
  auto listener = ListenSomewhere(&status);
  const Identity self = NetworkIdentity('D');
  const auto dial = [&] {
    return Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr, self, &status);
  };
  auto unmade = Connection::Unmade();
  EXPECT_FALSE(unmade->alive());
  ASSERT_TRUE(Send(unmade.get(), 20, 1, "first"));
  EXPECT_EQ(unmade->Flush(), -1);
  auto dialled = dial();
  dialled->TakeUnheard(unmade.get());
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  close(AcceptBehindGate(listener.get()));  // late, or out of reach: it ends before a greeting
  ASSERT_TRUE(Ready(dialled->fd(), POLLIN));
  while (dialled->Fill() >= 0) {
  }
  EXPECT_FALSE(dialled->greeted());
  EXPECT_FALSE(dialled->no_such_process());
  ASSERT_TRUE(Send(dialled.get(), 20, 1, "second"));
  EXPECT_EQ(dialled->Flush(), -1);
  dialled->Close("it is dialled again");
  auto again = dial();
  again->TakeUnheard(dialled.get());
  ASSERT_TRUE(Send(again.get(), 20, 1, "third"));
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  auto accepted = Connection::Adopt(AcceptBehindGate(listener.get()), NetworkIdentity('A'));
  while (accepted->alive() && again->alive() && !again->greeted()) {
    if (Ready(accepted->fd(), POLLIN, 20)) accepted->Fill();
    if (Ready(again->fd(), POLLIN, 20)) again->Fill();
    again->Flush();
  }
  const auto heard = Receive(accepted.get(), 3);
  ASSERT_EQ(heard.size(), 3u);
  EXPECT_EQ(heard[0].payload, std::string("first"));
  EXPECT_EQ(heard[1].payload, std::string("second"));
  EXPECT_EQ(heard[2].payload, std::string("third"));
}

TEST(Tcp, AProcessThatIsGoneIsToldFromOneThatCannotBeReached) {
  Status status;
  auto listener = ListenSomewhere(&status);
  const Identity self = NetworkIdentity('D');
  auto dialled = Connection::DialTcp("127.0.0.1", listener->port(), Destination::kCore, self.tag, self, &status);
  ASSERT_TRUE(Ready(listener->fd(), POLLIN));
  const int gate = AcceptBehindGate(listener.get());
  ASSERT_EQ(send(gate, kGoneMagic, 5, 0), 5);  // in two pieces
  ASSERT_TRUE(Ready(dialled->fd(), POLLIN));
  EXPECT_GT(dialled->Fill(), 0);
  EXPECT_TRUE(dialled->alive());
  ASSERT_EQ(send(gate, kGoneMagic + 5, 3, 0), 3);
  close(gate);
  ASSERT_TRUE(Ready(dialled->fd(), POLLIN));
  EXPECT_EQ(dialled->Fill(), -1);
  EXPECT_TRUE(dialled->no_such_process());

  const uint16_t port = listener->port();
  listener.reset();
  auto refused = Connection::DialTcp("127.0.0.1", port, Destination::kCore, self.tag, self, &status);
  if (refused != nullptr) {  // the kernel may also say so at once
    EXPECT_TRUE(Ready(refused->fd(), POLLIN));
    refused->Flush();
    EXPECT_EQ(refused->Fill(), -1);
    EXPECT_TRUE(refused->no_such_process());
  } else {
    EXPECT_TRUE(status.code() == StatusCode::kDisconnected);
  }
}

// Two processes that have greeted each other. `dialled` is the one whose peer falls silent.
struct Greeted {
  Greeted() {
    Status status;
    auto listener = ListenSomewhere(&status);
    dialled =
        Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, nullptr, NetworkIdentity('D'), &status);
    EXPECT_TRUE(Ready(listener->fd(), POLLIN));
    accepted = Connection::Adopt(AcceptBehindGate(listener.get()), NetworkIdentity('A'));
    while (!dialled->open() || !accepted->open()) {
      for (Connection* one : {dialled.get(), accepted.get()}) {
        if (Ready(one->fd(), POLLIN, 5)) one->Fill();
        one->Flush();
      }
    }
  }
  // Looks until it is silent, `for_ns` at most, and returns the last word.
  Connection::Unheard Look(int64_t for_ns, int64_t silence_ns) {
    const int64_t until_ns = NowNs() + for_ns;
    auto last = dialled->LookForSilence(NowNs(), silence_ns);
    while (last != Connection::Unheard::kSilent && NowNs() < until_ns) {
      usleep(20'000);
      last = dialled->LookForSilence(NowNs(), silence_ns);
    }
    return last;
  }
  std::unique_ptr<Connection> dialled, accepted;
};

TEST(Tcp, AMachineThatSaysNothingIsSilentAndAnIdleOneIsNot) {
  Greeted two;
  EXPECT_TRUE(two.Look(600'000'000, 300'000'000) == Connection::Unheard::kNothing);
  // From here on its kernel sees nothing of what comes: as if the cable were out.
  sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog all = {1, &drop};
  ASSERT_EQ(setsockopt(two.accepted->fd(), SOL_SOCKET, SO_ATTACH_FILTER, &all, sizeof all), 0);
  ASSERT_TRUE(Send(two.dialled.get(), 20, 1, "lost"));
  two.dialled->Flush();
  EXPECT_TRUE(two.dialled->LookForSilence(NowNs(), 300'000'000) == Connection::Unheard::kWaits);
  EXPECT_TRUE(two.Look(10'000'000'000, 300'000'000) == Connection::Unheard::kSilent);
  EXPECT_TRUE(two.dialled->alive());  // what it means is the caller's to say
}

// Once, such a one was taken for dead: the kernel's bound counts what nobody takes, though it hears that from the peer.
TEST(Tcp, AProcessThatTakesNothingForLongIsNotSilent) {
  Greeted two;
  EXPECT_TRUE(two.dialled->LookForSilence(NowNs()) == Connection::Unheard::kNothing);
  int bound_ms = -1;
  socklen_t bytes = sizeof bound_ms;
  ASSERT_EQ(getsockopt(two.dialled->fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, &bound_ms, &bytes), 0);
  EXPECT_EQ(bound_ms, 0);
  const std::string large(1 << 20, 'x');
  int last = 0;
  for (int sent = 0; sent < 64 && last == 0; ++sent) {
    ASSERT_TRUE(Send(two.dialled.get(), 20, 1, large));
    last = two.dialled->Flush();
  }
  ASSERT_EQ(last, 1);
  EXPECT_TRUE(two.Look(3'500'000'000, 2'500'000'000) == Connection::Unheard::kWaits);
  EXPECT_TRUE(two.dialled->alive());
}

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

// The address is another node's now, or somebody has led the connection there: it knows the token, and is not the one.
TEST(Tcp, WhoeverIsNotTheOneThatWasDialledIsRefused) {
  for (const char asked : {'A', 'B'}) {
    Status status;
    auto listener = ListenSomewhere(&status);
    const Identity wanted = NetworkIdentity(asked);
    auto dialled = Connection::DialTcp("127.0.0.1", listener->port(), Destination::kNode, wanted.tag,
                                       NetworkIdentity('D'), &status);
    ASSERT_TRUE(dialled != nullptr);
    ASSERT_TRUE(Send(dialled.get(), 20, 1, "for A only"));
    ASSERT_TRUE(Ready(listener->fd(), POLLIN));
    auto accepted = Connection::Adopt(AcceptBehindGate(listener.get()), NetworkIdentity('A'));
    for (int i = 0; i < 10 && dialled->alive() && accepted->alive(); ++i) {
      if (Ready(accepted->fd(), POLLIN, 100)) accepted->Fill();
      if (Ready(dialled->fd(), POLLIN, 100)) dialled->Fill();
    }
    EXPECT_EQ(dialled->open(), asked == 'A');
    EXPECT_EQ(accepted->greeted(), asked == 'A');
    Frame frame;
    EXPECT_EQ(accepted->Next(&frame), asked == 'A');
    if (asked == 'B')
      EXPECT_TRUE(std::string(dialled->why_closed()).find("than the one that was dialled") != std::string::npos);
  }
}

TEST(Tcp, AHostNameIsRefusedSinceLookingItUpWouldBlock) {
  Status status;
  EXPECT_TRUE(Connection::DialTcp("localhost", 80, Destination::kNode, nullptr, NetworkIdentity('D'), &status) ==
              nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument);
}

}  // namespace ray::channel
