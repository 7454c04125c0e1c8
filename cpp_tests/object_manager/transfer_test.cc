// Real transfers: stores on threads of this process, each with its object manager and a gate that hands over
// connections.
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <map>
#include <random>

#include "object_manager/transfer_fixture.h"
#include "testing.h"

namespace ray::objects {
namespace {

TEST(Transfer, BringsObjectsOfAllSizesAndTheirMetadata) {
  Node a, b;
  for (const uint64_t bytes :
       {uint64_t{1}, uint64_t{4096}, uint64_t{100'001}, uint64_t{1 << 20}, uint64_t{20'000'001}}) {
    plasma::Put(a.client.get(), bytes, bytes);
    const uint64_t request = b.Pull(bytes, {a.gate->address()});
    const LineEvent e = b.Next();
    EXPECT_EQ(e.request, request);
    EXPECT_TRUE(Here(e));
    EXPECT_TRUE(b.Has(bytes, bytes));
  }
  plasma::Place place;
  std::shared_ptr<plasma::Client> c = a.client;
  while (c->TryCreate(Key(7), 10, 6, &place) != plasma::Step::kDone) ASSERT_TRUE(c->MakeRoom(10, 6, {}).ok());
  std::memcpy(place.address, "0123456789meta__", 16);
  c->TrySeal(Key(7));
  b.Pull(7, {a.gate->address()});
  EXPECT_TRUE(Here(b.Next()));
  ASSERT_TRUE(plasma::Get(b.client.get(), 7, &place) == plasma::Step::kDone);
  EXPECT_EQ(place.metadata_bytes, 6u);
  EXPECT_EQ(std::memcmp(place.address, "0123456789meta__", 16), 0);
  EXPECT_EQ(plasma::Audit(b.client.get()), "");
  EXPECT_EQ(a.Count().served, 6u);
}

TEST(Transfer, IsOneHoweverManyAsk) {
  Node a, b;
  plasma::Put(a.client.get(), 1, 16 << 20);
  for (int i = 0; i < 20; ++i) b.Pull(1, {a.gate->address()});
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Here(b.Next()));
  EXPECT_EQ(a.Count().served, 1u);
  EXPECT_EQ(b.Count().bytes_in, uint64_t{16 << 20});
}

TEST(Transfer, PinsWhatItBroughtUntilItIsLetGo) {
  Node a, b(8 << 20);
  plasma::Put(a.client.get(), 1, 4 << 20);
  const uint64_t request = b.Pull(1, {a.gate->address()});
  ASSERT_TRUE(Here(b.Next()));
  EXPECT_TRUE(plasma::Put(b.client.get(), 2, 6 << 20, 0.05) == plasma::Step::kAsk);
  ASSERT_TRUE(b.line->LetGo(request).ok());
  EXPECT_TRUE(plasma::Put(b.client.get(), 2, 6 << 20) == plasma::Step::kDone);
}

TEST(Transfer, WaitsForRoomAndIsAnsweredWhenThereIs) {
  Node a, b(8 << 20);
  plasma::Put(a.client.get(), 1, 4 << 20);
  plasma::Place pinned;
  plasma::Put(b.client.get(), 2, 6 << 20);
  ASSERT_TRUE(plasma::Get(b.client.get(), 2, &pinned) == plasma::Step::kDone);
  b.Pull(1, {a.gate->address()});
  EXPECT_TRUE(b.Next(0.2).type == Line::kPull);
  b.client->Unpin(pinned.slot);
  EXPECT_TRUE(Here(b.Next()));
  EXPECT_TRUE(b.Has(1, 4 << 20));
}

TEST(Transfer, SaysWhyItCannotBe) {
  Node a, b(2 << 20), stranger(2 << 20, 'X');
  plasma::Put(a.client.get(), 1, 4 << 20);
  b.Pull(1, {a.gate->address()});
  LineEvent e = b.Next();
  EXPECT_TRUE(e.payload[0] == static_cast<char>(Outcome::kNoRoom));
  EXPECT_TRUE(Text(e).find("can never fit") != std::string::npos);
  b.Pull(2, {a.gate->address()});
  EXPECT_TRUE(Text(b.Next()).find("it has not got the object") != std::string::npos);
  b.Pull(3, {});
  EXPECT_TRUE(Text(b.Next()).find("nobody was named") != std::string::npos);
  b.Pull(4, {{"127.0.0.1", 1}});
  EXPECT_TRUE(Text(b.Next()).find("refused") != std::string::npos);
  b.Pull(5, {stranger.gate->address()});
  EXPECT_TRUE(Text(b.Next()).size() > 20);
  EXPECT_EQ(stranger.Count().served, 0u);
}

TEST(Transfer, GoesOnFromAnotherCopyWhenItsSourceDies) {
  auto a = std::make_unique<Node>(256 << 20);
  Node b(256 << 20), c(256 << 20);
  constexpr uint64_t kBytes = 200 << 20;
  plasma::Put(a->client.get(), 1, kBytes);
  plasma::Put(b.client.get(), 1, kBytes);
  c.Pull(1, {a->gate->address(), b.gate->address()});
  ASSERT_TRUE(Eventually([&] { return c.Count().bytes_in > 1 << 20; }));
  a.reset();
  EXPECT_TRUE(Here(c.Next()));
  EXPECT_TRUE(c.Has(1, kBytes));
  const Stats stats = c.Count();
  // It may have been quicker than we; then there was nothing to resume.
  EXPECT_TRUE(stats.bytes_in == kBytes && stats.resumed <= 1);
}

TEST(Transfer, LeavesNothingOfAPullThatNobodyWantsAnyMore) {
  Node a(256 << 20), b(256 << 20);
  plasma::Put(a.client.get(), 1, 200 << 20);
  const uint64_t request = b.Pull(1, {a.gate->address()});
  ASSERT_TRUE(Eventually([&] { return b.Count().bytes_in > 0; }));
  ASSERT_TRUE(b.line->LetGo(request).ok());
  EXPECT_TRUE(Eventually([&] { return b.Count().pulls_now == 0; }));
  EXPECT_TRUE(Eventually([&] { return plasma::Stats(b.client.get()).unsealed_objects == 0; }));
  EXPECT_TRUE(Eventually([&] { return a.Count().serving_now == 0; }));
  EXPECT_EQ(plasma::Audit(b.client.get()), "");
}

TEST(Transfer, SpreadsAsATreeAndIsFreedEverywhere) {
  constexpr uint64_t kBytes = 16 << 20;
  constexpr int kNodes = 7;
  Node root;
  plasma::Put(root.client.get(), 1, kBytes);
  uint64_t held = 0;
  ASSERT_TRUE(root.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(1).bytes), 28), &held).ok());
  EXPECT_EQ(root.Next().payload, std::string(1, '\1'));
  std::vector<std::unique_ptr<Node>> nodes;
  for (int i = 0; i < kNodes; ++i) nodes.push_back(std::make_unique<Node>());
  std::vector<uint64_t> requests;
  for (auto& node : nodes) requests.push_back(node->Pull(1, {root.gate->address()}));
  for (size_t i = 0; i < nodes.size(); ++i) {
    EXPECT_TRUE(Here(nodes[i]->Next()));
    EXPECT_TRUE(nodes[i]->Has(1, kBytes));
    ASSERT_TRUE(nodes[i]->line->LetGo(requests[i]).ok());
  }
  uint64_t served = 0, referred = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    served += nodes[i]->Count().served;
    referred += nodes[i]->Count().referred;
  }
  EXPECT_EQ(served + root.Count().served, uint64_t{kNodes});
  EXPECT_TRUE(referred + root.Count().referred > 0);
  ASSERT_TRUE(root.line->Ask(Line::kFree, FreePayload({Key(1), std::nullopt})).ok());
  for (auto& node : nodes)
    EXPECT_TRUE(Eventually([&] { return node->client->Contains(Key(1)) == plasma::Step::kAbsent; }));
  EXPECT_TRUE(Eventually([&] { return plasma::Stats(root.client.get()).sealed_objects == 0; }));
}

