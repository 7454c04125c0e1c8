// cpp/channel/connection.h over real Unix sockets: what goes in comes out, what is refused, and every way to die.
#include "channel/connection.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>

#include <random>

#include "channel/counters.h"
#include "channel/fixture.h"
#include "channel/poller.h"
#include "testing.h"

namespace ray::channel {
namespace {

std::string Noise(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string out(bytes, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

}  // namespace

TEST(Connection, FramesArriveInOrderWholeAndAligned) {
  Pair pair;
  std::vector<OwnFrame> sent;
  for (uint32_t n = 0; n < 300; ++n) sent.push_back({uint8_t(16 + n % 200), uint8_t(n), Noise(n, n)});
  for (const OwnFrame& f : sent) ASSERT_TRUE(Send(pair.dialled.get(), f.type, f.flags, f.payload));
  EXPECT_EQ(pair.dialled->Flush(), 0);
  EXPECT_EQ(pair.dialled->pending_bytes(), 0u);
  ASSERT_GT(pair.accepted->Fill(), 0);
  Frame frame;
  size_t at = 0;
  while (pair.accepted->Next(&frame)) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.data) % kFrameAlign, 0u);
    const OwnFrame got{frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)};
    EXPECT_TRUE(got == sent[at]);
    ++at;
  }
  EXPECT_EQ(at, sent.size());
}

TEST(Connection, KnowsWhoIsAtTheOtherEnd) {
  Pair pair;
  EXPECT_EQ(pair.accepted->peer_tag()[0], uint8_t('D'));
  EXPECT_EQ(pair.dialled->peer_tag()[15], uint8_t('A'));
  EXPECT_EQ(int{pair.accepted->peer_role()}, 0);
  EXPECT_EQ(int{pair.dialled->peer_role()}, 1);
  EXPECT_EQ(pair.accepted->peer_pid(), getpid());
  EXPECT_TRUE(fcntl(pair.accepted->fd(), F_GETFD) & FD_CLOEXEC);
  EXPECT_TRUE(fcntl(pair.dialled->fd(), F_GETFD) & FD_CLOEXEC);
}

TEST(Connection, FramesMayFollowTheDiallersHelloAtOnce) {
  Pair pair(false);
  Send(pair.dialled.get(), 20, 0, "early");
  EXPECT_EQ(pair.dialled->Flush(), 0);
  EXPECT_GT(pair.accepted->Fill(), 0);
  Frame frame;
  ASSERT_TRUE(pair.accepted->Next(&frame));
  EXPECT_EQ(frame.size, 5u);
}

TEST(Connection, TheAcceptingSideHoldsItsFramesUntilThePeerHasProvedItself) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  Raw raw(folder / "s");
  auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
  Send(accepted.get(), 20, 0, "secret");
  EXPECT_EQ(accepted->Flush(), 0);
  EXPECT_FALSE(accepted->wants_write());
  EXPECT_TRUE(raw.Silent());
  raw.Write(HelloBytes(MakeIdentity('D', 0)));
  EXPECT_GT(accepted->Fill(), 0);
  EXPECT_EQ(accepted->pending_bytes(), 0u);
  const std::string got = raw.Read(kHelloBytes + FrameBytes(6));
  EXPECT_EQ(got.substr(kHelloBytes), FrameString(20, 0, "secret"));
}

TEST(Connection, AStrangerLearnsNothingAndIsCounted) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  const uint64_t before = counters().hellos_refused.load();
  for (const std::string& bytes : {HelloBytes(MakeIdentity('D', 0, 'x')), std::string(64, '\0'), std::string("hi")}) {
    Raw raw(folder / "s");
    auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
    Send(accepted.get(), 20, 0, "secret");
    raw.Write(bytes + FrameString(20, 0, "x"));
    EXPECT_EQ(accepted->Fill(), -1);
    EXPECT_FALSE(accepted->open() || accepted->greeted());
    EXPECT_EQ(accepted->error(), EPROTO);
    EXPECT_EQ(accepted->Flush(), -1);
    Frame frame;
    EXPECT_FALSE(accepted->Next(&frame));
    accepted.reset();
    EXPECT_TRUE(raw.Ended());
  }
  EXPECT_EQ(counters().hellos_refused.load(), before + 3);
}

