// TokenProof, and the compare it rests on; proof.h says why there is more than one proof.
#include "channel/proof.h"

#include <cstdlib>
#include <cstring>

namespace ray::channel {

bool EqualInConstantTime(const uint8_t* a, const uint8_t* b, size_t bytes) {
  // volatile: or the compiler may leave the loop at the first difference.
  volatile uint8_t difference = 0;
  for (size_t i = 0; i < bytes; ++i) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

// Reached only through a subclass that says it answers and doesn't know how: our own bug.
void Proof::Answer(const uint8_t*, const uint8_t*, uint8_t*) { std::abort(); }
bool Proof::AcceptAnswer(const uint8_t*, const uint8_t*, const uint8_t*) { return false; }

TokenProof::TokenProof(const uint8_t token[kTokenBytes]) { std::memcpy(token_, token, kTokenBytes); }

void TokenProof::Offer(uint8_t out[kProofBytes]) {
  static_assert(kTokenBytes == kProofBytes, "the offer is the token");
  std::memcpy(out, token_, kTokenBytes);
}

bool TokenProof::AcceptOffer(const uint8_t offer[kProofBytes]) {
  return EqualInConstantTime(offer, token_, kTokenBytes);
}

}  // namespace ray::channel