TEST(Transfer, HoldsForAnOwnerElsewhereUntilItFreesOrDies) {
  Node a(8 << 20), b;
  const auto hold = [&](uint64_t n) {
    plasma::Put(a.client.get(), n, 1 << 20);
    static_cast<void>(a.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(n).bytes), 28)));
    return a.Next().payload == std::string(1, '\1');
  };
  ASSERT_TRUE(hold(1) && hold(2) && hold(3));
  EXPECT_TRUE(plasma::Put(a.client.get(), 9, 6 << 20, 0.05) == plasma::Step::kAsk);
  ASSERT_TRUE(b.line->Ask(Line::kFree, FreePayload({Key(1), a.gate->address()})).ok());
  EXPECT_TRUE(Eventually([&] { return a.Count().held == 2; }));
  ASSERT_TRUE(a.line->Ask(Line::kOwnerDead, std::string("test")).ok());
  const LineEvent e = a.Next();
  uint64_t count = 0;
  std::memcpy(&count, e.payload.data(), sizeof(count));
  EXPECT_EQ(count, 2u);
  EXPECT_TRUE(plasma::Put(a.client.get(), 9, 6 << 20) == plasma::Step::kDone);
  static_cast<void>(a.line->Ask(Line::kHold, std::string(28, 'z')));
  EXPECT_EQ(a.Next().payload, std::string(1, '\0'));  // there is none
}