TEST(Connection, AHelloInSingleBytesIsAHello) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  Raw raw(folder / "s");
  auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
  EXPECT_GT(accepted->hello_deadline_ns(), NowNs());
  for (char c : HelloBytes(MakeIdentity('D', 0)) + FrameString(20, 0, "whole")) {
    EXPECT_FALSE(accepted->greeted() && accepted->hello_deadline_ns() != 0);
    raw.Write(&c, 1);
    EXPECT_EQ(accepted->Fill(), 1);
  }
  EXPECT_TRUE(accepted->open());
  EXPECT_EQ(ReceiveOne(accepted.get()), std::string("whole"));
}

TEST(Connection, ALateHelloIsClosedByItsOwnerOnly) {
  Pair pair(false);
  const int64_t due = pair.accepted->hello_deadline_ns();
  EXPECT_FALSE(pair.accepted->CloseIfLate(due - 1));
  EXPECT_TRUE(pair.accepted->alive());
  EXPECT_TRUE(pair.accepted->CloseIfLate(due));
  EXPECT_FALSE(pair.accepted->CloseIfLate(due));
  EXPECT_EQ(pair.accepted->error(), ETIMEDOUT);
  EXPECT_EQ(pair.accepted->fd(), -1);
  EXPECT_TRUE(Receive(pair.dialled.get()).empty());
  Pair open;
  EXPECT_EQ(open.accepted->hello_deadline_ns(), 0);
  EXPECT_FALSE(open.accepted->CloseIfLate(INT64_MAX));
}

TEST(Connection, TrimShortensTheLastFrameAndItsPaddingIsZero) {
  Pair pair;
  for (uint32_t kept : {0u, 1u, 7u, 8u, 9u, 100u}) {
    uint8_t* p = pair.dialled->Reserve(30, 2, 100);
    std::memset(p, 'x', 100);
    pair.dialled->Trim(kept);
    EXPECT_EQ(pair.dialled->pending_bytes(), FrameBytes(kept));
    EXPECT_EQ(pair.dialled->Flush(), 0);
    Raw tap(dup(pair.accepted->fd()));
    EXPECT_EQ(tap.Read(FrameBytes(kept)), FrameString(30, 2, std::string(kept, 'x')));
  }
}

TEST(Connection, RefusesAFrameAboveTheLimit) {
  Pair pair;
  EXPECT_TRUE(pair.dialled->Reserve(20, 0, kFrameBytesMax + 1) == nullptr);
  EXPECT_TRUE(pair.dialled->Reserve(20, 0, UINT32_MAX) == nullptr);
  EXPECT_EQ(pair.dialled->pending_bytes(), 0u);
  EXPECT_TRUE(Send(pair.dialled.get(), 20, 0, "fine"));
}

TEST(Connection, AFullSocketSaysSoAndGoesOnWhenThePeerReads) {
  Pair pair;
  const std::string big = Noise(24u << 20, 5);
  Send(pair.dialled.get(), 20, 0, big);
  Send(pair.dialled.get(), 21, 0, "behind");
  EXPECT_EQ(pair.dialled->Flush(), 1);
  EXPECT_TRUE(pair.dialled->wants_write());
  std::vector<OwnFrame> got;
  Frame frame;
  while (got.size() < 2) {
    if (pair.dialled->pending_bytes() > 0) EXPECT_GE(pair.dialled->Flush(), 0);
    ASSERT_GE(pair.accepted->Fill(), 0);
    while (pair.accepted->Next(&frame)) {
      got.push_back({frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)});
    }
  }
  EXPECT_TRUE(got[0].payload == big);
  EXPECT_EQ(got[1].payload, std::string("behind"));
  EXPECT_FALSE(pair.dialled->wants_write());
  // Both sides give the memory back.
  EXPECT_EQ(pair.accepted->Fill(), 0);
  EXPECT_LE(pair.dialled->buffer_bytes(), 2 * kBufferKeptBytes);
  EXPECT_LE(pair.accepted->buffer_bytes(), 2 * kBufferKeptBytes);
}

