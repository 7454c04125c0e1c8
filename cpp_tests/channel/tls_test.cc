// TLS between two processes that know one token, over TCP on loopback and over socket pairs whose every byte a test
// carries itself.
#include "channel/tls.h"

#include <fcntl.h>
#include <netinet/in.h>

#include "channel/counters.h"
#include "channel/fixture.h"
#include "channel/handoff.h"
#include "testing.h"

namespace ray::channel {
namespace {

Identity TlsIdentity(char tag, uint8_t role, char token = 'T', bool tls = true) {
  Identity identity = MakeIdentity(tag, role, token);
  ProveOverNetwork(&identity);
  identity.tls = tls;
  return identity;
}

// A gate that has read the preamble, and both ends behind it.
struct Ends {
  std::unique_ptr<Listener> listener;
  std::unique_ptr<Connection> dialled, accepted;

  Ends(const Identity& caller, const Identity& callee, Destination to = Destination::kNode) {
    Status status;
    listener = Listener::ListenTcp("127.0.0.1", 0, 16, callee, &status);
    if (!listener) throw std::runtime_error(status.message());
    const uint8_t* tag = to == Destination::kCore ? callee.tag : nullptr;
    dialled = Connection::DialTcp("127.0.0.1", listener->port(), to, tag, caller, &status);
    if (!dialled) throw std::runtime_error(status.message());
    if (!Ready(listener->fd(), POLLIN)) throw std::runtime_error("nobody came");
    const int fd = listener->Accept();
    dialled->Flush();
    char preamble[kPreambleBytes];
    fcntl(fd, F_SETFL, 0);
    if (recv(fd, preamble, sizeof preamble, MSG_WAITALL) != kPreambleBytes) throw std::runtime_error("no preamble");
    accepted = Connection::Adopt(fd, callee);
  }

  // Both take what comes until neither goes on: both open, or one closed and the other aware of it.
  void Greet() {
    for (int i = 0; i < 1000; ++i) {
      if (dialled->open() && accepted->open()) return;
      if (!dialled->alive() && !accepted->alive()) return;
      for (Connection* c : {dialled.get(), accepted.get()}) {
        if (c->alive() && Ready(c->fd(), POLLIN, 10)) c->Fill();
        if (c->alive()) c->Flush();
      }
    }
    throw std::runtime_error("the greeting doesn't end");
  }
};

// Two ends of TLS over socket pairs, and what is between them in our hands.
struct Wire {
  int a_fd, b_fd, a_far, b_far;
  std::unique_ptr<Tls> a, b;

  explicit Wire(char b_token = 'T', uint8_t b_destination = 0) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
    a_fd = pair[0], a_far = pair[1];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
    b_fd = pair[0], b_far = pair[1];
    uint8_t token[kTokenBytes], preamble[kPreambleBytes];
    Status status;
    std::memset(token, 'T', sizeof token);
    WritePreamble(Destination::kNode, nullptr, preamble);
    a = Tls::Make(a_fd, true, token, preamble, &status);
    if (!a) throw std::runtime_error(status.message());
    std::memset(token, b_token, sizeof token);
    preamble[10] = b_destination;
    b = Tls::Make(b_fd, false, token, preamble, &status);
  }
  ~Wire() {
    a.reset(), b.reset();
    for (int fd : {a_fd, b_fd, a_far, b_far}) close(fd);
  }