// A node that was given up while it lived frees, once it can be reached again, what its processes owned: those who have
// kept a copy since then have it as long as they like.
TEST(Transfer, KeepsWhatIsPinnedHereBeyondAFreeFromElsewhere) {
  Node a(8 << 20), b, c;
  const auto has = [&](uint64_t n) { return a.client->Contains(Key(n)) == plasma::Step::kDone; };
  for (uint64_t n = 1; n <= 3; ++n) {
    plasma::Put(a.client.get(), n, 1 << 20);
    ASSERT_TRUE(a.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(n).bytes), 28)).ok());
    ASSERT_TRUE(a.Next().payload == std::string(1, '\1'));
  }
  ASSERT_TRUE(a.client->TryPin(Key(1)) == plasma::Step::kDone);
  EXPECT_TRUE(c.Claim(2, a));
  for (uint64_t n = 1; n <= 3; ++n) {
    ASSERT_TRUE(b.line->Ask(Line::kFree, FreePayload({Key(n), a.gate->address()})).ok());
  }
  EXPECT_TRUE(Eventually([&] { return a.Count().held == 0; }));
  EXPECT_TRUE(Eventually([&] { return !has(3); }));
  EXPECT_TRUE(has(1) && has(2));
  a.client->UnpinKey(Key(1));
  a.client->Unpinned(Key(1));
  EXPECT_TRUE(Eventually([&] { return !has(1); }));
  EXPECT_TRUE(has(2));
  ASSERT_TRUE(c.line->Ask(Line::kUnclaim, FreePayload({Key(2), a.gate->address()})).ok());
  EXPECT_TRUE(Eventually([&] { return !has(2); }));
  EXPECT_EQ(plasma::Audit(a.client.get()), "");
}