TEST(Connection, AnAnnouncedGiantCostsOnlyWhatHasCome) {
  Pair pair;
  Raw raw(dup(pair.dialled->fd()));
  alignas(8) uint8_t header[8];
  StoreHeader(header, 20, 0, kFrameBytesMax);
  raw.Write(header, sizeof header);
  const std::string some = Noise(100'000, 1);
  raw.Write(some);
  while (pair.accepted->Fill() > 0) {
  }
  EXPECT_TRUE(pair.accepted->open());
  EXPECT_LE(pair.accepted->buffer_bytes(), 4 * some.size());
}

TEST(Connection, AMalformedHeaderEndsItAfterTheFramesBefore) {
  Pair pair;
  const uint64_t before = counters().frames_malformed.load();
  Raw raw(dup(pair.dialled->fd()));
  raw.Write(FrameString(20, 0, "good") + std::string("\0\0\0\0\0\0\1\0", 8) + FrameString(20, 0, "never"));
  const auto got = Receive(pair.accepted.get());
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].payload, std::string("good"));
  EXPECT_EQ(pair.accepted->error(), EPROTO);
  EXPECT_EQ(pair.accepted->Fill(), -1);
  EXPECT_EQ(pair.accepted->Flush(), -1);
  EXPECT_EQ(counters().frames_malformed.load(), before + 1);
  EXPECT_TRUE(raw.Ended());  // the culprit notices at once
}

TEST(Connection, AnOwnerThatReadsOncePerEventIsToldOfAMalformedHeaderByAnotherEvent) {
  Pair pair;
  Poller poller;
  poller.Add(pair.accepted->fd(), 1);
  Raw raw(dup(pair.dialled->fd()));
  raw.Write(std::string(8, '\xff'));
  Event event;
  Frame frame;
  ASSERT_EQ(poller.Wait(10'000, &event, 1), 1);
  EXPECT_GT(pair.accepted->Fill(), 0);
  EXPECT_FALSE(pair.accepted->Next(&frame));
  ASSERT_EQ(poller.Wait(10'000, &event, 1), 1);
  EXPECT_TRUE(event.readable && event.hangup);
  EXPECT_EQ(pair.accepted->Fill(), -1);
}

TEST(Connection, FramesNobodyTakesFillTheBufferAndNoMore) {
  Pair pair;
  const std::string payload(1000, 'x');
  for (int i = 0; i < 500; ++i) Send(pair.dialled.get(), 20, 0, payload);
  pair.dialled->Flush();
  for (int i = 0; i < 50; ++i) EXPECT_GT(pair.accepted->Fill(), 0);
  EXPECT_LE(pair.accepted->buffer_bytes(), 2 * kBufferBytes);
  EXPECT_EQ(Receive(pair.accepted.get(), 500).size(), 500u);
}

TEST(Connection, WhatAKilledPeerSentIsHandedOutBeforeItsEnd) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  InChild([&] {
    Status in_child;
    auto c = Connection::Dial(folder / "s", MakeIdentity('D', 0), &in_child);
    for (int i = 0; i < 1000; ++i) Send(c.get(), 20, 0, std::to_string(i));
    c->Flush();
    raise(SIGKILL);
    return 0;
  });
  auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
  Send(accepted.get(), 20, 0, "into the void");
  const auto got = Receive(accepted.get());
  ASSERT_EQ(got.size(), 1000u);
  EXPECT_EQ(got[999].payload, std::string("999"));
  EXPECT_FALSE(accepted->open());
  EXPECT_TRUE(accepted->greeted());
  EXPECT_NE(std::string(accepted->why_closed()), std::string());
}

TEST(Connection, AFailedFlushStillLetsThePeersLastWordsBeHeard) {
  Pair pair;
  Send(pair.dialled.get(), 20, 0, "last words");
  pair.dialled->Flush();
  pair.dialled.reset();
  Send(pair.accepted.get(), 20, 0, "x");
  EXPECT_EQ(pair.accepted->Flush(), -1);
  EXPECT_TRUE(pair.accepted->alive());
  uint8_t* p = pair.accepted->Reserve(20, 0, 8);  // works, and goes nowhere
  ASSERT_TRUE(p != nullptr);
  EXPECT_EQ(pair.accepted->Flush(), -1);
  EXPECT_EQ(pair.accepted->pending_bytes(), 0u);
  const auto got = Receive(pair.accepted.get());
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].payload, std::string("last words"));
}

TEST(Connection, HalfAFrameIsNoFrameAndTheReasonSaysSo) {
  Pair pair;
  Raw raw(dup(pair.dialled->fd()));
  raw.Write(FrameString(20, 0, "whole") + FrameString(20, 0, "cut off here").substr(0, 12));
  shutdown(raw.fd(), SHUT_RDWR);
  EXPECT_EQ(Receive(pair.accepted.get()).size(), 1u);
  EXPECT_TRUE(std::string(pair.accepted->why_closed()).find("middle of a frame") != std::string::npos);
}

TEST(Connection, CloseIsSeenByThePeerEvenIfAForkedChildHoldsTheDescriptor) {
  Pair pair;
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(hold[1]);
    char c;
    (void)!read(hold[0], &c, 1);  // lives until the parent lets go
    _exit(0);
  }
  close(hold[0]);
  pair.dialled->Close("done");
  EXPECT_EQ(std::string(pair.dialled->why_closed()), std::string("done"));
  EXPECT_TRUE(Receive(pair.accepted.get()).empty());
  EXPECT_EQ(pair.accepted->error(), 0);
  close(hold[1]);
  waitpid(child, nullptr, 0);
}

