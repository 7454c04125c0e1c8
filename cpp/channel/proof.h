// How one side of a connection shows the other that it knows the cluster's token. A strategy, because the two kinds of
// connection differ: on a Unix socket nobody can listen in, so the token itself is shown (TokenProof); over TCP it must
// not travel, so both sides send a nonce first and then an answer that only a holder of the token can compute.
//
// One object per connection, used by its Handshake. No I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace ray::channel {

constexpr size_t kTokenBytes = 32;
constexpr size_t kProofBytes = 32;
constexpr size_t kHelloBytes = 64;

// Takes as long for equal as for different bytes, so that a token can't be guessed byte by byte.
bool EqualInConstantTime(const uint8_t* a, const uint8_t* b, size_t bytes);

class Proof {
 public:
  virtual ~Proof() = default;

  // True: the offer is a public nonce and each hello is followed by an answer of kProofBytes. False: the offer is the
  // proof, and secret: the accepting side shows its own only to a peer that has shown a right one.
  virtual bool answers() const = 0;
  // Fills the proof field of our hello.
  virtual void Offer(uint8_t out[kProofBytes]) = 0;
  // Judges the proof field of the peer's hello.
  virtual bool AcceptOffer(const uint8_t offer[kProofBytes]) = 0;

  // Only if answers(). ours and theirs are whole hellos, so an answer can be bound to both nonces, tags and roles (and
  // an answer reflected back at its sender recognised). A subclass whose answers() is true overrides both.
  virtual void Answer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes], uint8_t out[kProofBytes]);
  virtual bool AcceptAnswer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes],
                            const uint8_t answer[kProofBytes]);
};

using ProofMaker = std::function<std::unique_ptr<Proof>()>;

// Shows the token. For Unix sockets only.
class TokenProof final : public Proof {
 public:
  explicit TokenProof(const uint8_t token[kTokenBytes]);
  bool answers() const override { return false; }
  void Offer(uint8_t out[kProofBytes]) override;
  bool AcceptOffer(const uint8_t offer[kProofBytes]) override;

 private:
  uint8_t token_[kTokenBytes];
};

}  // namespace ray::channel
