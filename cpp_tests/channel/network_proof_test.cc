// SHA-256 and HMAC against the published vectors; the proof between honest and dishonest peers.
#include "channel/network_proof.h"

#include <cstring>
#include <string>

#include "channel/handshake.h"
#include "common/sha256.h"
#include "testing.h"

namespace ray::channel {
namespace {

std::string Hex(const Sha256Digest& digest) {
  std::string out;
  for (const uint8_t b : digest) {
    out += "0123456789abcdef"[b >> 4];
    out += "0123456789abcdef"[b & 15];
  }
  return out;
}
std::string HashOf(const std::string& text) {
  Sha256 hash;
  for (size_t i = 0; i < text.size(); i += 13) hash.Add(text.data() + i, std::min<size_t>(13, text.size() - i));
  return Hex(hash.Finish());
}

TEST(Sha256, AgreesWithTheStandardsVectors) {
  EXPECT_EQ(HashOf(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(HashOf("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HashOf("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(HashOf(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(HmacSha256, AgreesWithRfc4231) {
  const auto code = [](const std::string& key, const std::string& a, const std::string& b = "") {
    return Hex(HmacSha256(key.data(), key.size(), a.data(), a.size(), b.data(), b.size()));
  };
  EXPECT_EQ(code(std::string(20, '\x0b'), "Hi ", "There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(code("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(code(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

Identity Of(char tag) {
  Identity identity{};
  std::memset(identity.tag, tag, sizeof(identity.tag));
  identity.role = 2;
  return identity;
}
Handshake Side(char tag, char token, Handshake::Side side) {
  uint8_t bytes[kTokenBytes];
  std::memset(bytes, token, sizeof(bytes));
  return Handshake(Of(tag), std::make_unique<NetworkProof>(bytes), side);
}
// Carries what one side wants sent to the other, until neither has more.
void Converse(Handshake* a, Handshake* b) {
  for (int i = 0; i < 8; ++i) {
    for (auto [from, to] : {std::pair(a, b), std::pair(b, a)}) {
      const size_t n = from->unsent_bytes();
      if (n == 0) continue;
      to->Receive(from->unsent(), n);
      from->Sent(n);
    }
  }
}

TEST(NetworkProof, ProvesBothSidesThatKnowTheToken) {
  Handshake a = Side('a', 'T', Handshake::Side::kDialled), b = Side('b', 'T', Handshake::Side::kAccepted);
  Converse(&a, &b);
  EXPECT_TRUE(a.verified() && b.verified());
  EXPECT_EQ(a.peer_tag().bytes[0], uint8_t{'b'});
}

TEST(NetworkProof, RefusesWhoDoesNotKnowItAndShowsHimNothing) {
  Handshake a = Side('a', 'X', Handshake::Side::kDialled), b = Side('b', 'T', Handshake::Side::kAccepted);
  Converse(&a, &b);
  EXPECT_FALSE(a.verified());
  EXPECT_TRUE(b.refused() != nullptr);
}

TEST(NetworkProof, RefusesAMirror) {
  Handshake a = Side('a', 'T', Handshake::Side::kDialled);
  for (int i = 0; i < 4; ++i) {
    const std::string said(reinterpret_cast<const char*>(a.unsent()), a.unsent_bytes());
    a.Sent(said.size());
    a.Receive(reinterpret_cast<const uint8_t*>(said.data()), said.size());
  }
  EXPECT_FALSE(a.verified());
  EXPECT_TRUE(a.refused() != nullptr);
}

TEST(NetworkProof, RefusesWhatWasRightOnAnotherConnection) {
  Handshake a = Side('a', 'T', Handshake::Side::kDialled), b = Side('b', 'T', Handshake::Side::kAccepted);
  std::string recorded(reinterpret_cast<const char*>(a.unsent()), a.unsent_bytes());
  b.Receive(a.unsent(), a.unsent_bytes());
  a.Sent(a.unsent_bytes());
  a.Receive(b.unsent(), b.unsent_bytes());
  recorded.append(reinterpret_cast<const char*>(a.unsent()), a.unsent_bytes());
  Handshake again = Side('b', 'T', Handshake::Side::kAccepted);
  again.Receive(reinterpret_cast<const uint8_t*>(recorded.data()), recorded.size());
  EXPECT_TRUE(again.refused() != nullptr);
}

}  // namespace
}  // namespace ray::channel