  static std::string Take(int far) {
    std::string all;
    char piece[65536];
    ssize_t n;
    while ((n = recv(far, piece, sizeof piece, MSG_DONTWAIT)) > 0) all.append(piece, static_cast<size_t>(n));
    return all;
  }
  static void Give(int far, const std::string& bytes) {
    if (!bytes.empty() && send(far, bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
  }
  // Carries what both have said, `step` bytes at a time. The side that got some looks at once.
  bool Shake(size_t step) {
    char byte;
    for (int i = 0; i < 100 && !(a->done() && b->done()); ++i) {
      if (!a->Drive() || !b->Drive()) return false;
      for (bool to_b : {true, false}) {
        const std::string said = Take(to_b ? a_far : b_far);
        for (size_t at = 0; at < said.size(); at += step) {
          Give(to_b ? b_far : a_far, said.substr(at, step));
          errno = 0;
          if ((to_b ? b : a)->Recv(&byte, 0 + 1) >= 0 || errno != EAGAIN) return false;
        }
      }
    }
    return a->done() && b->done();
  }
};

bool SendAll(Tls* tls, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = tls->Send(text.data() + at, text.size() - at);
    if (n < 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

std::string Text(size_t bytes) {
  std::string text(bytes, 0);
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>('a' + i * 7 % 23);
  return text;
}

}  // namespace

TEST(TlsChannel, CarriesFramesOfEverySizeBothWays) {
  Ends ends(TlsIdentity('D', 0), TlsIdentity('A', 2));
  ASSERT_TRUE(Send(ends.dialled.get(), 20, 1, "queued early"));
  ends.Greet();
  ASSERT_TRUE(ends.dialled->open() && ends.accepted->open());
  EXPECT_EQ(ends.dialled->peer_role(), 2);
  EXPECT_EQ(ReceiveOne(ends.accepted.get()), std::string("queued early"));
  for (const size_t bytes : {0u, 1u, 100u, 16384u, 70000u, 5000000u}) {
    for (Connection* from : {ends.dialled.get(), ends.accepted.get()}) {
      Connection* to = from == ends.dialled.get() ? ends.accepted.get() : ends.dialled.get();
      const std::string text = Text(bytes);
      ASSERT_TRUE(Send(from, 30, 2, text));
      ASSERT_TRUE(Send(from, 31, 0, "behind"));
      std::vector<OwnFrame> got;
      Frame frame;
      for (int i = 0; i < 100'000 && got.size() < 2; ++i) {
        ASSERT_GE(from->Flush(), 0);
        ASSERT_GE(to->Fill(), 0);
        while (to->Next(&frame)) {
          got.push_back({frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)});
        }
      }
      ASSERT_EQ(got.size(), 2u);
      EXPECT_TRUE(got[0].payload == text);
      EXPECT_EQ(got[1].payload, std::string("behind"));
    }
  }
}

// The owner of a connection hears of bytes by the descriptor alone: after a Fill none that make a frame may be left.
TEST(TlsChannel, LeavesNothingBehindThatTheDescriptorDoesNotShow) {
  Ends ends(TlsIdentity('D', 0), TlsIdentity('A', 2));
  ends.Greet();
  int got = 0;
  Frame frame;
  for (int i = 0; i < 3000; ++i) ASSERT_TRUE(Send(ends.dialled.get(), 20, 0, Text(static_cast<size_t>(i))));
  while (got < 3000) {
    ASSERT_GE(ends.dialled->Flush(), 0);
    if (!Ready(ends.accepted->fd(), POLLIN, 2000)) break;  // nothing shows any more
    ASSERT_GE(ends.accepted->Fill(), 0);
    while (ends.accepted->Next(&frame)) ++got;
  }
  EXPECT_EQ(got, 3000);
}

TEST(TlsChannel, AnotherTokenIsRefusedByBoth) {
  const uint64_t before = counters().hellos_refused.load();
  Ends ends(TlsIdentity('D', 0, 'x'), TlsIdentity('A', 2));
  ends.Greet();
  EXPECT_FALSE(ends.dialled->greeted() || ends.accepted->greeted());
  EXPECT_EQ(ends.accepted->error(), EPROTO);
  EXPECT_TRUE(std::string(ends.accepted->why_closed()).find("another token") != std::string::npos);
  EXPECT_TRUE(std::string(ends.dialled->why_closed()).find("another token") != std::string::npos);
  EXPECT_GE(counters().hellos_refused.load(), before + 1);
}

TEST(TlsChannel, OneWithoutAndOneWithAreToldSo) {
  Ends plain(TlsIdentity('D', 0, 'T', false), TlsIdentity('A', 2));
  plain.Greet();
  EXPECT_EQ(std::string(plain.dialled->why_closed()), std::string(kPeerWithTls));
  EXPECT_EQ(std::string(plain.accepted->why_closed()), std::string(kPeerWithoutTls));
  Ends reverse(TlsIdentity('D', 0), TlsIdentity('A', 2, 'T', false));
  reverse.Greet();
  EXPECT_EQ(std::string(reverse.dialled->why_closed()), std::string(kPeerWithoutTls));
  EXPECT_EQ(std::string(reverse.accepted->why_closed()), std::string(kPeerWithTls));
}

// What the gate reads is in plain text. Who changes it reaches a process that won't have the connection.
TEST(TlsChannel, WhatTheGateReadsIsProvedToo) {
  Ends right(TlsIdentity('D', 0), TlsIdentity('A', 1), Destination::kCore);
  right.Greet();
  EXPECT_TRUE(right.accepted->open());
  Ends wrong(TlsIdentity('D', 0), TlsIdentity('A', 1), Destination::kNode);
  wrong.Greet();
  EXPECT_FALSE(wrong.accepted->greeted() || wrong.dialled->greeted());
}

TEST(TlsChannel, AnEndInTheMiddleIsAnEnd) {
  Ends ends(TlsIdentity('D', 0), TlsIdentity('A', 2));
  ends.Greet();
  ASSERT_TRUE(Send(ends.dialled.get(), 20, 0, "last words"));
  ends.dialled->Flush();
  ends.dialled->Close("test");
  EXPECT_EQ(ReceiveOne(ends.accepted.get()), std::string("last words"));
  EXPECT_TRUE(Receive(ends.accepted.get()).empty());
  EXPECT_FALSE(ends.accepted->alive());
}

TEST(Tls, PiecesOfAnySizeLeadToTheSame) {
  for (const size_t step : {1u, 2u, 3u, 7u, 64u, 1000u}) {
    Wire wire;
    ASSERT_TRUE(wire.Shake(step));
    const std::string text = Text(step < 7 ? 20'000 : 100'000);
    ASSERT_TRUE(SendAll(wire.a.get(), text));
    const std::string said = Wire::Take(wire.a_far);
    EXPECT_TRUE(said.find(text.substr(0, 16)) == std::string::npos);
    std::string got, room(text.size(), 0);
    for (size_t at = 0; at < said.size(); at += step) {
      Wire::Give(wire.b_far, said.substr(at, step));
      ssize_t n;
      while ((n = wire.b->Recv(room.data(), room.size())) > 0) got.append(room, 0, static_cast<size_t>(n));
      ASSERT_EQ(errno, EAGAIN);
    }
    EXPECT_TRUE(got == text);
  }
}

TEST(Tls, AFullSocketIsNoLoss) {
  Wire wire;
  ASSERT_TRUE(wire.Shake(SIZE_MAX / 2));
  const std::string text = Text(4 << 20);
  std::string got, room(100'000, 0);
  size_t at = 0;
  int full = 0;
  while (got.size() < text.size()) {
    if (at < text.size()) {
      const ssize_t n = wire.a->Send(text.data() + at, text.size() - at);
      if (n > 0) at += static_cast<size_t>(n);
      if (n < 0) {
        ASSERT_EQ(errno, EAGAIN);
        ASSERT_TRUE(wire.a->wants_write());
        ++full;
      }
    }
    if (at < text.size() && !wire.a->wants_write()) continue;
    char piece[5000];
    for (int i = 0; i < 4; ++i) {
      const ssize_t n = recv(wire.a_far, piece, sizeof piece, MSG_DONTWAIT);
      if (n > 0) Wire::Give(wire.b_far, std::string(piece, static_cast<size_t>(n)));
    }
    ssize_t n;
    while ((n = wire.b->Recv(room.data(), room.size())) > 0) got.append(room, 0, static_cast<size_t>(n));
    ASSERT_EQ(errno, EAGAIN);
  }
  EXPECT_TRUE(got == text);
  EXPECT_GT(full, 0);
}

TEST(Tls, ASmallReadLeavesTheRestInReachOfTheNext) {
  Wire wire;
  ASSERT_TRUE(wire.Shake(1000));
  ASSERT_TRUE(SendAll(wire.a.get(), Text(1000)));
  Wire::Give(wire.b_far, Wire::Take(wire.a_far));
  std::string got;
  char piece[10];
  do {
    const ssize_t n = wire.b->Recv(piece, sizeof piece, got.empty() ? 5000 : 0);
    if (n > 0) got.append(piece, static_cast<size_t>(n));
  } while (wire.b->hidden());
  EXPECT_TRUE(got == Text(1000));
}

// Somebody in the middle changes one bit of what one side says, anywhere in the handshake or after it.
TEST(Tls, AChangedBitEndsItWherever) {
  for (const bool of_a : {true, false}) {
    for (size_t at = 0; at < 600; at += 7) {
      Wire wire;
      char room[100];
      size_t seen = 0;
      bool changed = false, handed_out = false, ended = false;
      for (int i = 0; i < 6 && !ended; ++i) {
        ended = !wire.a->Drive() || !wire.b->Drive();
        if (wire.a->done() && wire.b->done()) SendAll(wire.a.get(), "secret"), SendAll(wire.b.get(), "secret");
        for (bool to_b : {true, false}) {
          std::string said = Wire::Take(to_b ? wire.a_far : wire.b_far);
          if (to_b == of_a) {
            if (at >= seen && at < seen + said.size()) said[at - seen] ^= 4, changed = true;
            seen += said.size();
          }
          if (!said.empty()) Wire::Give(to_b ? wire.b_far : wire.a_far, said);
          const ssize_t n = (to_b ? wire.b : wire.a)->Recv(room, sizeof room);
          if (n > 0 && std::string(room, static_cast<size_t>(n)).find("secret") != 0) handed_out = true;
          if (n < 0 && errno == EPROTO) ended = true;
        }
      }
      EXPECT_FALSE(handed_out);
      // A record's length that has grown leaves the receiver waiting for more, which is the deadline's to end.
      if (changed && !ended) EXPECT_FALSE(wire.a->done() && wire.b->done() && seen > at + 600);
    }
  }
}

TEST(Tls, GarbageAndTruncationAreRefused) {
  for (const std::string& garbage :
       {std::string(200, '\0'), std::string(200, '\x16'), std::string("\x16\x03\x01\xff\xff", 5) + Text(300),
        std::string("GET / HTTP/1.1\r\n\r\n"), std::string("\x15\x03\x03\x00\x02\x02\x28", 7)}) {
    Wire wire;
    char byte;
    Wire::Give(wire.b_far, garbage);
    EXPECT_EQ(wire.b->Recv(&byte, 1), -1);
    EXPECT_TRUE(errno == EPROTO || errno == EAGAIN);
    shutdown(wire.b_far, SHUT_WR);
    EXPECT_LE(wire.b->Recv(&byte, 1), 0);
    EXPECT_FALSE(wire.b->done());
  }
  Wire cut;
  ASSERT_TRUE(cut.Shake(1000));
  ASSERT_TRUE(SendAll(cut.a.get(), Text(1000)));
  const std::string said = Wire::Take(cut.a_far);
  Wire::Give(cut.b_far, said.substr(0, said.size() - 1));
  shutdown(cut.b_far, SHUT_WR);
  std::string room(2000, 0);
  EXPECT_EQ(cut.b->Recv(room.data(), room.size()), -1);  // not a byte of a record that isn't whole
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_EQ(cut.b->Recv(room.data(), room.size()), 0);
}

// A record sent again, or two in the other order, are as bad as a changed one.
TEST(Tls, AReplayedRecordEndsIt) {
  Wire wire;
  ASSERT_TRUE(wire.Shake(1000));
  ASSERT_TRUE(SendAll(wire.a.get(), "pay 10"));
  const std::string said = Wire::Take(wire.a_far);
  Wire::Give(wire.b_far, said + said);
  char room[100];
  EXPECT_EQ(wire.b->Recv(room, sizeof room), 6);
  EXPECT_EQ(wire.b->Recv(room, sizeof room), -1);
  EXPECT_EQ(errno, EPROTO);
  EXPECT_FALSE(SendAll(wire.b.get(), "x"));  // and nothing more is said
}

TEST(Tls, AnotherTokenOrAnotherProcessDoesNotGetThrough) {
  Wire token('x');
  EXPECT_FALSE(token.Shake(1000));
  EXPECT_FALSE(token.b->done());
  Wire process('T', 2);
  EXPECT_FALSE(process.Shake(1000));
  EXPECT_FALSE(process.b->done() || process.a->done());
}

// The same said twice gives other bytes: each connection has keys of its own.
TEST(Tls, NoTwoConnectionsAreAlike) {
  std::string first;
  for (int i = 0; i < 2; ++i) {
    Wire wire;
    ASSERT_TRUE(wire.Shake(1000));
    ASSERT_TRUE(SendAll(wire.a.get(), "the same"));
    const std::string said = Wire::Take(wire.a_far);
    EXPECT_TRUE(said != first);
    first = said;
  }
}

}  // namespace ray::channel