// The owner has the answer, and is done with it, before our object manager has read that it should hold it.
TEST(Transfer, DoesNotHoldWhatItsOwnerHasFreedAlready) {
  Node a(8 << 20), b;
  const auto put_and_pin = [&] {
    return plasma::Put(a.client.get(), 1, 1 << 20) == plasma::Step::kDone &&
           a.client->TryPin(Key(1)) == plasma::Step::kDone;
  };
  const auto hold = [&] {
    static_cast<void>(a.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(1).bytes), 28)));
    return a.Next().payload == std::string(1, '\1');
  };
  const auto let_go = [&] {
    a.client->UnpinKey(Key(1));
    a.client->Unpinned(Key(1));
    return Eventually([&] { return a.client->Contains(Key(1)) == plasma::Step::kAbsent; });
  };
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(put_and_pin());
    ASSERT_TRUE(b.line->Ask(Line::kFree, FreePayload({Key(1), a.gate->address()})).ok());
    ASSERT_TRUE(Eventually([&] { return a.Count().freed == static_cast<uint64_t>(2 * again + 1); }));
    EXPECT_FALSE(hold());
    EXPECT_TRUE(let_go());
    ASSERT_TRUE(put_and_pin());  // made again, it is another
    EXPECT_TRUE(hold());
    ASSERT_TRUE(b.line->Ask(Line::kFree, FreePayload({Key(1), a.gate->address()})).ok());
    ASSERT_TRUE(Eventually([&] { return a.Count().held == 0; }));
    EXPECT_TRUE(let_go());
  }
  EXPECT_EQ(plasma::Audit(a.client.get()), "");
}

TEST(Transfer, KeepsWhatIsClaimedFromElsewhereBeyondItsOwnersDeath) {
  Node a(8 << 20), b;
  const auto say = [](Node& node, Line what, const std::string& body) {
    ASSERT_TRUE(node.line->Ask(what, body).ok());
    node.Count();
  };
  const auto has = [&](uint64_t n) { return a.client->Contains(Key(n)) == plasma::Step::kDone; };
  const auto pins = [&] {  // by the object manager; three when all is held
    std::vector<std::pair<plasma::Row, std::vector<uint32_t>>> rows;
    static_cast<void>(a.client->List(plasma::Patience{}, &rows));
    uint64_t sum = 0;
    for (const auto& row : rows) sum += row.first.pins;
    return sum;
  };
  for (uint64_t n = 1; n <= 3; ++n) {
    plasma::Put(a.client.get(), n, 1 << 20);
    ASSERT_TRUE(a.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(n).bytes), 28)).ok());
    ASSERT_TRUE(a.Next().payload == std::string(1, '\1'));
  }
  const uint64_t before = pins();
  EXPECT_TRUE(b.Claim(1, a) && b.Claim(2, a));
  EXPECT_FALSE(b.Claim(7, a));  // there is none
  EXPECT_EQ(pins(), before + 2);
  ASSERT_TRUE(a.line->Ask(Line::kOwnerDead, std::string("test")).ok());
  ASSERT_TRUE(a.Next().type == Line::kCount);
  EXPECT_TRUE(Eventually([&] { return !has(3); }));
  EXPECT_TRUE(has(1) && has(2));
  say(b, Line::kUnclaim, FreePayload({Key(7), a.gate->address()}));
  say(b, Line::kUnclaim, FreePayload({Key(1), a.gate->address()}));
  EXPECT_TRUE(Eventually([&] { return !has(1); }));
  EXPECT_TRUE(has(2));
  b.line.reset();  // the process that claimed dies
  EXPECT_TRUE(Eventually([&] { return !has(2); }));
  EXPECT_EQ(a.Count().held, 0u);
}

TEST(Transfer, ClaimsThatComeJustAfterTheOwnersEndAreInTime) {
  Node a(8 << 20), b, c;
  for (uint64_t n = 1; n <= 2; ++n) {
    plasma::Put(a.client.get(), n, 1 << 20);
    ASSERT_TRUE(a.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(Key(n).bytes), 28)).ok());
    ASSERT_TRUE(a.Next().payload == std::string(1, '\1'));
    ASSERT_TRUE(b.line->Ask(Line::kOwn, FreePayload({Key(n), a.gate->address()})).ok());
  }
  b.Count();
  b.line.reset();  // the owner dies
  EXPECT_TRUE(c.Claim(2, a));
  EXPECT_TRUE(Eventually([&] { return a.client->Contains(Key(1)) == plasma::Step::kAbsent; }));
  EXPECT_EQ(a.Count().held, 0u);
  EXPECT_TRUE(a.client->Contains(Key(2)) == plasma::Step::kDone);
  ASSERT_TRUE(c.line->Ask(Line::kUnclaim, FreePayload({Key(2), a.gate->address()})).ok());
  EXPECT_TRUE(Eventually([&] { return a.client->Contains(Key(2)) == plasma::Step::kAbsent; }));
}

