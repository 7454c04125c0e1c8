// The codes of network_proof.h, and the preamble.
#include "channel/network_proof.h"

#include <sys/random.h>

#include <cstdlib>
#include <cstring>

#include "common/sha256.h"

namespace ray::channel {

namespace {
constexpr char kLabel[] = "ray channel, hello 1, answer: ";

Sha256Digest Code(const uint8_t* token, const uint8_t* first, const uint8_t* second) {
  uint8_t text[sizeof(kLabel) - 1 + kHelloBytes];
  std::memcpy(text, kLabel, sizeof(kLabel) - 1);
  std::memcpy(text + sizeof(kLabel) - 1, first, kHelloBytes);
  return HmacSha256(token, kTokenBytes, text, sizeof(text), second, kHelloBytes);
}
}  // namespace

NetworkProof::NetworkProof(const uint8_t token[kTokenBytes]) { std::memcpy(token_, token, kTokenBytes); }

void NetworkProof::Offer(uint8_t out[kProofBytes]) {
  // 32 bytes come whole or not at all; without randomness nothing could be proved any more.
  if (getrandom(out, kProofBytes, 0) != static_cast<ssize_t>(kProofBytes)) std::abort();
}

bool NetworkProof::AcceptOffer(const uint8_t*) { return true; }  // it is judged with the answer

void NetworkProof::Answer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes],
                          uint8_t out[kProofBytes]) {
  const Sha256Digest code = Code(token_, ours, theirs);
  static_assert(kSha256Bytes == kProofBytes);
  std::memcpy(out, code.data(), kProofBytes);
}

bool NetworkProof::AcceptAnswer(const uint8_t ours[kHelloBytes], const uint8_t theirs[kHelloBytes],
                                const uint8_t answer[kProofBytes]) {
  if (std::memcmp(ours, theirs, kHelloBytes) == 0) return false;  // a mirror
  const Sha256Digest code = Code(token_, theirs, ours);
  return EqualInConstantTime(code.data(), answer, kProofBytes);
}

void WritePreamble(Destination destination, const uint8_t tag[16], uint8_t out[kPreambleBytes]) {
  std::memset(out, 0, kPreambleBytes);
  std::memcpy(out, kPreambleMagic, sizeof(kPreambleMagic));
  std::memcpy(out + 8, &kPreambleVersion, sizeof(kPreambleVersion));
  out[10] = static_cast<uint8_t>(destination);
  if (tag != nullptr) std::memcpy(out + 16, tag, 16);
}

}  // namespace ray::channel
