// Shows over TCP that one knows the token, without showing the token: each side sends 32 random bytes in its hello,
// then HMAC-SHA256 under the token of a label and both hellos, its own first.
//
// Both nonces, tags and roles are under the code, so an answer fits one connection only: replayed into another it is
// wrong. The order of the hellos tells the two sides apart: an answer sent back to whom it came from is wrong, and a
// peer that sends our own hello back is refused before. Whoever relays all bytes between two nodes is not kept out
// (that is TLS's).
#pragma once

#include "channel/proof.h"

namespace ray::channel {

class NetworkProof final : public Proof {
 public:
  explicit NetworkProof(const uint8_t token[kTokenBytes]);
  bool answers() const override { return true; }
  void Offer(uint8_t out[kProofBytes]) override;
  bool AcceptOffer(const uint8_t offer[kProofBytes]) override;
  void Answer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes], uint8_t out[kProofBytes]) override;
  bool AcceptAnswer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes],
                    const uint8_t answer[kProofBytes]) override;

 private:
  uint8_t token_[kTokenBytes];
};

// What a node's gate reads before anything else of a TCP connection: for whom it is.
//   offset 0   magic 8 bytes;   8   u16 version;   10   u8 destination, 5 zero;   16   tag (CORE; zeros otherwise)
constexpr size_t kPreambleBytes = 32;
constexpr uint8_t kPreambleMagic[8] = {0x8f, 'r', 'a', 'y', 'g', 'a', 't', 'e'};
constexpr uint16_t kPreambleVersion = 1;
// kClients is no gate's: ray client server listens on a port of its own, and no preamble is sent there. It names what a
// TLS connection to it is for (tls.h).
enum class Destination : uint8_t { kNode = 0, kCore = 1, kStore = 2, kClients = 3 };
void WritePreamble(Destination destination, const uint8_t tag[16], uint8_t out[kPreambleBytes]);

}  // namespace ray::channel