// Those who keep it fetch it late: the other copies have been told by then.
TEST(Transfer, LeavesNoCopyThatWasFetchedAfterItsOwnersDeath) {
  Node a(8 << 20), b;
  plasma::Put(a.client.get(), 1, 1 << 20);
  EXPECT_TRUE(b.Claim(1, a));
  ASSERT_TRUE(a.line->Ask(Line::kOwnerDead, std::string("test")).ok());
  ASSERT_TRUE(a.Next().type == Line::kCount);
  const uint64_t request = b.Pull(1, {a.gate->address()});
  EXPECT_TRUE(Here(b.Next()));
  ASSERT_TRUE(b.client->TryPin(Key(1)) == plasma::Step::kDone);
  ASSERT_TRUE(b.line->LetGo(request).ok());
  EXPECT_TRUE(Eventually([&] { return b.Count().freed == 1; }));
  EXPECT_TRUE(b.Has(1, 1 << 20));
  b.client->UnpinKey(Key(1));
  b.client->Unpinned(Key(1));
  EXPECT_TRUE(Eventually([&] { return b.client->Contains(Key(1)) == plasma::Step::kAbsent; }));
}

TEST(Transfer, LetsGoOfClaimsWithTheStoreThatMadeThem) {
  Node a(8 << 20), b;
  plasma::Put(a.client.get(), 1, 1 << 20);
  EXPECT_TRUE(b.Claim(1, a));
  ASSERT_TRUE(a.line->Ask(Line::kLapse, std::string(reinterpret_cast<const char*>(Key(1).bytes), 28)).ok());
  a.Count();
  EXPECT_TRUE(a.client->Contains(Key(1)) == plasma::Step::kDone);
  b.Die();
  EXPECT_TRUE(Eventually([&] { return a.client->Contains(Key(1)) == plasma::Step::kAbsent; }));
  Node c;
  const Address nobody = b.address;
  const int64_t began = NowNs();
  EXPECT_FALSE(c.ClaimAt(1, nobody));
  EXPECT_LT(NowNs() - began, 10 * kNsPerS);
}