TEST(Connection, AForkedChildMayCloseOrDestroyItsCopyWithoutHurtingTheParents) {
  Pair pair;
  InChild([&] {
    pair.dialled->Close("child");
    pair.accepted.reset();
    return 0;
  });
  Send(pair.dialled.get(), 20, 0, "still works");
  EXPECT_EQ(pair.dialled->Flush(), 0);
  EXPECT_EQ(ReceiveOne(pair.accepted.get()), std::string("still works"));
}

TEST(Connection, ClosingWhileAFrameIsBeingReadLeavesItsBytes) {
  Pair pair;
  Send(pair.dialled.get(), 20, 0, "being read");
  pair.dialled->Flush();
  pair.accepted->Fill();
  Frame frame;
  ASSERT_TRUE(pair.accepted->Next(&frame));
  pair.accepted->Close("by the handler");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(frame.data), frame.size), std::string("being read"));
  EXPECT_FALSE(pair.accepted->Next(&frame));
  EXPECT_EQ(pair.accepted->Fill(), -1);
  EXPECT_EQ(pair.accepted->Flush(), -1);
  pair.accepted->Close("twice");
}

TEST(Connection, AnotherUsersProcessIsRefusedOnSight) {
  if (geteuid() != 0) return;  // only root can become somebody else
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  chmod((folder / "").c_str(), 0777);
  chmod((folder / "s").c_str(), 0777);
  const int result = InChild([&] {
    if (setuid(65534) != 0) return 1;
    Raw raw(folder / "s");
    raw.Write(HelloBytes(MakeIdentity('D', 0)));
    return 0;
  });
  EXPECT_EQ(result, 0);
  auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
  EXPECT_FALSE(accepted->alive());
  EXPECT_EQ(accepted->Fill(), -1);
  EXPECT_TRUE(std::string(accepted->why_closed()).find("another user") != std::string::npos);

  // And the other way round: what another user listens at is not spoken to.
  int ready[2], done[2];
  ASSERT_TRUE(pipe(ready) == 0 && pipe(done) == 0);
  const pid_t child = fork();
  if (child == 0) {
    Status in_child;
    if (setuid(65534) != 0) _exit(1);
    auto trap = Listener::Listen(folder / "trap", 16, &in_child);
    (void)!write(ready[1], "r", 1);
    close(done[1]);
    char c;
    (void)!read(done[0], &c, 1);
    _exit(trap ? 0 : 2);
  }
  char c;
  ASSERT_EQ(read(ready[0], &c, 1), 1);
  EXPECT_TRUE(Connection::Dial(folder / "trap", MakeIdentity('D', 0), &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kPermission);
  close(done[0]);
  close(done[1]);
  int child_status = 0;
  waitpid(child, &child_status, 0);
  EXPECT_EQ(child_status, 0);
  for (int fd : ready) close(fd);
}

}  // namespace ray::channel
