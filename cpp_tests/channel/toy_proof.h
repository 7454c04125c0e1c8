// A challenge and response with the shape of the real one (network_proof.h) and no cryptographic worth: tests only.
#pragma once

#include <cstring>
#include <memory>

#include "channel/fixture.h"
#include "channel/proof.h"

namespace ray::channel {

class ToyProof final : public Proof {
 public:
  explicit ToyProof(const uint8_t token[kTokenBytes]) { std::memcpy(token_, token, kTokenBytes); }
  bool answers() const override { return true; }
  void Offer(uint8_t out[kProofBytes]) override {
    static uint8_t nonce = 0;
    std::memset(out, ++nonce, kProofBytes);
  }
  bool AcceptOffer(const uint8_t*) override { return true; }
  void Answer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes], uint8_t out[kProofBytes]) override {
    for (size_t i = 0; i < kProofBytes; ++i) {
      uint32_t mixed = token_[i];
      for (size_t k = 0; k < kHelloBytes; ++k) mixed = (mixed * 31 + ours[k]) * 17 + theirs[k];
      out[i] = static_cast<uint8_t>(mixed >> 8);
    }
  }
  bool AcceptAnswer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes],
                    const uint8_t answer[kProofBytes]) override {
    uint8_t expected[kProofBytes];
    Answer(theirs, ours, expected);  // what the other side computes
    return std::memcmp(ours, theirs, kHelloBytes) != 0 && EqualInConstantTime(expected, answer, kProofBytes);
  }

 private:
  uint8_t token_[kTokenBytes];
};

inline Identity NetworkIdentity(char tag, char token = 'T') {
  Identity identity = MakeIdentity(tag, 2, token);
  identity.network_proof = [token] {
    uint8_t bytes[kTokenBytes];
    std::memset(bytes, token, sizeof bytes);
    return std::make_unique<ToyProof>(bytes);
  };
  return identity;
}

}  // namespace ray::channel
