// As the standard has it, in the plainest form: a greeting hashes some 200 bytes.
#include "common/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ray {

namespace {
constexpr size_t kBlockBytes = 64;

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
}  // namespace

Sha256::Sha256() {
  // Of the square roots of the first 8 primes.
  constexpr uint32_t kStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::copy(std::begin(kStart), std::end(kStart), state_);
}

void Sha256::Block(const uint8_t* block) {
  uint32_t w[64];
  for (size_t i = 0; i < 16; ++i) {
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 | uint32_t{block[4 * i + 2]} << 8 |
           uint32_t{block[4 * i + 3]};
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    const uint32_t s0 = std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3;
    const uint32_t s1 = std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t v[8];
  std::copy(std::begin(state_), std::end(state_), v);
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t e = v[4], a = v[0];
    const uint32_t sum1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
    const uint32_t choice = (e & v[5]) ^ (~e & v[6]);
    const uint32_t t1 = v[7] + sum1 + choice + kRounds[i] + w[i];
    const uint32_t sum0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
    const uint32_t majority = (a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]);
    for (size_t k = 7; k > 0; --k) v[k] = v[k - 1];
    v[4] += t1;
    v[0] = t1 + sum0 + majority;
  }
  for (size_t i = 0; i < 8; ++i) state_[i] += v[i];
}

void Sha256::Add(const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const size_t used = bytes_ % kBlockBytes;
    const size_t take = std::min(bytes, kBlockBytes - used);
    std::memcpy(pending_ + used, at, take);
    bytes_ += take;
    at += take;
    bytes -= take;
    if (bytes_ % kBlockBytes == 0) Block(pending_);
  }
}

Sha256Digest Sha256::Finish() {
  const uint64_t bits = bytes_ * 8;
  const uint8_t one = 0x80, zero = 0;
  Add(&one, 1);
  while (bytes_ % kBlockBytes != kBlockBytes - 8) Add(&zero, 1);
  uint8_t length[8];
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  Add(length, sizeof(length));
  Sha256Digest out;
  for (size_t i = 0; i < kSha256Bytes; ++i) out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

Sha256Digest HmacSha256(const void* key, size_t key_bytes, const void* first, size_t first_bytes, const void* second,
                        size_t second_bytes) {
  uint8_t block[kBlockBytes] = {};
  if (key_bytes > kBlockBytes) {
    Sha256 shortened;
    shortened.Add(key, key_bytes);
    const Sha256Digest digest = shortened.Finish();
    std::copy(digest.begin(), digest.end(), block);
  } else if (key_bytes > 0) {
    std::memcpy(block, key, key_bytes);
  }
  uint8_t inner_pad[kBlockBytes], outer_pad[kBlockBytes];
  for (size_t i = 0; i < kBlockBytes; ++i) {
    inner_pad[i] = block[i] ^ 0x36;
    outer_pad[i] = block[i] ^ 0x5c;
  }
  Sha256 inner, outer;
  inner.Add(inner_pad, kBlockBytes);
  inner.Add(first, first_bytes);
  if (second_bytes > 0) inner.Add(second, second_bytes);
  const Sha256Digest digest = inner.Finish();
  outer.Add(outer_pad, kBlockBytes);
  outer.Add(digest.data(), digest.size());
  return outer.Finish();
}

}  // namespace ray
