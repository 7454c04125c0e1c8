// Random greetings, in random pieces: only a right one is accepted, nothing is sent to a wrong one, and how the bytes
// were cut makes no difference.
#include "channel/fixture.h"
#include "channel/fuzz/fuzz.h"
#include "channel/handshake.h"
#include "channel/toy_proof.h"

namespace ray::channel {
namespace {

struct Outcome {
  bool verified;
  std::string refused;
  size_t consumed;
  size_t to_send;
  bool operator==(const Outcome&) const = default;
};

Outcome Feed(const Identity& self, Handshake::Side side, bool network, const std::string& bytes, Random* cuts) {
  std::unique_ptr<Proof> proof = std::make_unique<TokenProof>(self.token);
  if (network) proof = std::make_unique<ToyProof>(self.token);
  Handshake handshake(self, std::move(proof), side);
  size_t consumed = 0, at = 0;
  while (at < bytes.size()) {
    const size_t piece = cuts ? 1 + Below(*cuts, bytes.size() - at) : bytes.size() - at;
    const size_t used = handshake.Receive(reinterpret_cast<const uint8_t*>(bytes.data()) + at, piece);
    consumed += used;
    if (used < piece) break;
    at += piece;
  }
  return {handshake.verified(), handshake.refused() ? handshake.refused() : "", consumed, handshake.unsent_bytes()};
}

bool IsRight(const std::string& hello) {
  const std::string right = HelloBytes(MakeIdentity('D', 0));
  return hello.size() >= kHelloBytes && hello.compare(0, 10, right, 0, 10) == 0 &&
         static_cast<uint8_t>(hello[10]) <= kRoleMax && hello.compare(11, 5, std::string(5, '\0')) == 0 &&
         hello.compare(32, 32, right, 32, 32) == 0;
}

}  // namespace

TEST(HandshakeFuzz, OnlyARightHelloIsAcceptedHoweverItIsCut) {
  const Identity self = MakeIdentity('A', 1);
  Fuzz("hello", [&](Random& random) {
    std::string bytes = HelloBytes(MakeIdentity('D', static_cast<uint8_t>(Below(random, 6))));
    bytes += std::string(Below(random, 100), 'f');
    Mutate(random, &bytes);
    const Outcome whole = Feed(self, Handshake::Side::kAccepted, false, bytes, nullptr);
    const Outcome cut = Feed(self, Handshake::Side::kAccepted, false, bytes, &random);
    EXPECT_EQ(whole.verified, IsRight(bytes));
    EXPECT_EQ(whole.verified, cut.verified);
    EXPECT_EQ(whole.refused, cut.refused);
    EXPECT_EQ(whole.to_send, whole.verified ? kHelloBytes : 0);
    if (whole.verified) EXPECT_EQ(cut.consumed, kHelloBytes);
    EXPECT_LE(whole.consumed, kHelloBytes);
  });
}

TEST(HandshakeFuzz, AnswersInventedByAStrangerAreRefused) {
  const Identity self = MakeIdentity('A', 1);
  Fuzz("answer", [&](Random& random) {
    std::string bytes = HelloBytes(MakeIdentity('D', 0));
    for (size_t i = 32; i < bytes.size(); ++i) bytes[i] = static_cast<char>(random());
    for (size_t i = 0; i < kProofBytes; ++i) bytes += static_cast<char>(random());
    const Handshake::Side side = Below(random, 2) ? Handshake::Side::kDialled : Handshake::Side::kAccepted;
    if (side == Handshake::Side::kDialled) bytes[11] = 1;  // an accepting stranger
    const Outcome outcome = Feed(self, side, true, bytes, &random);
    EXPECT_FALSE(outcome.verified);
    EXPECT_EQ(outcome.consumed, kHelloBytes + kProofBytes);
    EXPECT_NE(outcome.refused, std::string());
  });
}

}  // namespace ray::channel