// Processes of three nodes claim objects that a process of a fourth owns, hand them on by the rule (the next one's
// claim is answered before the last one lets go), and end; the owner, too. Whatever somebody keeps is there, and
// nothing else.
TEST(Transfer, KeepsWhatSomebodyClaimsThroughARandomLife) {
  constexpr uint64_t kObjects = 6;
  Node home(32 << 20), owners;
  std::vector<std::unique_ptr<Node>> nodes;
  for (int i = 0; i < 3; ++i) nodes.push_back(std::make_unique<Node>());
  for (uint64_t round = 0; round < 6; ++round) {
    std::mt19937_64 random(round);
    const auto key = [&](uint64_t n) { return Key(round * kObjects + n); };
    std::unique_ptr<TransferLine> owner;
    ASSERT_TRUE(TransferLine::Connect(owners.socket, &owner).ok());
    for (uint64_t n = 0; n < kObjects; ++n) {
      plasma::Put(home.client.get(), round * kObjects + n, 200'000);
      ASSERT_TRUE(home.line->Ask(Line::kHold, std::string(reinterpret_cast<const char*>(key(n).bytes), 28)).ok());
      ASSERT_TRUE(home.Next().payload == std::string(1, '\1'));
      ASSERT_TRUE(owner->Ask(Line::kOwn, FreePayload({key(n), home.address})).ok());
    }
    owners.Count();
    std::map<int, std::map<uint64_t, int>> kept;  // by node: of each object, how often
    const auto keepers = [&](uint64_t n) {
      int sum = 0;
      for (auto& [node, counts] : kept) sum += counts[n];
      return sum;
    };
    const int dies_at = static_cast<int>(random() % 40);
    for (int step = 0; step < 60; ++step) {
      if (step == dies_at) owner.reset();
      const uint64_t n = random() % kObjects;
      const int who = static_cast<int>(random() % nodes.size());
      Node& node = *nodes[who];
      const auto claimed = [&](uint64_t object) { return node.Claim(round * kObjects + object, home); };
      if (random() % 25 == 0) {  // its process ends
        node.line.reset();
        kept[who].clear();
        ASSERT_TRUE(TransferLine::Connect(node.socket, &node.line).ok());
      } else if (random() % 2 == 0) {
        if (owner || keepers(n) > 0) {
          EXPECT_TRUE(claimed(n));
          ++kept[who][n];
        }
      } else if (kept[who][n] > 0) {
        --kept[who][n];
        ASSERT_TRUE(node.line->Ask(Line::kUnclaim, FreePayload({key(n), home.address})).ok());
      }
    }
    owner.reset();
    for (uint64_t n = 0; n < kObjects; ++n) {
      if (keepers(n) != 0) continue;
      EXPECT_TRUE(Eventually([&] { return home.client->Contains(key(n)) == plasma::Step::kAbsent; }));
    }
    for (uint64_t n = 0; n < kObjects; ++n) {
      if (keepers(n) != 0) EXPECT_TRUE(home.client->Contains(key(n)) == plasma::Step::kDone);
    }
    for (auto& node : nodes) {
      node->line.reset();
      ASSERT_TRUE(TransferLine::Connect(node->socket, &node->line).ok());
    }
    for (uint64_t n = 0; n < kObjects; ++n) {
      EXPECT_TRUE(Eventually([&] { return home.client->Contains(key(n)) == plasma::Step::kAbsent; }));
    }
    EXPECT_EQ(home.Count().held, 0u);
  }
  EXPECT_EQ(plasma::Audit(home.client.get()), "");
}

TEST(Transfer, ClosesAConnectionThatBreaksTheProtocolAndServesOn) {
  Node a, b;
  plasma::Put(a.client.get(), 1, 1 << 20);
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  ASSERT_TRUE(a.line->Adopt(pair[1]).ok());
  close(pair[1]);
  ASSERT_EQ(write(pair[0], "GET / HTTP/1.1\r\n\r\n", 18), 18);
  char byte;
  EXPECT_TRUE(recv(pair[0], &byte, 1, 0) <= 0);
  close(pair[0]);
  EXPECT_EQ(a.Count().bad_frames, 1u);
  b.Pull(1, {a.gate->address()});
  EXPECT_TRUE(Here(b.Next()));
}

// A peer that knows the token and then says whatever comes to its mind, in either role.
class Rogue {
 public:
  // as: what it says that it is.
  Rogue(int fd, bool dialled, std::mt19937* random, const Tag& as = {}) : fd_(fd), random_(random) {
    channel::Identity identity{};
    identity.role = 2;
    std::memcpy(identity.tag, as.bytes, sizeof(identity.tag));
    uint8_t token[channel::kTokenBytes];
    std::memset(token, 'T', sizeof(token));
    channel::Handshake greeting(identity, std::make_unique<channel::NetworkProof>(token),
                                dialled ? channel::Handshake::Side::kDialled : channel::Handshake::Side::kAccepted);
    timeval patience{5, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    while (!greeting.verified() || greeting.unsent_bytes() > 0) {
      if (greeting.unsent_bytes() > 0) {
        const ssize_t n = send(fd_, greeting.unsent(), greeting.unsent_bytes(), MSG_NOSIGNAL);
        if (n <= 0) return;
        greeting.Sent(static_cast<size_t>(n));
        continue;
      }
      uint8_t byte;
      if (recv(fd_, &byte, 1, 0) != 1) return;
      greeting.Receive(&byte, 1);
    }
    proved_ = true;
  }
  ~Rogue() { close(fd_); }
  bool proved() const { return proved_; }

  // False once the other side has closed.
  bool Say(const ObjectId& key) {
    std::mt19937& random = *random_;
    static constexpr uint16_t kTypes[] = {1, 2, 3, 4, 5, 64, 65, 66, 67, 9};
    const uint16_t type = kTypes[random() % std::size(kTypes)];
    std::string body(random() % 3 == 0 ? random() % 200
                     : type == 2       ? 40
                     : type == 3       ? 16
                     : type == 64      ? 24
                                       : random() % 64,
                     '\0');
    for (char& c : body) c = static_cast<char>(random() % 4 == 0 ? random() : 0);
    if (body.size() >= 28 && random() % 2 == 0) std::memcpy(body.data(), key.bytes, 28);
    const FrameHeader header{static_cast<uint32_t>(body.size()), type, static_cast<uint16_t>(random() % 50 == 0),
                             1 + random() % 3};
    std::string frame(reinterpret_cast<const char*>(&header), sizeof(header));
    frame += body;
    return send(fd_, frame.data(), frame.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(frame.size());
  }

 private:
  int fd_;
  std::mt19937* random_;
  bool proved_ = false;
};

TEST(Transfer, SurvivesPeersThatKnowTheTokenAndTalkNonsense) {
  std::mt19937 random(5);
  Node a, b;
  plasma::Put(a.client.get(), 1, 300'000);
  for (int i = 0; i < 150; ++i) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    ASSERT_TRUE(a.line->Adopt(pair[1]).ok());
    close(pair[1]);
    Rogue rogue(pair[0], true, &random);
    ASSERT_TRUE(rogue.proved());
    for (int k = 0; k < 40 && rogue.Say(Key(1)); ++k) {
    }
  }
  // And as a server, to a store that pulls from it.
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(where);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&where), length), 0);
  ASSERT_EQ(listen(listener, 8), 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&where), &length);
  for (int i = 0; i < 150; ++i) {
    const Address address{"127.0.0.1", ntohs(where.sin_port)};
    b.Pull(100, {address});
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    char preamble[32];
    ASSERT_EQ(recv(fd, preamble, sizeof(preamble), MSG_WAITALL), ssize_t{32});
    Rogue rogue(fd, false, &random, StoreTag(address));
    ASSERT_TRUE(rogue.proved());
    for (int k = 0; k < 40 && rogue.Say(Key(100)); ++k) {
    }
  }
  close(listener);
  for (int i = 0; i < 150; ++i) EXPECT_FALSE(b.Next().type == Line::kPull);
  EXPECT_TRUE(b.Count().pulls_now == 0 && a.Count().serving_now == 0);
  plasma::Put(a.client.get(), 2, 1 << 20);
  b.Pull(2, {a.gate->address()});
  EXPECT_TRUE(Here(b.Next()));
  EXPECT_EQ(plasma::Audit(a.client.get()), "");
  EXPECT_EQ(plasma::Audit(b.client.get()), "");
}

TEST(Transfer, OfAGigabytePerSecondIsPrinted) {
  Node a(1200ull << 20), b(1200ull << 20);
  constexpr uint64_t kBytes = 1ull << 30;
  plasma::Put(a.client.get(), 1, kBytes, 60);
  const int64_t begin = NowNs();
  b.Pull(1, {a.gate->address()});
  EXPECT_TRUE(Here(b.Next(60)));
  std::printf("1 GiB store to store: %.2f GB/s\n", static_cast<double>(kBytes) / static_cast<double>(NowNs() - begin));
}

}  // namespace
}  // namespace ray::objects

RAY_TEST_MAIN()
