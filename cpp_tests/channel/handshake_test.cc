// cpp/channel/handshake.h without sockets: who says what when, and what is refused.
#include "channel/handshake.h"

#include <string>

#include "channel/fixture.h"
#include "channel/toy_proof.h"
#include "testing.h"

namespace ray::channel {
namespace {

using Side = Handshake::Side;

std::unique_ptr<Handshake> Make(const Identity& self, Side side) {
  auto proof = self.network_proof ? self.network_proof() : std::make_unique<TokenProof>(self.token);
  return std::make_unique<Handshake>(self, std::move(proof), side);
}

// Moves what one wants sent to the other; returns the bytes.
std::string Carry(Handshake* from, Handshake* to) {
  const std::string bytes(reinterpret_cast<const char*>(from->unsent()), from->unsent_bytes());
  from->Sent(bytes.size());
  if (to != nullptr) to->Receive(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  return bytes;
}

void Feed(Handshake* h, const std::string& bytes) {
  h->Receive(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

}  // namespace

TEST(Handshake, WithTheTokenBothSidesLearnTagAndRole) {
  auto dialled = Make(MakeIdentity('D', 1), Side::kDialled), accepted = Make(MakeIdentity('A', 2), Side::kAccepted);
  EXPECT_TRUE(dialled->frames_may_follow());
  EXPECT_FALSE(accepted->frames_may_follow());
  EXPECT_EQ(Carry(dialled.get(), accepted.get()).size(), kHelloBytes);
  EXPECT_TRUE(accepted->verified());
  EXPECT_EQ(Carry(accepted.get(), dialled.get()).size(), kHelloBytes);
  ASSERT_TRUE(dialled->verified());
  EXPECT_EQ(int{dialled->peer_role()}, 2);
  EXPECT_EQ(int{accepted->peer_role()}, 1);
  EXPECT_EQ(dialled->peer_tag().Hex(), std::string("41414141414141414141414141414141"));
}

TEST(Handshake, TheAcceptingSideShowsItsTokenOnlyToAPeerThatHasIt) {
  auto stranger = Make(MakeIdentity('D', 1, 'x'), Side::kDialled),
       accepted = Make(MakeIdentity('A', 2), Side::kAccepted);
  EXPECT_EQ(accepted->unsent_bytes(), 0u);
  Carry(stranger.get(), accepted.get());
  EXPECT_FALSE(accepted->verified());
  ASSERT_TRUE(accepted->refused() != nullptr);
  EXPECT_TRUE(std::string(accepted->refused()).find("token") != std::string::npos);
  EXPECT_EQ(accepted->unsent_bytes(), 0u);
}

TEST(Handshake, AnySingleWrongBitOutsideTagAndRoleIsRefused) {
  const std::string right = HelloBytes(MakeIdentity('D', 1));
  for (size_t bit = 0; bit < right.size() * 8; ++bit) {
    const size_t at = bit / 8;
    std::string wrong = right;
    wrong[at] = static_cast<char>(wrong[at] ^ (1 << bit % 8));
    const bool harmless = (at >= 16 && at < 32) || (at == 10 && static_cast<uint8_t>(wrong[at]) <= kRoleMax);
    auto accepted = Make(MakeIdentity('A', 2), Side::kAccepted);
    Feed(accepted.get(), wrong);
    EXPECT_EQ(accepted->verified(), harmless);
    EXPECT_EQ(accepted->refused() == nullptr, harmless);
  }
}

TEST(Handshake, AStrangerIsRefusedAtItsFirstWrongByte) {
  auto accepted = Make(MakeIdentity('A', 2), Side::kAccepted);
  Feed(accepted.get(), "GET / HTTP/1.1\r\n");
  EXPECT_TRUE(accepted->refused() != nullptr);
  auto other = Make(MakeIdentity('A', 2), Side::kAccepted);
  Feed(other.get(), std::string("\x8f", 1) + "r");
  EXPECT_TRUE(other->refused() == nullptr);
  Feed(other.get(), "b");
  EXPECT_TRUE(other->refused() != nullptr);
}

TEST(Handshake, ConsumesNothingBehindTheGreeting) {
  auto accepted = Make(MakeIdentity('A', 2), Side::kAccepted);
  const std::string bytes = HelloBytes(MakeIdentity('D', 1)) + "frames";
  EXPECT_EQ(accepted->Receive(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), kHelloBytes);
  EXPECT_EQ(accepted->Receive(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), 0u);
  EXPECT_TRUE(accepted->verified());
}

TEST(Handshake, AProofThatAnswersLetsTheDiallerProveItselfFirst) {
  auto dialled = Make(NetworkIdentity('D'), Side::kDialled), accepted = Make(NetworkIdentity('A'), Side::kAccepted);
  EXPECT_FALSE(dialled->frames_may_follow());
  EXPECT_EQ(Carry(dialled.get(), accepted.get()).size(), kHelloBytes);
  EXPECT_FALSE(accepted->verified());
  EXPECT_EQ(Carry(accepted.get(), dialled.get()).size(), kHelloBytes);  // its hello, and no answer yet
  EXPECT_FALSE(dialled->verified());
  EXPECT_EQ(Carry(dialled.get(), accepted.get()).size(), kProofBytes);
  EXPECT_TRUE(accepted->verified());
  EXPECT_FALSE(dialled->frames_may_follow());
  EXPECT_EQ(Carry(accepted.get(), dialled.get()).size(), kProofBytes);
  EXPECT_TRUE(dialled->verified());
  EXPECT_TRUE(dialled->frames_may_follow() && accepted->frames_may_follow());
}

TEST(Handshake, AWrongAnswerIsRefusedAndGetsNone) {
  auto dialled = Make(NetworkIdentity('D', 'x'), Side::kDialled),
       accepted = Make(NetworkIdentity('A'), Side::kAccepted);
  Carry(dialled.get(), accepted.get());
  Carry(accepted.get(), dialled.get());
  Carry(dialled.get(), accepted.get());
  EXPECT_TRUE(accepted->refused() != nullptr);
  EXPECT_EQ(accepted->unsent_bytes(), 0u);
}

TEST(Handshake, AnAnswerReflectedAtItsSenderIsRefused) {
  auto dialled = Make(NetworkIdentity('D'), Side::kDialled);
  const std::string hello = Carry(dialled.get(), nullptr);
  Feed(dialled.get(), hello);  // a peer that knows no token sends everything back
  Feed(dialled.get(), Carry(dialled.get(), nullptr));
  EXPECT_FALSE(dialled->verified());
}

// Two that both dial somebody in the middle: carried crosswise, each one's answer would be just what the other expects.
TEST(Handshake, TwoDiallersAreNotTakenForOneAnothersTarget) {
  auto first = Make(NetworkIdentity('D'), Side::kDialled), second = Make(NetworkIdentity('E'), Side::kDialled);
  const std::string hello = Carry(first.get(), nullptr);
  Carry(second.get(), first.get());
  Feed(second.get(), hello);
  EXPECT_TRUE(first->refused() != nullptr && second->refused() != nullptr);
  EXPECT_EQ(first->unsent_bytes() + second->unsent_bytes(), 0u);
}

}  // namespace ray::channel
